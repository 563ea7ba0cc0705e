"""Freeze modules of an encoder (--freeze)."""

from collections.abc import Sequence
from functools import partial

from torch import nn

from moco.encoders.library import Backbone
from utils.errors import InputError


def freeze_modules(encoder: nn.Module, names: Sequence[str], arch: str) -> None:
    """Disable gradients of modules and keep them in evaluation mode, so that batch norm uses its stored statistics.

    Args:
        names: module names of the library's network, as in its state dict: conv1, layer1.0, features.2.

    Raises:
        InputError: If the network has no module of that name; the message lists the existing ones.
    """
    network = encoder.backbone if isinstance(encoder, Backbone) else encoder
    modules = dict(network.named_modules())
    if unknown := [name for name in names if name not in modules or name.split(".")[0] in ("", "fc")]:
        existing = ", ".join(name for name, child in network.named_children() if name != "fc" and [*child.parameters()])
        raise InputError(
            f"--freeze {unknown[0]}: no such module in {arch}; expected one of {existing}, or a module inside them"
        )
    for name in names:
        modules[name].requires_grad_(False).eval()
        for module in modules[name].modules():
            module.train = partial(_keep_in_eval, module)


def check_frozen_weights(encoder: nn.Module, names: Sequence[str], loaded: set[str], source: str) -> None:
    """Raise InputError if a weight of the modules to freeze was not loaded: it would keep a random value.

    Args:
        names: as in `freeze_modules`. loaded: names of the loaded tensors, as in the encoder's state dict.
        source: the file, for the message.
    """
    for key in [key for key, _ in encoder.named_parameters() if not key.startswith("fc.")]:
        name = key.removeprefix("backbone.") if isinstance(encoder, Backbone) else key
        part = next((part for part in names if name.startswith(f"{part}.")), None)
        if part and key not in loaded:
            raise InputError(f"--freeze {part}: {source} does not contain {key}, which would stay random; omit {part}")


def _keep_in_eval(module: nn.Module, mode: bool = True) -> nn.Module:
    """Ignore the mode. Replaces `module.train`, which `network.train()` calls on all modules."""
    return module
