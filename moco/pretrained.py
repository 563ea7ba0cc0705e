"""Load encoder weights from checkpoints of this project, of the TSC authors' code, MoCo, DINO or torchvision.

"The authors' code" is the code released by the TSC authors.
"""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from moco.encoders.library import TIMM, download_weights, to_encoder_names
from utils import distributed
from utils.errors import InputError, short_repr
from utils.run import checkpoint

QUERY_PREFIX, MOCO_V3_PREFIX, BACKBONE_PREFIX = "encoder_q.", "base_encoder.", "backbone."
SAFETENSORS = ".safetensors"
LIBRARIES = ("torchvision", "timm")


def read_encoder(path: str | Path) -> tuple[dict[str, Tensor], str | None]:
    """Load the encoder from a file, without its head, and the architecture name stored in the file (or None).

    Supported files:

    - stage-1 checkpoints of this project, of the authors' code, and of MoCo v1 and v2: the query
      encoder `encoder_q.*`, with or without the prefix `module.`; MoCo v3: `base_encoder.*`;
    - DINO: `backbone.*` of the teacher;
    - a plain state dict (from torchvision or `moco.export`), at the top level, under `state_dict`,
      or as .safetensors. Stage-2 checkpoints have this form.

    The keys are those of the library, without the prefix `backbone.` of a `Backbone` or of DINO. The head `fc.*` is
    dropped: it is a projection, or a classifier for another data set.

    Raises:
        InputError: As `checkpoint.read_file`, or if the file contains no encoder.
    """
    weights, arch = read_weights(Path(path))
    for prefix in (QUERY_PREFIX, MOCO_V3_PREFIX):
        if any(key.startswith(prefix) for key in weights):
            weights = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
    weights = {key.removeprefix(BACKBONE_PREFIX): value for key, value in weights.items() if not key.startswith("fc.")}
    if not weights:
        raise InputError(f"checkpoint {path}: contains no encoder, expected encoder_q.* or a plain state dict")
    return weights, arch


def check_init_from(value: str, arch: str) -> None:
    """Raise InputError if --init-from is neither a file nor the library of the architecture."""
    library = "timm" if arch.startswith(TIMM) else "torchvision"
    if value in LIBRARIES and value != library:
        raise InputError(f"--init-from {value}: --arch {arch} is a network of {library}; use {library} or a file")
    if value not in LIBRARIES and not Path(value).is_file():
        raise InputError(f"--init-from {value}: no such file; expected a file of encoder weights, or {library}")


def read_classifier(path: str | Path, num_classes: int) -> tuple[Tensor, Tensor]:
    """Load the weight (C, d) and bias (C,) of the classifier that a network was trained with.

    Raises:
        InputError: As `checkpoint.read_file`, or if `fc` is a projection head, has another number of classes, or is not
            linear.
    """
    weights, _ = read_weights(Path(path))
    fc = {key.removeprefix("fc."): value for key, value in weights.items() if key.startswith("fc.")}
    shapes = [tuple(value.shape) for value in fc.values()]
    if fc.keys() != {"weight", "bias"} or fc["weight"].ndim != 2 or {shape[:1] for shape in shapes} != {(num_classes,)}:
        found = (
            "a projection head"
            if any(key.startswith(QUERY_PREFIX) for key in weights)
            else f"fc with {sorted(fc)}, shapes {shapes}"
        )
        raise InputError(f"checkpoint {path}: has {found}, expected a linear classifier of {num_classes} classes")
    for name, value in fc.items():
        if wrong := checkpoint.tensor_problem(value, torch.zeros(())):
            raise InputError(f"checkpoint {path}: fc.{name} {wrong}; the file is damaged, use another checkpoint")
    return fc["weight"].float(), fc["bias"].float()


def read_weights(path: Path) -> tuple[dict[str, Tensor], str | None]:
    """Load all tensors of a file by key, without the prefix `module.`, and the architecture name in it (or None)."""
    state = _read_safetensors(path) if path.suffix == SAFETENSORS else checkpoint.read_file(path)
    if "state_dict" not in state:
        state = {"state_dict": state.get("teacher", state)}
    checkpoint.check_tensors(state["state_dict"], path)
    if not isinstance(arch := state.get("arch"), str | None):
        raise InputError(f"checkpoint {path}: arch is {short_repr(arch)}, expected the name of a network")
    return checkpoint.strip_prefix(state["state_dict"]), arch


def _read_safetensors(path: Path) -> dict:
    try:
        with safe_open(path, framework="pt") as file:
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, not a dict
            return {"state_dict": weights, **(file.metadata() or {})}
    except OSError as error:
        raise InputError(f"checkpoint {path}: cannot be read ({error.strerror or error})") from None
    except SafetensorError as error:
        raise InputError(f"checkpoint {path}: not a safetensors file ({error})") from None


def init_encoders(encoders: list[nn.Module], path: str | Path, arch: str) -> str:
    """Load the weights of a file into encoders, except their heads. Return a summary of loaded and missing tensors.

    path: a file, or a name in LIBRARIES to use the weights published by that library. Only tensors with equal key
    and shape are loaded.

    Raises:
        InputError: As `read_encoder`, or if the architecture differs, no tensor fits, or a value is not finite.
    """
    if path in LIBRARIES:
        with distributed.main_process_first():  # the main process downloads the file
            weights, stored_arch = download_weights(arch), None
    else:
        weights, stored_arch = read_encoder(path)
    if stored_arch not in (None, arch):
        raise InputError(f"--init-from {path}: trained with --arch {stored_arch}, but this run uses --arch {arch}")
    weights = to_encoder_names(encoders[0], weights)
    model_weights = {key: value for key, value in encoders[0].state_dict().items() if not key.startswith("fc.")}
    matching = {
        key: value for key, value in weights.items() if key in model_weights and value.shape == model_weights[key].shape
    }
    if not any(value.is_floating_point() for value in matching.values()):
        raise InputError(
            f"--init-from {path}: no tensor fits --arch {arch}; the file has {checkpoint.first_keys(weights)}, "
            f"expected {checkpoint.first_keys(model_weights)}"
        )
    for encoder in encoders:
        unmatched = {key: value for key, value in encoder.state_dict().items() if key not in matching}
        checkpoint.load_weights(encoder, unmatched | matching, path)
    unused = checkpoint.first_keys(weights.keys() - matching.keys())
    missing = checkpoint.first_keys(model_weights.keys() - matching.keys())
    counts = f"loaded {len(matching)} of {len(model_weights)} encoder tensors"
    return f"{path}: {counts}; not used: {unused}; still random: {missing}"


def load_encoder(model: nn.Module, path: str | Path, arch: str) -> None:
    """Load the encoder from a file, except its head, into a network with a new `fc`.

    Raises:
        InputError: As `read_encoder` and `checkpoint.load_weights`, or if the architecture differs.
    """
    weights, stored_arch = read_encoder(path)
    if stored_arch not in (None, arch):
        raise InputError(f"checkpoint {path}: trained with --arch {stored_arch}, but this run uses --arch {arch}")
    checkpoint.load_weights(model, to_encoder_names(model, weights), path, missing={"fc.weight", "fc.bias"})
