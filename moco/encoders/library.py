"""All classification networks of torchvision, and those of timm as `timm:NAME`.

A network whose last layer is a Linear named `fc`, such as a ResNet, is used unchanged, so that its state dict has the
library's names. The classifier of any other network is removed, and the rest becomes the `backbone` of a `Backbone`.
"""

import importlib.util
from collections.abc import Callable

import torchvision
from torch import Tensor, nn

from moco.encoders.small import SMALL
from utils.errors import InputError, first_line

TIMM = "timm:"
# Networks built for one image size, and torchvision's argument for that size.
SIZE_KWARGS = {"vit_": lambda side: {"image_size": side}, "maxvit_": lambda side: {"input_size": (side, side)}}


class Backbone(nn.Module):
    """A network whose classifier is replaced by `fc`.

    Args:
        network: maps (N, 3, H, W) to (N, d). fc: maps (N, d) to (N, num_classes).
        classifiers: the library's names of the layers that `fc` replaces.
    """

    def __init__(self, network: nn.Module, fc: nn.Linear, classifiers: tuple[str, ...]):
        super().__init__()
        self.backbone, self.fc, self.classifiers = network, fc, classifiers

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.backbone(x))


def download_weights(arch: str) -> dict[str, Tensor]:
    """Return the weights published by the network's library, under its names. Download them if they are not cached.

    Raises:
        InputError: If the library publishes no weights for this network, or the download fails.
    """
    subject = f"--init-from: weights of {arch.removeprefix(TIMM)}"
    try:
        if arch.startswith(TIMM):
            import timm

            return timm.create_model(arch.removeprefix(TIMM), pretrained=True).state_dict()
        weights = torchvision.models.get_model_weights(arch.removesuffix(SMALL)).DEFAULT  # the small stem stays random
        return weights.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except OSError as error:
        raise InputError(f"{subject}: download failed ({first_line(error)}); pass the path of a file instead") from None
    except (ValueError, RuntimeError, AttributeError) as error:
        raise InputError(
            f"{subject}: not published by the library ({first_line(error)}); pass the path of a file instead"
        ) from None


def to_encoder_names(encoder: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert weights from the library's names to those of an encoder, without the library's classifier."""
    if not isinstance(encoder, Backbone):
        return weights
    classifiers = tuple(f"{name}." for name in encoder.classifiers)
    return {f"backbone.{name}": value for name, value in weights.items() if not name.startswith(classifiers)}


def ends_in_fc(network: nn.Module) -> bool:
    return isinstance(getattr(network, "fc", None), nn.Linear)


def torchvision_names() -> list[str]:
    return torchvision.models.list_models(module=torchvision.models)


def from_torchvision(arch: str, image_size: int) -> Callable[..., nn.Module]:
    """Return the constructor of a torchvision network, for this image size if the network requires one.

    The constructor raises InputError if the last layer is not a Linear.
    """

    def build(num_classes: int = 1000) -> nn.Module:
        size_kwargs = next((make(image_size) for prefix, make in SIZE_KWARGS.items() if arch.startswith(prefix)), {})
        network = torchvision.models.get_model(arch, weights=None, num_classes=num_classes, **size_kwargs)
        if ends_in_fc(network):
            return network
        last = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)][-1:]
        if not last or network.get_submodule(*last).out_features != num_classes:
            raise InputError(f"--arch {arch}: the last layer is not linear; choose a network that ends in nn.Linear")
        # A new Linear, as for timm: a ViT initialises its own with zeros, and a zero projection has no direction.
        fc, (parent, _, name) = (
            nn.Linear(network.get_submodule(*last).in_features, num_classes),
            last[0].rpartition("."),
        )
        setattr(network.get_submodule(parent), name, nn.Identity())
        return Backbone(network, fc, tuple(last))

    return build


def timm_names() -> list[str]:
    """Return the names of all timm networks, with the prefix `timm:`.

    Raises:
        InputError: If timm is not installed.
    """
    if importlib.util.find_spec("timm") is None:
        raise InputError("--arch timm:...: timm is not installed; run: pip install -r requirements-extra.txt")
    import timm

    return [TIMM + name for name in timm.list_models()]


def from_timm(arch: str, image_size: int) -> Callable[..., nn.Module]:
    """Return the constructor of a timm network, as `from_torchvision`. timm provides the names of its classifiers."""
    import timm

    name = arch.removeprefix(TIMM)
    default_cfg = timm.get_pretrained_cfg(name, allow_unregistered=True)
    size_kwargs = {"img_size": image_size} if default_cfg and default_cfg.fixed_input_size else {}

    def build(num_classes: int = 1000) -> nn.Module:
        network = timm.create_model(name, pretrained=False, num_classes=num_classes, **size_kwargs)
        if ends_in_fc(network):
            return network
        names = network.pretrained_cfg["classifier"]  # a name or several
        classifier_names = (names,) if isinstance(names, str) else tuple(names)
        network.reset_classifier(0)
        width = getattr(network, "head_hidden_size", network.num_features)
        return Backbone(network, nn.Linear(width, num_classes), classifier_names)

    return build
