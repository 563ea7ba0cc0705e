"""The layouts of other tools' checkpoints, built from the weights of an encoder under the names of its library."""

from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

SMALL, VIT = "resnet20", "timm:vit_tiny_patch16_224"
HEAD = {"0.weight": torch.ones(4, 8), "2.weight": torch.ones(2, 4)}  # of a projector
Weights = dict[str, Tensor]


def under(prefix: str, weights: Weights) -> Weights:
    return {prefix + name: value for name, value in weights.items()}


def other(weights: Weights) -> Weights:
    """Return different weights for the same network."""
    return {name: value + 1 for name, value in weights.items()}


def numbered(weights: Weights, first_block: int = 2) -> Weights:
    """Return weights as nn.Sequential(*network.children()) stores them."""
    names = list(dict.fromkeys(name.split(".")[0] for name in weights))
    numbers = {name: number if number < 2 else number - 2 + first_block for number, name in enumerate(names)}
    return {f"{numbers[name.split('.')[0]]}.{name.partition('.')[2]}": value for name, value in weights.items()}


def moco(w: Weights) -> dict:
    """Return a checkpoint of MoCo v1 or v2."""
    state = under("module.encoder_q.", w | under("fc.", HEAD)) | under("module.encoder_k.", other(w))
    return {"epoch": 200, "state_dict": state | {"module.queue": torch.ones(2, 8)}, "optimizer": {"state": {}}}


def moco_v3(w: Weights) -> dict:
    state = under("module.base_encoder.", w | under("head.", HEAD)) | under("module.momentum_encoder.", other(w))
    return {"arch": "vit_tiny", "state_dict": state | under("module.predictor.", HEAD), "scaler": {"scale": 1.0}}


def dino(w: Weights) -> dict:
    student = under("module.backbone.", other(w)) | under("module.head.mlp.", HEAD)
    teacher = under("backbone.", w) | under("head.mlp.", HEAD)
    loss = {"center": torch.ones(1, 8)}
    return {"student": student, "teacher": teacher, "args": Namespace(lr=np.float64(0.1)), "dino_loss": loss}


def mae(w: Weights) -> dict:
    decoder = {"mask_token": torch.ones(1, 1, 8), "decoder_pos_embed": torch.ones(1, 5, 8)}
    return {"model": w | decoder | under("decoder_blocks.0.attn.", HEAD), "args": Namespace(), "scaler": {}}


def timm(w: Weights) -> dict:
    ema = under("", w) | {"head.weight": torch.ones(3, 192)}
    state = {"epoch": 3, "arch": VIT.removeprefix("timm:"), "state_dict": other(ema), "state_dict_ema": ema}
    return state | {"args": Namespace(), "metric": np.float64(71.5), "version": 2}


def torchvision_references(w: Weights) -> dict:
    classifier = {"fc.weight": torch.ones(3, 64), "fc.bias": torch.ones(3)}
    ema = {"n_averaged": torch.tensor(7)} | under("module.", w | classifier)
    return {"model": other(w | classifier), "model_ema": ema, "args": Namespace(), "optimizer": {"state": {}}}


def sup_contrast(w: Weights) -> dict:
    """Return a checkpoint of SupContrast, where only the encoder is in DataParallel."""
    renamed = {name.replace("downsample", "shortcut"): value for name, value in w.items()}
    return {"opt": Namespace(), "model": under("encoder.module.", renamed) | under("head.", HEAD)}


def swav(w: Weights) -> dict:
    heads = under("module.projection_head.", HEAD) | {"module.prototypes.weight": torch.ones(3, 8)}
    return {"epoch": 1, "state_dict": under("module.", w) | heads}


def simsiam(w: Weights) -> dict:
    state = under("module.encoder.", w | under("fc.", HEAD)) | under("module.predictor.", HEAD)
    return {"arch": SMALL, "state_dict": state}


def solo_learn(w: Weights) -> dict:
    state = under("backbone.", w) | under("momentum_backbone.", other(w)) | under("projector.", HEAD)
    return {"pytorch-lightning_version": "2.0", "global_step": 9, "state_dict": state, "hyper_parameters": {"lr": 1}}


def lightly(w: Weights) -> dict:
    """Return a checkpoint of lightly: conv1 and bn1 are 0 and 1, ReLU and pooling 2 and 3, the blocks start at 4."""
    state = under("backbone.", numbered(w, first_block=4)) | under("projection_head.layers.", HEAD)
    return {"state_dict": state | under("backbone_momentum.", numbered(other(w), first_block=4))}


def mmpretrain(w: Weights) -> dict:
    state = OrderedDict(under("backbone.", w) | {"head.fc.weight": torch.ones(3, 64)} | under("neck.", HEAD))
    return {"meta": {"epoch": 1}, "state_dict": state, "message_hub": {"runtime_info": {"lr": np.float32(1)}}}


def paco(w: Weights) -> dict:
    state = moco(w)
    state["state_dict"] |= {"module.linear.weight": torch.ones(3, 64), "module.linear_k.weight": torch.ones(3, 64)}
    return state | {"best_acc1": torch.tensor(3.0)}


def bcl(w: Weights) -> dict:
    heads = under("module.head.", HEAD) | under("module.head_fc.", HEAD) | {"module.fc.weight": torch.ones(64, 3)}
    return {"arch": "resnext50", "state_dict": under("module.encoder.", w) | heads, "best_acc1": np.float64(1)}


LAYOUTS: dict[str, tuple[Callable[[Weights], dict], str, str]] = {
    # tool: (checkpoint, architecture, where the encoder is)
    "MoCo v1, v2": (moco, SMALL, "state_dict, prefix module.encoder_q."),
    "MoCo v3": (moco_v3, VIT, "state_dict, prefix module.base_encoder."),
    "DINO": (dino, VIT, "teacher, prefix backbone."),
    "MAE": (mae, VIT, "model, prefix (none)"),
    "timm": (timm, VIT, "state_dict_ema, prefix (none)"),
    "torchvision references": (torchvision_references, SMALL, "model_ema, prefix module."),
    "SupContrast": (sup_contrast, "resnet18_small", "model, prefix encoder.module."),
    "SwAV": (swav, SMALL, "state_dict, prefix module."),
    "SimSiam": (simsiam, SMALL, "state_dict, prefix module.encoder."),
    "solo-learn": (solo_learn, SMALL, "state_dict, prefix backbone."),
    "lightly": (lightly, SMALL, "state_dict, prefix backbone."),
    "mmpretrain": (mmpretrain, SMALL, "state_dict, prefix backbone."),
    "PaCo, GPaCo": (paco, SMALL, "state_dict, prefix module.encoder_q."),
    "BCL": (bcl, SMALL, "state_dict, prefix module.encoder."),
    "torch.compile": (lambda w: {"model": under("_orig_mod.module.", w)}, SMALL, "prefix _orig_mod.module."),
    "lenet, numbered": (lambda w: under("f.", numbered(w)), "lenet", "(the file itself), prefix f."),
}
