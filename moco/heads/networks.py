"""The networks of stage 2: a frozen encoder with a head as `fc`."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from moco.encoders import get_encoder
from moco.heads import HEADS
from moco.heads.classifiers import fitted_classifier, linear_classifier
from moco.heads.trained import build_linear
from moco.pretrained import check_stage2, load_encoder
from utils.distributed import log
from utils.errors import InputError
from utils.run import checkpoint


def build_classifier(
    arch: str,
    image_size: int,
    num_classes: int,
    batch: int = 2,
    pretrained: str | Path | None = None,
    head: str = "linear",
    counts: np.ndarray | None = None,
    quiet: bool = False,
) -> nn.Module:
    """Build the network with the frozen pre-trained encoder and a new `fc`, on the CPU.

    Args:
        batch: Images per process and training step. Keep the default if nothing will be trained.
        pretrained: File of the encoder. None keeps random weights, for a checkpoint that replaces all of them.
        head: Name in HEADS.
        counts: See `freeze_and_replace_classifier`.
        quiet: Do not log what was loaded.

    Raises:
        InputError: See `get_encoder` and `load_encoder`.
    """
    model = get_encoder(arch, image_size, batch)(num_classes=num_classes)
    if pretrained is not None:
        found = load_encoder(model, pretrained, arch)
        if not quiet:
            log(f"pretrained: {pretrained}: {found.summary()}")
    return freeze_and_replace_classifier(model, head, counts)


def freeze_and_replace_classifier(
    model: nn.Module, head: str = "linear", counts: np.ndarray | None = None
) -> nn.Module:
    """Freeze the network and give it a new `fc`, the only trainable part. Return the network.

    Args:
        counts: (C,) training images per class. None is for heads that do not use them.
    """
    model.requires_grad_(False)
    counts = np.ones(model.fc.out_features, dtype=np.int64) if counts is None else counts
    build = HEADS[head].build or build_linear  # a fitted head replaces the linear `fc` later
    model.fc = build(model.fc.in_features, counts)
    return model


def load_trained(model: nn.Module, head: str, weights: dict[str, Tensor], source: Path) -> nn.Module:
    """Load the weights of a finished second stage into its network. Return the network.

    Raises:
        InputError: The weights do not fit the network, the head, or the number of classes.
    """
    check_stage2(weights, source)
    if HEADS[head].is_fitted:
        expected, model.fc = model.fc.out_features, fitted_classifier(weights, source)
        found = len(getattr(model.fc, "classifier", model.fc).weight)
        if found != expected:
            raise InputError(f"checkpoint {source}: fitted to {found} classes, but the data has {expected}")
    checkpoint.load_weights(model, weights, source)
    return model


def unfreeze(model: nn.Module) -> None:
    """Make the encoder trainable. In `fc`, frozen parameters stay frozen."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad or not name.startswith("fc."))


def without_classifier(model: nn.Module) -> nn.Module:
    """Replace `fc` by the identity, so that the network returns features, (N, d). Return the network."""
    model.fc = nn.Identity()
    return model


def with_float32_logits(model: nn.Module) -> nn.Module:
    """Replace `fc` by a trainable Float32Linear with the same weights. Return the network."""
    model.fc = linear_classifier(model.fc.weight, model.fc.bias)
    return model


def frozen_weights(model: nn.Module, bn_mode: str) -> dict[str, Tensor]:
    """Return copies of the tensors that must not change. With bn_mode "train", batch-norm statistics are excluded."""
    assert all(name.startswith("fc.") for name, p in model.named_parameters() if p.requires_grad)
    tensors = model.state_dict() if bn_mode == "eval" else dict(model.named_parameters())
    return {name: tensor.detach().clone() for name, tensor in tensors.items() if not name.startswith("fc.")}


def changed_weights(model: nn.Module, frozen: dict[str, Tensor]) -> list[str]:
    """Return the names of frozen weights that are no longer bit-identical."""
    current = model.state_dict()
    return [name for name, stored in frozen.items() if not torch.equal(current[name], stored)]


def check_unchanged(model: nn.Module, frozen: dict[str, Tensor], message: str) -> None:
    """Raise InputError, with the message and the first names, if frozen weights are no longer bit-identical."""
    if names := changed_weights(model, frozen):
        raise InputError(f"{message} {checkpoint.first_keys(names)}")
