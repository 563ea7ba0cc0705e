"""The logs of a run: log.jsonl, epochs.csv, TensorBoard and args.json."""

import platform
import shlex
import subprocess
import sys
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
import torchvision

from utils import distributed
from utils.cli import recipes
from utils.devices import processor_name
from utils.distributed import log
from utils.errors import InputError, short_repr
from utils.files import check_regular, format_csv, format_json, unused_name, write_text
from utils.measure.metrics import Means
from utils.measure.monitor import format_measures
from utils.measure.progress import Progress, format_means
from utils.run.loop import Epoch
from utils.run.state import RunState
from utils.safe_load import is_count, is_number, parse_json, read_json

ORIGIN = ("git", "machine", "processor", "versions")  # entries of args.json

# With the protobuf setting of utils/__init__.py, scalars and histograms work, but log_images does not. The import
# prints deprecation warnings about the library's own code (old protobuf calls, scipy.misc), which users cannot act on.
with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    import tensorboard_logger


class RunLog:
    """The log files of a run folder; only the main process writes.

    log.jsonl has one JSON object per epoch. epochs.csv has the same values as a table and is rewritten each epoch.

    Args:
        run_dir: the run folder, which is created if necessary.
        args: as plain values, such as `RunState.args`.
        splits: one TensorBoard folder is created for each of them.
        epochs_done: completed epochs in the checkpoint that the run resumes from. Records of later epochs, which are
            trained again, move to log.jsonl.bak-<n>. With --resume auto, a single record after `epochs_done` is dropped
            instead: its epoch was logged but not saved, and is trained and logged again.
        resumed: whether the run continues from a checkpoint. args.json then keeps the machines of its earlier starts.
    """

    def __init__(self, run_dir: Path, args: dict, splits: tuple[str, ...], epochs_done: int, resumed: bool = False):
        self.path = run_dir / "log.jsonl"
        self.boards = {}
        if distributed.is_main():
            records = read_log(self.path)  # first, so that a damaged log stops the run before anything is written
            run_dir.mkdir(parents=True, exist_ok=True)
            about = describe_run(args)
            about |= {"earlier": earlier} if resumed and (earlier := _earlier_starts(run_dir, about)) else {}
            write_text(run_dir / "args.json", format_json(about, indent=2) + "\n")
            self._drop_records_after(epochs_done, args, records)
            self.boards = {split: tensorboard_logger.Logger(str(run_dir / split)) for split in splits}

    def _drop_records_after(self, epochs_done: int, args: dict, records: list[dict]) -> None:
        later = [record for record in records if record["epoch"] > epochs_done]
        if [record["epoch"] for record in later] == [epochs_done + 1] and args.get("resume") == "auto":
            log(f"note: epoch {epochs_done + 1} was logged but not saved; it is trained and logged again")
        elif later:
            backup = unused_name(lambda n: self.path.with_name(f"{self.path.name}.bak-{n}"))
            write_text(backup, format_json_lines(later))
            log(f"note: {len(later)} lines of {self.path} belong to epochs after {epochs_done}; moved to {backup.name}")
        write_text(self.path, format_json_lines([record for record in records if record["epoch"] <= epochs_done]))

    def scalars(self, split: str, values: dict[str, float], epoch: int) -> None:
        """Write the TensorBoard scalars of an epoch; values of None were not measured and are skipped."""
        for name, value in values.items():
            if split in self.boards and value is not None:
                self.boards[split].log_value(name, value, epoch)

    def record(self, **values) -> None:
        """Append the record of an epoch to log.jsonl, as one line, and rewrite epochs.csv."""
        if distributed.is_main():
            with self.path.open("a") as file:
                file.write(format_json_lines([values]))
            write_text(self.path.with_name("epochs.csv"), format_csv_table(read_log(self.path)))


def format_json_lines(records: list[dict]) -> str:
    return "".join(format_json(record) + "\n" for record in records)


def read_log(path: Path) -> list[dict]:
    """Return the records of a log.jsonl; a half-written last line is skipped.

    Raises:
        InputError: another line is not JSON, or a line is not the record of an epoch.
    """
    check_regular(path)
    lines = path.read_bytes().splitlines() if path.exists() else []
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = parse_json(line)
        except ValueError as error:
            if number == len(lines):
                continue
            problem = f"not a JSON object ({error})"
        else:
            records.append(record)
            problem = _record_problem(record)
        if problem:
            raise InputError(f"{path}:{number}: {problem}; correct the line, or move the file (runs do not need it)")
    return records


