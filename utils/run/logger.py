"""What a run says and writes: console lines, a bar with the ETA, log.jsonl, TensorBoard, args.json."""

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
from utils.distributed import say
from utils.errors import InputError, brief
from utils.files import csv_text, first_free, json_text, write_text
from utils.measure.metrics import Means
from utils.run.state import RunState
from utils.untrusted import is_count, is_number, parse_json

# With the protobuf that utils/__init__.py settles scalars and histograms work; its log_images does not. Its import
# warns of what it uses (old protobuf calls, scipy.misc), which is nothing to anybody here.
with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    import tensorboard_logger


class RunLog:
    """The log files of a run folder; only the main process writes.

    log.jsonl has one object an epoch; epochs.csv is the same as a table, written anew from it each time.

    Args:
        run_dir: made here. args: as `plain_args` gives them. splits: one TensorBoard folder each.
        epochs_done: a resumed run's; records of later epochs, which are run again, go to log.jsonl.bak-<n>. Not the
            one of a run that died between its line and its checkpoint: --resume auto makes the same line again.
    """

    def __init__(self, run_dir: Path, args: dict, splits: tuple[str, ...], epochs_done: int):
        self.path = run_dir / "log.jsonl"
        self.boards = {}
        if distributed.is_main():
            records = read_log(self.path)  # first: of a damaged one nothing is written
            run_dir.mkdir(parents=True, exist_ok=True)
            write_text(run_dir / "args.json", json_text(describe_run(args), indent=2) + "\n")
            self._drop_records_after(epochs_done, args, records)
            self.boards = {split: tensorboard_logger.Logger(str(run_dir / split)) for split in splits}

    def _drop_records_after(self, epochs_done: int, args: dict, records: list[dict]) -> None:
        later = [record for record in records if record["epoch"] > epochs_done]
        if [record["epoch"] for record in later] == [epochs_done + 1] and args.get("resume") == "auto":
            say(f"note: epoch {epochs_done + 1} was logged and not saved: it is done, and logged, again")
        elif later:
            place = first_free(lambda n: self.path.with_name(f"{self.path.name}.bak-{n}"))
            write_text(place, json_lines(later))
            say(f"note: {len(later)} lines of {self.path} are of epochs after {epochs_done}: moved to {place.name}")
        write_text(self.path, json_lines([record for record in records if record["epoch"] <= epochs_done]))

    def scalars(self, split: str, values: dict[str, float], epoch: int) -> None:
        """TensorBoard scalars of an epoch; None is a value that was not measured."""
        for name, value in values.items():
            if split in self.boards and value is not None:
                self.boards[split].log_value(name, value, epoch)

    def record(self, **values) -> None:
        """One JSON object, one line: an epoch."""
        if distributed.is_main():
            with self.path.open("a") as file:
                file.write(json_lines([values]))
            write_text(self.path.with_name("epochs.csv"), csv_table(read_log(self.path)))


def json_lines(records: list[dict]) -> str:
    return "".join(json_text(record) + "\n" for record in records)


def read_log(path: Path) -> list[dict]:
    """The records of a log.jsonl; the last line may be half written, by a run that lives or was killed.

    Raises InputError: another line is no JSON object, or one is no record of an epoch.
    """
    lines = path.read_bytes().splitlines() if path.exists() else []
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = parse_json(line)
        except ValueError as error:
            if number == len(lines):
                continue
            wrong = f"not a JSON object ({error})"
        else:
            records.append(record)
            wrong = _what_is_wrong(record)
        if wrong:
            raise InputError(f"{path}:{number}: {wrong}; mend the line, or move the file away: nothing else needs it")
    return records


def _what_is_wrong(record: object) -> str | None:
    """Why it is no record of an epoch: its number, and values by name, or by the name of a split and theirs."""
    if not isinstance(record, dict) or not is_count(record.get("epoch")):
        return f"found {brief(record)}, expected an object with the number of an epoch"
    for name, value in flat(record).items():
        if not (value is None or is_number(value) or (name == "phase" and isinstance(value, str))):
            return f"{brief(name)} is {brief(value)}, expected a number"
    return None


def flat(record: dict) -> dict:
    """`{"val": {"loss": 1}}` as `{"val_loss": 1}`."""
    row = {}
    for name, value in record.items():
        row |= {f"{name}_{key}": v for key, v in value.items()} if isinstance(value, dict) else {name: value}
    return row


