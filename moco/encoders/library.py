"""Networks of the libraries: all classification networks of torchvision, and timm's as `timm:NAME`.

A network whose last layer is a Linear named `fc`, as a ResNet's, is taken as it is: its state dict is the one that the
field exchanges. Of any other the classifier is taken away, and the rest is the `backbone` of a `Backbone`.
"""

import importlib.util
from collections.abc import Callable

import torchvision
from torch import Tensor, nn

from utils.errors import InputError, first_line

TIMM = "timm:"
SMALL = "_small"  # the end of a name: of torchvision's ResNet, with a stem for small images
# Networks that are built for one size of image, and the name of torchvision's argument that says which.
SIZED = {"vit_": lambda side: {"image_size": side}, "maxvit_": lambda side: {"input_size": (side, side)}}


class Backbone(nn.Module):
    """A network without its classifier, and `fc` in its place.

    Args:
        network: maps (N, 3, H, W) to (N, d). fc: to (N, num_classes). classifiers: what the library calls the layers
            that `fc` stands for.
    """

    def __init__(self, network: nn.Module, fc: nn.Linear, classifiers: tuple[str, ...]):
        super().__init__()
        self.backbone, self.fc, self.classifiers = network, fc, classifiers

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.backbone(x))


def published(arch: str) -> dict[str, Tensor]:
    """The weights that a network's own library publishes, downloaded where its cache has none; by the library's names.

    Raises:
        InputError: it publishes none, or they cannot be had from here.
    """
    what = f"--init-from: {arch.removeprefix(TIMM)}'s weights"
    try:
        if arch.startswith(TIMM):
            import timm

            return timm.create_model(arch.removeprefix(TIMM), pretrained=True).state_dict()
        weights = torchvision.models.get_model_weights(arch.removesuffix(SMALL)).DEFAULT  # a small stem stays random
        return weights.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except OSError as error:
        raise InputError(f"{what}: cannot be downloaded here ({first_line(error)}); give a file's path") from None
    except (ValueError, RuntimeError, AttributeError) as error:
        raise InputError(f"{what}: its library has none ({first_line(error)}); give a file's path") from None


def own_names(encoder: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights by the library's names, by those of an encoder; a classifier of the library is left out."""
    if not isinstance(encoder, Backbone):
        return weights
    left = tuple(f"{name}." for name in encoder.classifiers)
    return {f"backbone.{name}": value for name, value in weights.items() if not name.startswith(left)}


def ends_in_fc(network: nn.Module) -> bool:
    return isinstance(getattr(network, "fc", None), nn.Linear)


def torchvision_names() -> list[str]:
    return torchvision.models.list_models(module=torchvision.models)


def from_torchvision(arch: str, image_size: int) -> Callable[..., nn.Module]:
    """The constructor of a network, for images of that size where it is built for one.

    It raises InputError: the last layer is not a Linear.
    """

    def build(num_classes: int = 1000) -> nn.Module:
        sized = next((of(image_size) for prefix, of in SIZED.items() if arch.startswith(prefix)), {})
        network = torchvision.models.get_model(arch, weights=None, num_classes=num_classes, **sized)
        if ends_in_fc(network):
            return network
        last = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)][-1:]
        if not last or network.get_submodule(*last).out_features != num_classes:
            raise InputError(f"--arch {arch}: its last layer is not linear; expected a network that ends in a Linear")
        # A new one, as timm's get too: a ViT's own begins at 0, and a projection of 0 has no direction.
        fc, (parent, _, name) = (
            nn.Linear(network.get_submodule(*last).in_features, num_classes),
            last[0].rpartition("."),
        )
        setattr(network.get_submodule(parent), name, nn.Identity())
        return Backbone(network, fc, tuple(last))

    return build


def timm_names() -> list[str]:
    """All of timm's networks, by the names they have here.

    Raises:
        InputError: it is not installed.
    """
    if importlib.util.find_spec("timm") is None:
        raise InputError("--arch timm:...: needs timm, which is not installed; pip install -r requirements-extra.txt")
    import timm

    return [TIMM + name for name in timm.list_models()]


def from_timm(arch: str, image_size: int) -> Callable[..., nn.Module]:
    """As `from_torchvision`, of timm's name behind the colon; timm says what its classifiers are."""
    import timm

    name = arch.removeprefix(TIMM)
    fixed = timm.get_pretrained_cfg(name, allow_unregistered=True)
    sized = {"img_size": image_size} if fixed and fixed.fixed_input_size else {}

    def build(num_classes: int = 1000) -> nn.Module:
        network = timm.create_model(name, pretrained=False, num_classes=num_classes, **sized)
        if ends_in_fc(network):
            return network
        called = network.pretrained_cfg["classifier"]
        network.reset_classifier(0)
        width = getattr(network, "head_hidden_size", network.num_features)
        return Backbone(network, nn.Linear(width, num_classes), (called,) if isinstance(called, str) else tuple(called))

    return build