def _record_problem(record: object) -> str | None:
    """Return why `record` is not the record of an epoch, or None if it is one.

    A record has the epoch's number, and values by name or in a dict per split.
    """
    if not isinstance(record, dict) or not is_count(record.get("epoch")):
        return f"found {short_repr(record)}, expected a JSON object with an epoch number"
    for name, value in flatten_record(record).items():
        if not (value is None or is_number(value) or (name == "phase" and isinstance(value, str))):
            return f"{short_repr(name)} is {short_repr(value)}, expected a number"
    return None


def flatten_record(record: dict) -> dict:
    """Flatten nested values: {"val": {"loss": 1}} -> {"val_loss": 1}."""
    row = {}
    for name, value in record.items():
        row |= {f"{name}_{key}": v for key, v in value.items()} if isinstance(value, dict) else {name: value}
    return row


def format_csv_table(records: list[dict]) -> str:
    """Return the records as CSV: one row per epoch, one column per value of the flat record; empty: not measured."""
    rows = list(map(flatten_record, records))
    names = list(dict.fromkeys(name for row in rows for name in row))
    return format_csv([names, *([row.get(name) for name in names] for row in rows)])


def describe_run(args: dict) -> dict:
    """Return the contents of args.json: command (recipes expanded), arguments, processes, versions, commit, machine."""
    return {
        "command": shlex.join([Path(sys.executable).name, *recipes.expand(sys.argv)]),
        "args": args,
        "processes": distributed.world_size(),
        "versions": {"python": platform.python_version()}
        | {library.__name__: library.__version__ for library in (torch, torchvision, np)},
        "git": _git_state(),
        "machine": platform.platform(),
        "processor": processor_name(args.get("device", "cpu")),
    }


def _earlier_starts(run_dir: Path, about: dict) -> list[dict]:
    """Return commit, machine, processor and versions of earlier starts of a run, each once, if they differ from now."""
    now = {name: about[name] for name in ORIGIN}
    with suppress(InputError):
        before = read_json(run_dir / "args.json")
        earlier = before.get("earlier")
        starts = [*(earlier if isinstance(earlier, list) else []), {name: before.get(name) for name in ORIGIN}]
        return [start for number, start in enumerate(starts) if start != now and start not in starts[:number]]
    return []  # args.json is missing or damaged


def _git_state() -> str:
    """Return the commit, with '-dirty' if files differ from it, or 'unknown' outside a checkout."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.check_output(command, cwd=Path(__file__).parent, stderr=subprocess.DEVNULL, text=True).strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def open_log(run_dir: Path, state: RunState, loader, splits: tuple[str, ...]) -> tuple["RunLog", Progress]:
    """Open the log files and the progress display of a new or resumed run, and print its first line."""
    args, steps = state.args, len(loader)
    run_log = RunLog(run_dir, args, splits, state.epoch, resumed=state.source is not None)
    log(f"{len(loader.dataset)} images, {steps} steps per epoch, seed {state.seed}, {args['device']}: {run_dir}")
    done = state.epoch * steps + state.step
    return run_log, Progress(args["epochs"] * steps, done, args["print_freq"])


def log_epoch(
    run_log: RunLog, means: Means, epoch: Epoch, lr: float, progress: Progress, metrics: tuple[dict, str], val: dict
) -> None:
    """Log a finished epoch to TensorBoard, log.jsonl and the console.

    metrics: from `Method.epoch_metrics`. val: from `Monitor.measure`; empty if nothing is measured.
    """
    values, timing, done = means.read(over_ranks=True), progress.timing(), epoch.number + 1
    method_values, console_text = metrics
    run_log.scalars("train", values | method_values | {"lr": lr} | timing, done)
    run_log.scalars("val", val, done)
    split_values = {"val": val} if val else {}
    run_log.record(epoch=done, phase=epoch.phase.name, lr=lr, **values, **method_values, **timing, **split_values)
    log(
        f"{epoch.title}  {format_means(values)}{console_text}  lr {lr:.4g}  "
        f"{progress.speed():.0f} img/s  data {timing['data_share']:.0f} %  ETA {progress.eta()}"
    )
    if any(value is not None for value in val.values()):
        log(f"{epoch.title}  {format_measures(val)}")
