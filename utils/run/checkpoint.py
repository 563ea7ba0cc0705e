"""Checkpoints: written whole or not at all, read without running code, matched key by key.

On disk a model's keys carry DistributedDataParallel's `module.` prefix, as the
release's and MoCo's do; in memory they do not.
"""

import io
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from utils.errors import InputError, brief
from utils.files import draft_pattern, write_whole
from utils.optimizers import FACTOR, SCALARS
from utils.untrusted import code_in, is_number, overgrown, swollen

PREFIX = "module."
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
LAST, PREVIOUS = "last.pth.tar", "previous.pth.tar"
DRAFTS = draft_pattern("*")


def save_last(run_dir: Path, state: dict, also: tuple[str, ...] = ()) -> None:
    """Write `state` (plain dicts, numbers, strings, tensors), each file whole or not at all.

    First copies under the names in `also`, then last.pth.tar; the one before is kept as
    previous.pth.tar. In this order: a run killed in between does the epoch again, and writes the copies again.
    """
    data = _encoded(state)
    for name in also:
        write_whole(run_dir / name, lambda file: file.write(data))
    write_whole(run_dir / LAST, lambda file: file.write(data), keep_old=run_dir / PREVIOUS)


def save_network(path: Path, model: nn.Module, **entries) -> None:
    """Write a network alone; entries: besides its weights."""
    data = _encoded({"state_dict": packed(model), **entries})
    write_whole(path, lambda file: file.write(data))


def _encoded(state: dict) -> memoryview:
    # In memory first: torch's writer aborts the process when a file refuses a write, as on a full disk.
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getbuffer()


def read(path: str | Path) -> dict:
    """Read a file of torch.save on the CPU; it may hold data only, never code.

    Raises:
        InputError: no such file, not a table of tensors and plain data, one that would run code, or that claims to hold
            more than it has.
    """
    try:
        if wrong := swollen(path):
            raise InputError(f"checkpoint {path}: {wrong}; it is damaged: take another")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of old pickles; if they fail, the error says so
            state = torch.load(path, map_location="cpu", weights_only=True)
        if wrong := overgrown(state, Path(path).stat().st_size):
            raise InputError(f"checkpoint {path}: {wrong}; it is damaged: take another")
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"checkpoint {path}: cannot be read ({error.strerror or error})") from None
    except Exception:  # an unpickler meets anything in a file that is none of ours
        code = code_in(path)
        why = "it is damaged, cut short, or no file of torch.save"
        if code:
            why = f"it holds {brief(code)}, which could run code and was not loaded; a state_dict() alone can be read"
        raise InputError(f"checkpoint {path}: not a checkpoint of tensors and plain data: {why}") from None
    if not isinstance(state, dict):
        raise InputError(f"checkpoint {path}: holds a {type(state).__name__}, expected a table of tensors")
    return state


def load(path: str | Path, needs: tuple[str, ...] = ("state_dict",)) -> dict:
    """Read a checkpoint of one of the stages.

    Raises:
        InputError: as `read`; an entry it `needs` is not there.
    """
    state = read(path)
    for entry in needs:
        if entry not in state:
            raise InputError(f"checkpoint {path}: has no '{entry}', expected a file that one of the stages wrote")
    check_tensors(state["state_dict"], path)
    return state


def check_tensors(weights, path: str | Path) -> None:
    """Raises InputError unless `weights` is a table of tensors by name."""
    if not isinstance(weights, dict) or not all(isinstance(k, str) and torch.is_tensor(weights[k]) for k in weights):
        raise InputError(f"checkpoint {path}: its state_dict is no table of tensors")


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict, source: str | Path) -> None:
    """Load an optimiser's state dict; by which kernels it computes, and in which memory format, stays its own.

    Raises:
        InputError: it was made for other parameters, or holds numbers that are not finite.
    """
    try:
        _check_optimizer(optimizer, state)
        own = [{name: group[name] for name in (FACTOR,) if name in group} for group in optimizer.param_groups]
        optimizer.load_state_dict(state)
        for group, factor in zip(optimizer.param_groups, own, strict=True):
            group |= factor | {
                name: optimizer.defaults[name] for name in ("foreach", "fused") if name in optimizer.defaults
            }
        for parameter, entries in optimizer.state.items():
            for name, value in entries.items():
                if torch.is_tensor(value) and value.shape != (() if name in SCALARS else parameter.shape):
                    raise ValueError(f"{name} has shape {tuple(value.shape)}, expected {tuple(parameter.shape)}")
                if torch.is_tensor(value) and value.shape == parameter.shape:
                    entries[name] = torch.empty_like(parameter).copy_(value)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"checkpoint {source}: its optimiser does not fit the model ({error})") from None


