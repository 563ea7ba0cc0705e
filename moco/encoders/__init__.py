"""Encoders by name: small networks for small images, torchvision and timm."""

import difflib
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor, nn

from moco.encoders.library import TIMM, from_timm, from_torchvision, timm_names, torchvision_names
from moco.encoders.small import PROJECT_NETWORKS
from utils.errors import InputError, first_line


def get_encoder(arch: str, image_size: int, batch: int = 2) -> Callable[..., nn.Module]:
    """Return the constructor of an architecture, after a forward pass on the meta device.

    The constructor is called with num_classes. The last layer of its network is a Linear named `fc`.

    Raises:
        InputError: If the name is unknown, or if the network does not end in a linear layer or does not map `batch`
            images of this size to one vector each.
    """
    build = constructor(arch, image_size)
    _check_on_meta_device(build, arch, image_size, batch)
    return build


# Each script calls this in its checks, and again when it builds the model. lru_cache has an effect only for networks in
# PROJECT_NETWORKS, because constructors of torchvision and timm are new objects at each call.
@lru_cache(maxsize=32)
def _check_on_meta_device(build: Callable[..., nn.Module], arch: str, image_size: int, batch: int) -> None:
    """Raise InputError if a network does not map a batch of images to one vector each."""
    try:
        out = on_meta_device(build)(torch.empty(batch, 3, image_size, image_size, device="meta"))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise InputError(
            f"--arch {arch}: cannot train on {batch} {image_size}-px images per process ({first_line(error)})"
        ) from None
    if not isinstance(out, Tensor) or out.shape != (batch, 2):
        raise InputError(
            f"--arch {arch}: does not return one vector per image; choose a network with a single classifier"
        )


def constructor(arch: str, image_size: int) -> Callable[..., nn.Module]:
    """Like `get_encoder`, but without the forward pass. Raise InputError if the name is
    unknown."""
    if arch in PROJECT_NETWORKS:
        return PROJECT_NETWORKS[arch]
    names = timm_names() if arch.startswith(TIMM) else torchvision_names()
    if arch in names:
        return (from_timm if arch.startswith(TIMM) else from_torchvision)(arch, image_size)
    known = names if arch.startswith(TIMM) else [*PROJECT_NETWORKS, *names]
    near = ", ".join(difflib.get_close_matches(arch, known, 3, cutoff=0.3)) or "resnet18, resnet32, resnet50"
    raise InputError(
        f"--arch {arch}: unknown network; did you mean {near}? Expected a torchvision network, or timm:NAME"
    )


def on_meta_device(build: Callable[..., nn.Module]) -> nn.Module:
    """Build a network for two classes on the meta device, where tensors have a shape but no memory."""
    try:
        with torch.device("meta"):
            return build(num_classes=2)
    except NotImplementedError:  # some initialisations, such as RegNet's, do not support the meta device
        return build(num_classes=2).to("meta")


def has_batch_norm(network: nn.Module) -> bool:
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules())
