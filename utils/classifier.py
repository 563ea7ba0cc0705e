"""Stage 2's network: a frozen encoder and the classifier `fc` on it, and the proof that nothing else moved."""

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from moco.encoders import get_encoder
from moco.losses import at_least_float32
from utils import distributed
from utils.encoder_weights import load_encoder


class Float32Linear(nn.Linear):
    """A Linear that --amp leaves alone: logits of eight bits would often tie."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(at_least_float32(x))


def with_float32_logits(model: nn.Module) -> nn.Module:
    """The same network, its `fc` replaced by a Float32Linear of the same weights, which train."""
    fc = skip_init(Float32Linear, *model.fc.weight.shape[::-1])
    fc.load_state_dict(model.fc.state_dict())
    model.fc = fc
    return model


def build_classifier(args, num_classes: int) -> nn.Module:
    """The network with the pre-trained encoder frozen and `fc` new."""
    share = args.batch_size // distributed.world_size_from(args)
    model = get_encoder(args.arch, args.image_size, share)(num_classes=num_classes)
    if not args.evaluate:  # an evaluated checkpoint brings all weights itself
        load_encoder(model, args.pretrained, args.arch)
    return freeze(model)


def freeze(model: nn.Module) -> nn.Module:
    """The same network with a new `fc`, the only part that trains: weight N(0, 0.01), bias 0."""
    model.requires_grad_(False)
    with_float32_logits(model)
    nn.init.normal_(model.fc.weight, mean=0.0, std=0.01)
    nn.init.zeros_(model.fc.bias)
    return model


def frozen_weights(model: nn.Module, bn_mode: str) -> dict[str, Tensor]:
    """Copies of what must not change; with bn_mode train the batch-norm statistics may."""
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {"fc.weight", "fc.bias"}
    tensors = model.state_dict() if bn_mode == "eval" else dict(model.named_parameters())
    return {name: tensor.detach().clone() for name, tensor in tensors.items() if not name.startswith("fc.")}


def moved(model: nn.Module, frozen: dict[str, Tensor]) -> list[str]:
    """The names of frozen weights that are not what they were, to the bit."""
    now = model.state_dict()
    return [name for name, before in frozen.items() if not torch.equal(now[name], before)]
