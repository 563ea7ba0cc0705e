"""Load encoder weights from checkpoints of this project, of the TSC authors' code, and of other tools.

"The authors' code" is the code released by the TSC authors. docs/starts.md lists the other tools.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from moco.encoders import PROJECT_NETWORKS, constructor, on_meta_device
from moco.encoders.frozen import check_frozen_weights
from moco.encoders.library import TIMM, download_weights, to_encoder_names
from moco.encoders.small import NEW_STEM, SMALL
from moco.encoders.state_dicts import (
    FoundEncoder,
    encoder_tensors,
    entries_with_tensors,
    entry_rank,
    find_encoders,
    same_weights,
)
from utils import distributed
from utils.errors import InputError, short_repr
from utils.files import file_problem
from utils.run import checkpoint

QUERY_PREFIX = "encoder_q."
CLASSIFIER_PREFIX = "classifier."  # of a classifier that stage 1 trains together with the encoder
SAFETENSORS = ".safetensors"
LIBRARIES = ("torchvision", "timm")
# Networks that are tried if a file does not fit, to name one that does.
RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d", "wide_resnet50_2")
VITS = tuple(f"{TIMM}vit_{size}_patch16_224" for size in ("tiny", "small", "base", "large"))


def checkpoint_file(path: str | Path) -> Path:
    """Return the last checkpoint of a run folder, or the path itself if it is not a folder."""
    return Path(path) / checkpoint.LAST if Path(path).is_dir() else Path(path)


def check_init_from(value: str, arch: str) -> None:
    """Raise InputError if --init-from is not a file, a run folder or the library of the architecture."""
    library = "timm" if arch.startswith(TIMM) else "torchvision"
    if value in LIBRARIES and value != library:
        raise InputError(f"--init-from {value}: --arch {arch} is a network of {library}; use {library} or a file")
    if value not in LIBRARIES and (problem := file_problem(path := checkpoint_file(value))):
        raise InputError(f"--init-from {path}: {problem}; expected a file of encoder weights, or {library}")


def read_state(path: Path) -> dict:
    """Load the entries of a checkpoint, or of a .safetensors file, on the CPU.

    Raises:
        InputError: As `checkpoint.read_file`, or if `arch` is not a name.
    """
    state = _read_safetensors(path) if path.suffix == SAFETENSORS else checkpoint.read_file(path)
    if not isinstance(arch := state.get("arch"), str | None):
        raise InputError(f"checkpoint {path}: arch is {short_repr(arch)}, expected the name of a network")
    return state


def _read_safetensors(path: Path) -> dict:
    try:
        with safe_open(path, framework="pt") as file:
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, not a dict
            return {**(file.metadata() or {}), "state_dict": weights}
    except OSError as error:
        raise InputError(f"checkpoint {path}: cannot be read ({error.strerror or error})") from None
    except SafetensorError as error:
        raise InputError(f"checkpoint {path}: not a safetensors file ({error})") from None


def largest_state_dict(state: dict, path: str | Path) -> dict[str, Tensor]:
    """Return the state dict with the most tensors, keys without `module.`. Of equally large ones, prefer the teacher.

    Raise InputError if the entries of the checkpoint, `state`, contain no tensors by name. path: for messages.
    """
    entries = [*entries_with_tensors(state)]
    if not entries:
        raise InputError(f"checkpoint {path}: has no state_dict, expected a dict of tensors by name")
    return checkpoint.strip_prefix(min(entries, key=lambda entry: (-len(entry[1]), entry_rank(entry[0])))[1])


def read_classifier(path: str | Path, num_classes: int) -> tuple[Tensor, Tensor, float | None]:
    """Load the classifier that a network was trained with: weight (C, d), bias (C,), and the scale of a cosine one.

    Its keys begin with `fc.` (trained with cross-entropy) or `classifier.` (stage 1: linear --joint, BCL, PaCo).

    Raises:
        InputError: As `read_state` and `largest_state_dict`, or if the file has only a projection head, or the
            classifier has another number of classes or is of another kind.
    """
    weights = largest_state_dict(read_state(Path(path)), path)
    prefix = CLASSIFIER_PREFIX if is_stage1(weights) else "fc."
    fc = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
    scale = fc.pop("scale", None) if fc.keys() == {"weight", "scale"} else None
    if scale is not None:
        fc["bias"] = torch.zeros(len(fc["weight"]))
    shapes = [tuple(value.shape) for value in fc.values()]
    if fc.keys() != {"weight", "bias"} or fc["weight"].ndim != 2 or {shape[:1] for shape in shapes} != {(num_classes,)}:
        found = (
            "a projection head"
            if is_stage1(weights) and not fc
            else f"{prefix.rstrip('.')} with {sorted(fc)}, shapes {shapes}"
        )
        raise InputError(f"checkpoint {path}: has {found}, expected a linear classifier of {num_classes} classes")
    for name, value in (fc if scale is None else fc | {"scale": scale}).items():
        if wrong := checkpoint.tensor_problem(value, torch.zeros(())):
            raise InputError(f"checkpoint {path}: {prefix}{name} {wrong}; the file is damaged, use another checkpoint")
    return fc["weight"].float(), fc["bias"].float(), None if scale is None else float(scale)


def is_stage1(weights: dict[str, Tensor]) -> bool:
    """Return whether weights are those of stage 1 or of MoCo, which have a query encoder instead of a classifier."""
    return any(key.startswith(QUERY_PREFIX) for key in weights)


def check_stage2(weights: dict[str, Tensor], path: str | Path) -> None:
    """Raise InputError if the weights of a checkpoint are those of stage 1."""
    if is_stage1(weights):
        raise InputError(
            f"checkpoint {path}: a stage-1 checkpoint, which has no classifier to evaluate; train one with "
            f"--pretrained {path}, or evaluate a checkpoint of stage 2"
        )


def init_encoders(encoders: list[nn.Module], path: str | Path, arch: str, frozen: Sequence[str] = ()) -> str:
    """Load the weights of a file into encoders, except their heads. Return a summary of what was loaded.

    A network with a small stem keeps its random stem if the file has another one.

    Args:
        path: a file, a run folder, or a name in LIBRARIES to use the weights published by that library.
        frozen: names of modules that will be frozen, so none of their weights may stay random.

    Raises:
        InputError: As `find_encoder` and `check_frozen_weights`, or if a value is not finite.
    """
    if path in LIBRARIES:
        with distributed.main_process_first():  # the main process downloads the file
            state = download_weights(arch)
    else:
        state = read_state(path := checkpoint_file(path))
    new = {NEW_STEM} if arch.endswith(SMALL) else set()
    found = find_encoder(encoders[0], state, f"--init-from {path}", arch, new)
    weights = to_encoder_names(encoders[0], found.weights)
    check_frozen_weights(encoders[0], frozen, set(weights), f"--init-from {path}")
    for encoder in encoders:
        others = {key: value for key, value in encoder.state_dict().items() if key not in weights}
        checkpoint.load_weights(encoder, others | weights, path)
    return f"{path}: {found.summary()}"


def load_encoder(model: nn.Module, path: str | Path, arch: str, state: dict | None = None) -> FoundEncoder:
    """Load the encoder from a file, except its head, into a network with a new `fc`. Return what was loaded.

    state: the entries of the file, if it has been read.
    Raises:
        InputError: As `read_state`, `find_encoder` and `checkpoint.load_weights`.
    """
    found = find_encoder(model, state or read_state(Path(path)), f"checkpoint {path}", arch)
    fc = {key: value for key, value in model.state_dict().items() if key.startswith("fc.")}
    checkpoint.load_weights(model, to_encoder_names(model, found.weights) | fc, path)
    return found


def find_encoder(network: nn.Module, state: dict, source: str, arch: str, new: set[str] = frozenset()) -> FoundEncoder:
    """Find all weights of a network in the entries of a checkpoint.

    Args:
        source: Beginning of messages: the flag or the file.
        arch: Name of the network (--arch).
        new: Tensors that may stay random.

    Raises:
        InputError: If the weights are incomplete, several encoders fit, or the file names another network that it fits.
    """
    places = find_encoders(network, state)
    fitting = [place for place in places if place.fits(new)]
    if not fitting:
        raise InputError(f"{source}: {_misfit(network, state, places, arch)}{_advice(state, arch)}")
    best = fitting[0]
    others = [place for place in fitting[1:] if not same_weights(place, best)]
    rivals = [place for place in others if entry_rank(place.entry) == entry_rank(best.entry)]
    if rivals:
        places = "; ".join(place.place for place in (best, *rivals))
        raise InputError(f"{source}: several encoders fit --arch {arch}: {places}. Save one of them as a state dict")
    stored = state.get("arch")
    if stored == "vit_small" and "base_encoder." in best.prefix:
        raise InputError(f"{source}: vit_small of MoCo v3 has 12 attention heads, --arch {arch} has 6")
    if other := next((name for name in _stored_networks(stored, arch) if _fits(name, state)), None):
        raise InputError(f"{source}: trained with --arch {other}, but this run uses --arch {arch}")
    notes = [f"also fits, not used: {', '.join(place.entry for place in others)}"] if others else []
    notes += [f"the file calls the network {stored}"] if _stored_networks(stored, arch) else []
    return best._replace(note="; ".join(notes))


def _bare(arch: str) -> str:
    """Return the name of an architecture without its library, its stem and the tag of its weights."""
    return arch.removeprefix(TIMM).removesuffix(SMALL).split(".")[0]


def _stored_networks(stored: str | None, arch: str) -> list[str]:
    """Return the names of the networks that a name in a file can mean, if it is not that of this architecture."""
    if stored is None or _bare(stored) == _bare(arch):
        return []
    return [stored, TIMM + stored] if arch.startswith(TIMM) and not stored.startswith(TIMM) else [stored]


def _misfit(network: nn.Module, state: dict, places: list[FoundEncoder], arch: str) -> str:
    """Describe why no place in a checkpoint fits the network."""
    own = encoder_tensors(network)
    if not places or not any(value.is_floating_point() for value in places[0].weights.values()):
        found = checkpoint.first_keys({key for _, tensors in entries_with_tensors(state) for key in tensors})
        return f"no tensor fits --arch {arch}; found {found}, expected {checkpoint.first_keys(own)}"
    best = places[0]
    shapes = [f"{name} {theirs}, expected {ours}" for name, (theirs, ours) in sorted(best.other_shapes.items())]
    problems = {
        "missing": checkpoint.first_keys(best.missing) if best.missing else "",
        "other shapes": "; ".join(shapes[:3]) + (f"; {len(shapes) - 3} more" if len(shapes) > 3 else ""),
        "layers that the network lacks": checkpoint.first_keys(best.unknown) if best.unknown else "",
    }
    text = "; ".join(f"{problem}: {names}" for problem, names in problems.items() if names)
    return f"{len(best.weights)} of {len(own)} encoder tensors fit --arch {arch} ({best.place}); {text}"


def _advice(state: dict, arch: str) -> str:
    """Name an architecture that a checkpoint fits, if one of the usual ones does, and the one that the file names."""
    stored = state.get("arch")
    keys = {key for _, tensors in entries_with_tensors(state) for key in tensors}
    vits = VITS if any("blocks.0.attn.qkv." in key for key in keys) else ()
    resnets = (*RESNETS, *PROJECT_NETWORKS) if any("conv1.weight" in key or "4.0." in key for key in keys) else ()
    others = () if stored is not None and _bare(stored) == _bare(arch) else (*resnets, *vits)
    named = dict.fromkeys([*_stored_networks(stored, arch), arch, *others])
    fitting = next((name for name in named if _fits(name, state)), None)
    if fitting:
        return "; the file fits " + ("with --image-size 224" if fitting == arch else f"-a {fitting}")
    return f"; the file calls the network {stored}" if _stored_networks(stored, arch) else ""


def _fits(arch: str, state: dict) -> bool:
    """Return whether a checkpoint contains all weights of an architecture, with images of 224 px."""
    try:
        network = on_meta_device(constructor(arch, 224))
    except InputError:
        return False
    return any(place.fits() for place in find_encoders(network, state))
