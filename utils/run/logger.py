"""Console lines, the progress bar with the ETA, log.jsonl, epochs.csv, TensorBoard and args.json."""

import platform
import shlex
import subprocess
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torchvision
from tqdm import tqdm

from utils import distributed, recipes
from utils.distributed import log
from utils.errors import InputError, short_repr
from utils.files import format_csv, format_json, unused_name, write_text
from utils.measure.metrics import Means
from utils.run.state import RunState
from utils.safe_load import is_count, is_number, parse_json

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
        args: from `plain_args`.
        splits: one TensorBoard folder is created for each of them.
        epochs_done: completed epochs in the checkpoint that the run resumes from. Records of later epochs, which are
            trained again, move to log.jsonl.bak-<n>. With --resume auto, a single record after `epochs_done` is dropped
            instead: its epoch was logged but not saved, and is trained and logged again.
    """

    def __init__(self, run_dir: Path, args: dict, splits: tuple[str, ...], epochs_done: int):
        self.path = run_dir / "log.jsonl"
        self.boards = {}
        if distributed.is_main():
            records = read_log(self.path)  # first, so that a damaged log stops the run before anything is written
            run_dir.mkdir(parents=True, exist_ok=True)
            write_text(run_dir / "args.json", format_json(describe_run(args), indent=2) + "\n")
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
    }


def _git_state() -> str:
    """Return the commit, with '-dirty' if files differ from it, or 'unknown' outside a checkout."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.check_output(command, cwd=Path(__file__).parent, stderr=subprocess.DEVNULL, text=True).strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def open_log(run_dir: Path, state: RunState, loader, splits: tuple[str, ...]) -> tuple["RunLog", "Progress"]:
    """Open the log files and the progress display of a new or resumed run, and print its first line."""
    args, steps = state.args, len(loader)
    run_log = RunLog(run_dir, args, splits, state.epoch)
    log(f"{len(loader.dataset)} images, {steps} steps per epoch, seed {state.seed}, {args['device']}: {run_dir}")
    done = state.epoch * steps + state.step
    return run_log, Progress(args["epochs"] * steps, done, args["print_freq"])


class Progress:
    """Console lines in MoCo's style every `print_freq` steps; on a terminal also a progress bar over the whole run.

    Args:
        total: steps of the run.
        steps_done: steps trained before this launch of the program.
        print_freq: steps between console lines; 0: none.
    """

    def __init__(self, total: int, steps_done: int, print_freq: int):
        self.total, self.print_freq = total, print_freq
        self.steps_done = self.steps_done_before = steps_done
        self.started = time.perf_counter()
        hidden = not (distributed.is_main() and sys.stderr.isatty())
        self.bar = tqdm(total=total, initial=steps_done, unit="step", disable=hidden, dynamic_ncols=True, leave=False)

    def iterate(self, loader: Iterable, title: str, first_step: int = 0) -> Iterator:
        """Yield the batches of an epoch and measure their time; the caller calls `step` once per batch.

        Args:
            title: the epoch's title.
            first_step: the first step to train; above 0 if the epoch is resumed in the middle.
        """
        self.title, self.steps, self.step_number, self.data_seconds = title, len(loader), 0, 0.0
        self.first_step, self.images = first_step, 0
        self.bar.set_description(title)
        self.epoch_started, self.epoch_ended = time.perf_counter(), None
        waiting = self.epoch_started
        for batch in loader:
            self.data_seconds += time.perf_counter() - waiting
            yield batch
            waiting = time.perf_counter()
        self.epoch_ended = time.perf_counter()  # excludes evaluation and saving

    def step(self, means: Means, images: int) -> None:
        """Count a step on `images` images of this process, and print a line if one is due."""
        self.steps_done += 1
        self.images += images * distributed.world_size()
        self.step_number += 1
        self.bar.update()
        if self.print_freq and self.step_number % self.print_freq == 0:
            values = means.read()
            seconds = self.seconds() / self.step_number
            log(
                f"{self.title}[{self.first_step + self.step_number:>4}/{self.steps}]  "
                f"Time {seconds:.3f}  Data {self.data_seconds / self.step_number:.3f}  "
                f"{format_means(values)}  {self.speed():.0f} img/s  ETA {self.eta()}"
            )

    def seconds(self) -> float:
        """Return the training time of this epoch in seconds, so far or in total."""
        return (self.epoch_ended or time.perf_counter()) - self.epoch_started

    def speed(self) -> float:
        """Return the images per second in this epoch, over all ranks."""
        return self.images / self.seconds()

    def timing(self) -> dict[str, float]:
        """Return this epoch's seconds, images_per_s (over all ranks) and data_share.

        data_share is the percentage of time that this process waited for batches; if it is large, use more workers.
        """
        data_share = 100 * self.data_seconds / self.seconds()
        return {"seconds": self.seconds(), "images_per_s": self.speed(), "data_share": data_share}

    def eta(self) -> timedelta:
        """Return the time to the end of the run, at the mean pace since the program was launched."""
        pace = (time.perf_counter() - self.started) / max(self.steps_done - self.steps_done_before, 1)
        return timedelta(seconds=round(pace * (self.total - self.steps_done)))

    def close(self) -> None:
        self.bar.close()


LABELS = {"loss": "Loss", "loss_class": "class", "loss_target": "target", "top1": "Acc@1", "top5": "Acc@5"}


def format_means(values: dict[str, float]) -> str:
    """Format means as MoCo does: `Loss 3.2101  Acc@1 45.31`. KCL has one loss, without class and target parts."""
    if values.get("loss_target") == 0:
        values = {name: value for name, value in values.items() if name not in ("loss_class", "loss_target")}
    digits = {name: 4 if name.startswith("loss") else 2 for name in values}
    return "  ".join(f"{LABELS.get(name, name)} {value:.{digits[name]}f}" for name, value in values.items())