def _check_optimizer(optimizer: torch.optim.Optimizer, state: dict) -> None:
    """Raises ValueError: what it holds of each weight, or its settings, are none that an optimiser of this kind has."""
    if not isinstance(state, dict) or not {"state", "param_groups"} <= state.keys():
        raise ValueError("expected its state and its param_groups")
    if not isinstance(state["state"], dict) or not all(isinstance(held, dict) for held in state["state"].values()):
        raise ValueError(f"its state is {brief(state['state'])}, expected a table of tables")
    if not isinstance(state["param_groups"], list) or not all(isinstance(g, dict) for g in state["param_groups"]):
        raise ValueError(f"its param_groups are {brief(state['param_groups'])}, expected tables")
    for name, value in (item for entries in state["state"].values() for item in entries.items()):
        if torch.is_tensor(value):
            if wrong := what_is_wrong(value, torch.zeros(())):
                raise ValueError(f"{name} {wrong}")
        elif not (value is None or is_number(value)):
            raise ValueError(f"{name} is {brief(value)}, expected numbers")
    if len({frozenset(entries) for entries in state["state"].values()}) > 1:
        raise ValueError("it does not hold the same of all weights")
    for own, group in zip(optimizer.param_groups, state["param_groups"], strict=False):
        for name in (own.keys() & group.keys()) - {"params"}:
            if not _alike(group[name], own[name]):
                raise ValueError(f"{name} is {brief(group[name])}, expected a value as {brief(own[name])}")


def _alike(value: object, own: object) -> bool:
    """Whether a setting is of the kind of the optimiser's own: a number, several of them, or a flag."""
    if isinstance(own, tuple):
        return isinstance(value, tuple | list) and len(value) == len(own) and all(map(is_number, value))
    return value is None or isinstance(value, bool) if own is None or isinstance(own, bool) else is_number(value)


def packed(model: nn.Module) -> dict[str, Tensor]:
    """The state dict as it is stored, with the prefix."""
    model = getattr(model, "module", model)
    return {PREFIX + key: value for key, value in model.state_dict().items()}


def unpacked(state: dict) -> dict[str, Tensor]:
    """The state dict of a checkpoint without the prefix, whether it has one or not."""
    return {key.removeprefix(PREFIX): value for key, value in state["state_dict"].items()}


def load_into(
    model: nn.Module, weights: dict[str, Tensor], source: str | Path, missing: set[str] = frozenset()
) -> None:
    """Load weights whose keys and shapes match, but for exactly the `missing` ones.

    Raises:
        InputError: names the first keys that differ, on both sides; or the tensor whose numbers are no weights:
            not finite, of another kind than the model's, or a running variance below 0.
    """
    for name, own in model.state_dict().items():
        if name in weights and (wrong := what_is_wrong(weights[name], own)):
            raise InputError(f"checkpoint {source}: {name} {wrong}; it is damaged: take another")
        if name in weights and name.endswith("running_var") and (weights[name] < 0).any():
            raise InputError(f"checkpoint {source}: {name} has a variance below 0; it is damaged: take another")
    try:
        result = model.load_state_dict(weights, strict=False)
    except RuntimeError as error:  # sizes differ; the first line says only that
        details = "; ".join(line.strip().rstrip(".") for line in str(error).splitlines()[1:4])
        raise InputError(f"checkpoint {source}: does not fit the model: {details}") from None
    lacking, extra = set(result.missing_keys) - missing, result.unexpected_keys
    if lacking or extra or not missing <= set(result.missing_keys):
        raise InputError(
            f"checkpoint {source}: does not fit the model: it lacks {some(lacking)} and has {some(extra)} "
            "besides; check -a, --mlp and --targeted"
        )


def what_is_wrong(value: Tensor, own: Tensor) -> str | None:
    """Why a stored tensor's numbers cannot be `own`, a tensor of the model; None if they can."""
    if value.layout != torch.strided or value.is_meta:
        return f"is {'empty' if value.is_meta else value.layout}, expected a dense tensor"
    if not own.is_floating_point():
        return None if value.dtype in INTEGERS else f"is {value.dtype}, expected whole numbers"
    if not value.is_floating_point():
        return f"is {value.dtype}, expected real floating point numbers"
    return None if value.to(own.dtype).isfinite().all() else "has a value that is not finite"


def some(keys) -> str:
    """The first three, and how many more."""
    keys = sorted(keys)
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return (", ".join(keys[:3]) + more) or "nothing"
