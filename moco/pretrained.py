"""An encoder's weights out of the files the field exchanges: ours, the release's, MoCo's, torchvision's."""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from moco.encoders.library import TIMM, own_names, published
from utils import distributed
from utils.errors import InputError, brief
from utils.run import checkpoint

QUERY, MOCO_V3, BACKBONE = "encoder_q.", "base_encoder.", "backbone."
SAFETENSORS = ".safetensors"
LIBRARIES = ("torchvision", "timm")


def read_encoder(path: str | Path) -> tuple[dict[str, Tensor], str | None]:
    """The encoder in a file, without its head, and the file's own word for the architecture, if it says one:

    - a stage-1 checkpoint of this project, of the release, or of MoCo v1 and v2: the
      query encoder, `encoder_q.*`, with or without the `module.` prefix; of MoCo v3: `base_encoder.*`;
    - of DINO: the teacher's `backbone.*`;
    - a plain state dict (torchvision's, `moco.export`'s), bare, under `state_dict`,
      or as .safetensors; a stage-2 checkpoint is one too.

    Its keys are the library's: without the `backbone.` of a `Backbone`, and of DINO's files. The head, `fc.*`, is the
    projection, or another data set's classifier.

    Raises:
        InputError: as `checkpoint.read`; no encoder inside.
    """
    weights, arch = read_weights(Path(path))
    for prefix in (QUERY, MOCO_V3):
        if any(key.startswith(prefix) for key in weights):
            weights = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
    weights = {key.removeprefix(BACKBONE): value for key, value in weights.items() if not key.startswith("fc.")}
    if not weights:
        raise InputError(f"checkpoint {path}: has no encoder, expected encoder_q.* or a network's plain state dict")
    return weights, arch


def check_start(given: str, arch: str) -> None:
    """Raises InputError: --init-from names neither a file nor the library of the architecture."""
    own = "timm" if arch.startswith(TIMM) else "torchvision"
    if given in LIBRARIES and given != own:
        raise InputError(f"--init-from {given}: --arch {arch} is {own}'s; expected {own}, or a file")
    if given not in LIBRARIES and not Path(given).is_file():
        raise InputError(f"--init-from {given}: no such file, expected an encoder's weights, or {own}")


def read_classifier(path: str | Path, num_classes: int) -> tuple[Tensor, Tensor]:
    """Weight (C, d) and bias (C,) of the classifier that a file's network was trained with.

    Raises:
        InputError: as `checkpoint.read`; its `fc` is a projection head, of another number of classes, or not linear.
    """
    weights, _ = read_weights(Path(path))
    fc = {key.removeprefix("fc."): value for key, value in weights.items() if key.startswith("fc.")}
    shapes = [tuple(value.shape) for value in fc.values()]
    if fc.keys() != {"weight", "bias"} or fc["weight"].ndim != 2 or {shape[:1] for shape in shapes} != {(num_classes,)}:
        found = (
            "a projection head"
            if any(key.startswith(QUERY) for key in weights)
            else f"fc with {sorted(fc)}, shapes {shapes}"
        )
        raise InputError(f"checkpoint {path}: has {found}, expected a linear classifier of {num_classes} classes")
    for name, value in fc.items():
        if wrong := checkpoint.what_is_wrong(value, torch.zeros(())):
            raise InputError(f"checkpoint {path}: fc.{name} {wrong}; it is damaged: take another")
    return fc["weight"].float(), fc["bias"].float()


def read_weights(path: Path) -> tuple[dict[str, Tensor], str | None]:
    """All of a file's tensors by their keys, without `module.`, and its own word for the architecture."""
    state = _read_safetensors(path) if path.suffix == SAFETENSORS else checkpoint.read(path)
    if "state_dict" not in state:
        state = {"state_dict": state.get("teacher", state)}
    checkpoint.check_tensors(state["state_dict"], path)
    if not isinstance(arch := state.get("arch"), str | None):
        raise InputError(f"checkpoint {path}: arch is {brief(arch)}, expected the name of a network")
    return checkpoint.unpacked(state), arch


def _read_safetensors(path: Path) -> dict:
    try:
        with safe_open(path, framework="pt") as file:
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, it is no dict
            return {"state_dict": weights, **(file.metadata() or {})}
    except OSError as error:
        raise InputError(f"checkpoint {path}: cannot be read ({error.strerror or error})") from None
    except SafetensorError as error:
        raise InputError(f"checkpoint {path}: not a safetensors file ({error})") from None


def start_from(encoders: list[nn.Module], path: str | Path, arch: str) -> str:
    """Give encoders, all but their heads, the weights in a file, key by key; returns what was taken and what not.

    path: or one of LIBRARIES, for the weights that it publishes.

    Raises:
        InputError: as `read_encoder`; another architecture; nothing in it fits, or a number that is no weight.
    """
    if path in LIBRARIES:
        with distributed.main_process_first():  # which downloads
            weights, found = published(arch), None
    else:
        weights, found = read_encoder(path)
    if found not in (None, arch):
        raise InputError(f"--init-from {path}: trained with --arch {found}, found --arch {arch}")
    weights = own_names(encoders[0], weights)
    own = {key: value for key, value in encoders[0].state_dict().items() if not key.startswith("fc.")}
    taken = {key: value for key, value in weights.items() if key in own and value.shape == own[key].shape}
    if not any(value.is_floating_point() for value in taken.values()):
        raise InputError(
            f"--init-from {path}: nothing in it fits --arch {arch}: it has {checkpoint.some(weights)}, expected "
            f"{checkpoint.some(own)}"
        )
    for encoder in encoders:
        rest = {key: value for key, value in encoder.state_dict().items() if key not in taken}
        checkpoint.load_into(encoder, rest | taken, path)
    left, missing = checkpoint.some(weights.keys() - taken.keys()), checkpoint.some(own.keys() - taken.keys())
    return f"{path}: {len(taken)} of the encoder's {len(own)} tensors; left in it: {left}; random still: {missing}"


def load_encoder(model: nn.Module, path: str | Path, arch: str) -> None:
    """Load the encoder in a file, all but its head, into a network with a new `fc`.

    Raises:
        InputError: as `read_encoder` and `checkpoint.load_into`; another architecture.
    """
    weights, found = read_encoder(path)
    if found not in (None, arch):
        raise InputError(f"checkpoint {path}: trained with --arch {found}, found --arch {arch}")
    checkpoint.load_into(model, own_names(model, weights), path, missing={"fc.weight", "fc.bias"})
