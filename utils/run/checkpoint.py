"""Checkpoints: written atomically, read without running code, matched key by key.

On disk, the keys of a model have DistributedDataParallel's prefix `module.`, as in MoCo and in the authors' code (the
code released by the TSC authors). In memory they have no prefix.

`read_file` reads any file of torch.save, and `read_checkpoint` a file of stage 1 or stage 2. `load_weights` and
`load_optimizer` then check the entries and load them into a model and an optimiser.
"""

import io
import re
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from utils.errors import InputError, short_repr
from utils.files import check_regular, draft_pattern, write_atomically
from utils.optimizers import SCALAR_STATE
from utils.safe_load import Ignored, archive_problem, is_number, placeholders_allowed, size_problem

PREFIX = "module."
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
LAST, PREVIOUS = "last.pth.tar", "previous.pth.tar"
DRAFTS = draft_pattern("*")


def save_last(run_dir: Path, state: dict, also: tuple[str, ...] = ()) -> None:
    """Write `state` (plain dicts, numbers, strings, tensors); each file is written atomically.

    Copies under the names in `also` come first, then last.pth.tar; the old last.pth.tar becomes previous.pth.tar.
    A run that is killed in between therefore repeats the epoch and writes the copies again.
    """
    data = _encoded(state)
    for name in also:
        write_atomically(run_dir / name, lambda file: file.write(data))
    write_atomically(run_dir / LAST, lambda file: file.write(data), backup_path=run_dir / PREVIOUS)


def save_network(path: Path, model: nn.Module, **entries) -> None:
    """Write the weights of a network and additional `entries`."""
    data = _encoded({"state_dict": add_prefix(model.state_dict()), **entries})
    write_atomically(path, lambda file: file.write(data))


def _encoded(state: dict) -> memoryview:
    # Encode in memory first: torch's writer aborts the process if a write fails, for example on a full disk.
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getbuffer()


def read_file(path: str | Path) -> dict:
    """Load a file of torch.save on the CPU, without running any code in it.

    Raises:
        InputError: the file does not exist, is not a dict of tensors and plain data, could run code, or claims to
            contain more bytes than it has.
    """
    check_regular(Path(path))
    try:
        if problem := archive_problem(path):
            raise InputError(f"checkpoint {path}: {problem}; it is damaged, use another")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # warnings about old pickles
            with placeholders_allowed():
                state = torch.load(path, map_location="cpu", weights_only=True)
        if problem := size_problem(state, Path(path).stat().st_size):
            raise InputError(f"checkpoint {path}: {problem}; it is damaged, use another")
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"checkpoint {path}: cannot be read ({error.strerror or error})") from None
    except Exception as error:  # unpickling a foreign file can raise any exception
        why = "it is damaged, truncated, or not written by torch.save"
        if code := re.search(r"GLOBAL (\S+)", str(error)):  # in torch's message: the name that it refused to import
            why = f"it contains {short_repr(code[1])}, which could run code and was not loaded; save a state_dict()"
        raise InputError(f"checkpoint {path}: not a checkpoint of tensors and plain data: {why}") from None
    if not isinstance(state, dict):
        raise InputError(f"checkpoint {path}: contains a {type(state).__name__}, expected a dict of tensors")
    return {name: value for name, value in state.items() if not isinstance(value, Ignored)}


def read_checkpoint(path: str | Path, needs: tuple[str, ...] = ("state_dict",)) -> dict:
    """Load a checkpoint that stage 1 or stage 2 wrote, on the CPU.

    Raises:
        InputError: see `read_file`; or an entry of `needs` is missing.
    """
    state = read_file(path)
    for entry in needs:
        if entry not in state:
            raise InputError(f"checkpoint {path}: has no '{entry}', expected a file written by stage 1 or stage 2")
    check_tensors(state["state_dict"], path)
    return state


def check_tensors(weights, path: str | Path) -> None:
    """Raise InputError unless `weights` is a dict of tensors by name."""
    if not isinstance(weights, dict) or not all(isinstance(k, str) and torch.is_tensor(weights[k]) for k in weights):
        raise InputError(f"checkpoint {path}: state_dict is not a dict of tensors")


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict, source: str | Path) -> None:
    """Load the stored learning rate and state of each weight into an optimiser, which keeps its other settings.

    Raises:
        InputError: the state belongs to other parameters, or contains numbers that are not finite.
    """
    settings = [{k: v for k, v in group.items() if k not in ("params", "lr")} for group in optimizer.param_groups]
    try:
        _check_optimizer_numbers(state)
        groups = [
            {"params": group["params"], "lr": group["lr"]} | own_settings
            for group, own_settings in zip(state["param_groups"], settings, strict=True)
        ]
        optimizer.load_state_dict({"state": state["state"], "param_groups": groups})
        for parameter, entries in optimizer.state.items():
            for name, value in entries.items():
                if torch.is_tensor(value) and value.shape != (() if name in SCALAR_STATE else parameter.shape):
                    raise ValueError(f"{name} has shape {tuple(value.shape)}, expected {tuple(parameter.shape)}")
                if name in SCALAR_STATE and value < 0:
                    raise ValueError(f"{name} is {float(value):g}, expected 0 or more")
                if torch.is_tensor(value) and value.shape == parameter.shape:
                    entries[name] = torch.empty_like(parameter).copy_(value)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise InputError(f"checkpoint {source}: the optimiser's state does not fit the model ({error})") from None


