"""Parts of an encoder that stay as they are: --freeze."""

from collections.abc import Sequence
from functools import partial

from torch import nn

from moco.encoders.library import Backbone
from utils.errors import InputError


def freeze_parts(encoder: nn.Module, names: Sequence[str], arch: str) -> None:
    """Give parts no gradient and hold them in evaluation mode: their batch norm uses the statistics that they have.

    Args:
        names: of the library's network, as in its state dict: conv1, layer1.0, features.2.

    Raises:
        InputError: a part that the network does not have; with those it has.
    """
    network = encoder.backbone if isinstance(encoder, Backbone) else encoder
    parts = dict(network.named_modules())
    if unknown := [name for name in names if name not in parts or name in ("", "fc")]:
        there = ", ".join(name for name, part in network.named_children() if name != "fc" and [*part.parameters()])
        raise InputError(f"--freeze {unknown[0]}: no part of {arch}; expected of {there}, or a part of them")
    for name in names:
        parts[name].requires_grad_(False).eval()
        for module in parts[name].modules():
            module.train = partial(_stays, module)


def _stays(module: nn.Module, mode: bool = True) -> nn.Module:
    """In place of `module.train`, by which a whole network changes its mode."""
    return module