def csv_table(records: list[dict]) -> str:
    """CSV: one row an epoch, one column a value of its `flat` record. Empty: not measured."""
    rows = list(map(flat, records))
    names = list(dict.fromkeys(name for row in rows for name in row))
    return csv_text([names, *([row.get(name) for name in names] for row in rows)])


def describe_run(args: dict) -> dict:
    """What is needed to repeat a run: command (of a recipe its flags), arguments, versions, commit, machine."""
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
    """Commit, and 'dirty' when files differ from it; 'unknown' outside a checkout."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.check_output(command, cwd=Path(__file__).parent, stderr=subprocess.DEVNULL, text=True).strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def open_log(run_dir: Path, state: RunState, loader, splits: tuple[str, ...]) -> tuple["RunLog", "Progress"]:
    """The log files and the progress of a run that begins, or goes on, where `state` stands; says so."""
    args, steps = state.args, len(loader)
    log = RunLog(run_dir, args, splits, state.epoch)
    say(f"{len(loader.dataset)} images, {steps} steps an epoch, seed {state.seed}, {args['device']}: {run_dir}")
    done = state.epoch * steps + state.step
    return log, Progress(args["epochs"] * steps, done, args["print_freq"])


class Progress:
    """Lines in MoCo's style every `print_freq` steps; on a terminal also a bar over the whole run.

    total: steps of the run. done: those that a resumed run has behind it.
    """

    def __init__(self, total: int, done: int, print_freq: int):
        self.total, self.done, self.before, self.print_freq = total, done, done, print_freq
        self.started = time.perf_counter()
        hidden = not (distributed.is_main() and sys.stderr.isatty())
        self.bar = tqdm(total=total, initial=done, unit="step", disable=hidden, dynamic_ncols=True, leave=False)

    def epoch(self, loader: Iterable, title: str, first_step: int = 0) -> Iterator:
        """The batches of an epoch, timed; `step` is to be called once for each. first_step: of what is left of it."""
        self.title, self.steps, self.step_number, self.data_seconds = title, len(loader), 0, 0.0
        self.first_step, self.images = first_step, 0
        self.bar.set_description(title)
        self.epoch_started, self.epoch_ended = time.perf_counter(), None
        waiting = self.epoch_started
        for batch in loader:
            self.data_seconds += time.perf_counter() - waiting
            yield batch
            waiting = time.perf_counter()
        self.epoch_ended = time.perf_counter()  # what comes after is measuring and saving

    def step(self, means: Means, images: int) -> None:
        """Count a step with so many images of this process; print a line when one is due."""
        self.done += 1
        self.images += images * distributed.world_size()
        self.step_number += 1
        self.bar.update()
        if self.print_freq and self.step_number % self.print_freq == 0:
            values = means.read()
            seconds = self.seconds() / self.step_number
            say(
                f"{self.title}[{self.first_step + self.step_number:>4}/{self.steps}]  "
                f"Time {seconds:.3f}  Data {self.data_seconds / self.step_number:.3f}  "
                f"{describe(values)}  {self.speed():.0f} img/s  ETA {self.eta()}"
            )

    def seconds(self) -> float:
        """Of training in this epoch, so far or in all."""
        return (self.epoch_ended or time.perf_counter()) - self.epoch_started

    def speed(self) -> float:
        """Images a second in this epoch, over all ranks."""
        return self.images / self.seconds()

    def rates(self) -> dict[str, float]:
        """Of this epoch: seconds, images_per_s over all ranks, and data_share, percent of the time spent waiting
        for batches (this process); much of it says that more loader workers would help."""
        share = 100 * self.data_seconds / self.seconds()
        return {"seconds": self.seconds(), "images_per_s": self.speed(), "data_share": share}

    def eta(self) -> timedelta:
        """Time to the end of the run, at the mean pace of this start."""
        pace = (time.perf_counter() - self.started) / max(self.done - self.before, 1)
        return timedelta(seconds=round(pace * (self.total - self.done)))

    def close(self) -> None:
        self.bar.close()


LABELS = {"loss": "Loss", "loss_class": "class", "loss_target": "target", "top1": "Acc@1", "top5": "Acc@5"}


def describe(values: dict[str, float]) -> str:
    """Means as MoCo's console shows them: `Loss 3.2101  Acc@1 45.31`; KCL has one loss, not three."""
    if values.get("loss_target") == 0:
        values = {name: value for name, value in values.items() if name not in ("loss_class", "loss_target")}
    digits = {name: 4 if name.startswith("loss") else 2 for name in values}
    return "  ".join(f"{LABELS.get(name, name)} {value:.{digits[name]}f}" for name, value in values.items())