def _check_optimizer_numbers(state: dict) -> None:
    """Raise ValueError unless each weight has the same entries, of finite numbers, and each group a learning rate.

    A state of another structure raises one of the exceptions that `load_optimizer` catches.
    """
    if not isinstance(state["state"], dict):
        raise ValueError(f"state is {short_repr(state['state'])}, expected a dict")
    for name, value in (item for entries in state["state"].values() for item in entries.items()):
        if torch.is_tensor(value):
            if problem := tensor_problem(value, torch.zeros(())):
                raise ValueError(f"{name} {problem}")
        elif not (is_number(value) if name in SCALAR_STATE else value is None and name == "momentum_buffer"):
            raise ValueError(f"{name} is {short_repr(value)}, expected numbers")
    if len({frozenset((name, v is None) for name, v in entries.items()) for entries in state["state"].values()}) > 1:
        raise ValueError("its entries are not the same for all weights")
    for group in state["param_groups"]:
        if not isinstance(group, dict):  # a tensor would warn about its index
            raise ValueError(f"a parameter group is {short_repr(group)}, expected a dict")
        if not is_number(group["lr"]):
            raise ValueError(f"lr is {short_repr(group['lr'])}, expected a number")


def add_prefix(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a model's state dict with DistributedDataParallel's prefix, as it is stored."""
    return {PREFIX + key: value for key, value in state_dict.items()}


def strip_prefix(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a stored state dict without DistributedDataParallel's prefix, if it has one."""
    return {key.removeprefix(PREFIX): value for key, value in state_dict.items()}


def load_weights(
    model: nn.Module, weights: dict[str, Tensor], source: str | Path, missing: set[str] = frozenset()
) -> None:
    """Load weights into a model; keys and shapes must match, except that exactly the keys in `missing` are absent.

    Raises:
        InputError: keys or shapes differ, or a tensor is not finite, has another kind of dtype than the model's, or is
            a negative running variance. The message names the first keys.
    """
    for name, own in model.state_dict().items():
        if name in weights and (problem := tensor_problem(weights[name], own)):
            raise InputError(f"checkpoint {source}: {name} {problem}; it is damaged, use another")
        if name in weights and name.endswith("running_var") and (weights[name] < 0).any():
            raise InputError(f"checkpoint {source}: {name} has a variance below 0; it is damaged, use another")
    try:
        result = model.load_state_dict(weights, strict=False)
    except RuntimeError as error:  # shapes differ; the details follow the first line
        details = "; ".join(line.strip().rstrip(".") for line in str(error).splitlines()[1:4])
        raise InputError(f"checkpoint {source}: does not fit the model: {details}") from None
    lacking, extra = set(result.missing_keys) - missing, result.unexpected_keys
    if lacking or extra or not missing <= set(result.missing_keys):
        raise InputError(
            f"checkpoint {source}: does not fit the model: missing keys: {first_keys(lacking)}; unexpected keys: "
            f"{first_keys(extra)}{_flag_advice({*lacking, *extra})}"
        )


def _flag_advice(keys: set[str]) -> str:
    """Return which flags of stage 1 can be the reason why a checkpoint lacks keys or has others."""
    if any(key.endswith("queue_ptr") for key in keys):
        return "; check --contrast"
    reasons = {"--mlp": "encoder_q.fc.", "--targeted": "optimal_target", "--joint": "classifier."}
    flags = [flag for flag, part in reasons.items() if any(part in key for key in keys)]
    flags += (
        ["-a"] if any(not any(part in key for part in ("fc.", "optimal_target", "classifier.")) for key in keys) else []
    )
    return f"; check {', '.join(flags)}" if flags else ""


def tensor_problem(value: Tensor, own: Tensor) -> str | None:
    """Return why a stored tensor cannot be loaded into `own`, a tensor of the model, or None if it can be loaded."""
    if value.layout != torch.strided or value.is_meta:
        return f"is {'empty' if value.is_meta else value.layout}, expected a dense tensor"
    if not own.is_floating_point():
        return None if value.dtype in INTEGERS else f"is {value.dtype}, expected whole numbers"
    if not value.is_floating_point():
        return f"is {value.dtype}, expected real floating point numbers"
    return None if value.to(own.dtype).isfinite().all() else "has a value that is not finite"


def first_keys(keys) -> str:
    """Return the first three keys as text, and the number of further keys."""
    keys = sorted(keys)
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return (", ".join(keys[:3]) + more) or "none"
