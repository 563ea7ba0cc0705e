"""The state of a run, as stored in its checkpoints; `RunState.from_dict` checks it."""

from dataclasses import dataclass, field, fields
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from utils import distributed
from utils.errors import InputError, short_repr
from utils.measure.results import results_problem
from utils.randomness import Stream, derive_seed
from utils.run import checkpoint
from utils.safe_load import MAX_COUNT, are_texts, is_count, is_number, is_plain

NOT_ENTRIES = ("weights", "extra", "source", "broken")  # fields that are not stored under their names
OMITTED_IF_NONE = ("phase", "results", "train_counts", "class_names", "statistics", "best_acc1", "scaler")


@dataclass
class RunState:
    """The state of a run after `epoch` complete epochs and `step` steps of the next one.

    Attributes:
        epoch, step: completed epochs, and completed steps of the current epoch.
        phase: the phase of the current epoch (stage 1).
        arch, seed, args: the run's architecture, seed and arguments; the arguments are plain JSON values.
        processes: number of processes of the job that wrote the file.
        weights: the model's state dict from the file, without DistributedDataParallel's prefix. It is released once it
            is loaded.
        optimizer: the optimiser's state dict from the file. It is released once it is loaded.
        means: running means of the current epoch (see `Means`); None at the end of an epoch.
        scaler: loss scale of --amp fp16.
        results: accuracies so far (stage 2).
        train_counts: training images of each class; None in older files.
        class_names: names of the classes in label order; None if they are not known.
        statistics: {"mean": three numbers, "std": three numbers} that normalise the images; None in older files.
        best_acc1: the best test accuracy so far (stage 2), an entry of the authors' code.
        extra: the method's own entries (stage 1), which the method checks.
        source: the checkpoint that was read; None in a new run.
        broken: newer checkpoints that could not be read.
    """

    epoch: int = 0
    step: int = 0
    phase: str | None = None
    arch: str | None = None
    seed: int | None = None
    processes: int | None = None
    args: dict = field(default_factory=dict)
    optimizer: dict | None = None
    means: dict | None = None
    results: dict | None = None
    train_counts: list | None = None
    class_names: list | None = None
    statistics: dict | None = None
    best_acc1: object = None
    scaler: object = None
    weights: dict[str, Tensor] = field(default_factory=dict)
    extra: dict = field(default_factory=dict)
    source: Path | None = None
    broken: list[Path] = field(default_factory=list)

    @classmethod
    def from_dict(cls, entries: dict, source: Path) -> "RunState":
        """Return the state in a checkpoint of this project or of the authors' code, which has fewer entries.

        The authors' code is the code released by the TSC authors.

        Raises:
            InputError: an entry has the wrong type or an impossible value.
        """
        kinds = {entry.name: entry.type for entry in fields(cls) if entry.name not in NOT_ENTRIES}
        for name, kind in kinds.items():
            if name in entries and (not isinstance(entries[name], kind) or isinstance(entries[name], bool)):
                expected = getattr(kind, "__name__", kind)
                raise InputError(f"checkpoint {source}: {name} is {short_repr(entries[name])}, expected {expected}")
        state = cls(**{name: entries[name] for name in kinds if name in entries}, source=source)
        if problem := state._problem():
            raise InputError(f"checkpoint {source}: {problem}")
        state.weights = checkpoint.strip_prefix(entries["state_dict"])
        state.extra = {name: value for name, value in entries.items() if name not in kinds and name != "state_dict"}
        return state

    def seed_layers(self) -> None:
        """Seed dropout and other random layers for the next step, so that a resumed run repeats the same draws."""
        torch.manual_seed(derive_seed(self.seed, Stream.LAYERS, self.epoch, self.step, distributed.rank()))

    def _problem(self) -> str | None:
        """Return why no run can be in this state, or None if a run can."""
        if not (is_count(self.epoch) and is_count(self.step)):
            return f"epoch {short_repr(self.epoch)} and step {short_repr(self.step)}, expected 0 to {MAX_COUNT - 1}"
        if self.seed is not None and not 0 <= self.seed < 2**63:
            return f"seed is {short_repr(self.seed)}, expected 0 to 2**63 - 1"
        for name, value in self.args.items():
            if not (isinstance(name, str) and is_plain(value)):
                return f"argument {short_repr(name)} is {short_repr(value)}, expected a value of a command line"
        if self.means is not None and not _are_means(self.means):
            return f"means is {short_repr(self.means)}, expected steps, count and sums"
        if not all(is_count(count) for count in self.train_counts or ()):
            return f"train_counts is {short_repr(self.train_counts)}, expected images per class"
        if self.class_names is not None and not are_texts(self.class_names):
            return f"class_names is {short_repr(self.class_names)}, expected texts"
        if self.statistics is not None and not are_statistics(self.statistics):
            return f"statistics is {short_repr(self.statistics)}, expected mean and std of three channels"
        return results_problem(self.results) if self.results else None

    def load_weights(self, model: nn.Module) -> None:
        """Load the stored weights into a model and release them; for errors see `checkpoint.load_weights`."""
        checkpoint.load_weights(model, self.weights, self.source)
        self.weights = {}

    def load_optimizer(self, optimizer: Optimizer) -> None:
        """Load the stored optimiser state and release it; for errors see `checkpoint.load_optimizer`."""
        checkpoint.load_optimizer(optimizer, self.optimizer, self.source)
        self.optimizer = None

    def set_data(self, loader) -> None:
        """Store what checkpoints say about the training images (train_counts, class_names, statistics).

        Raises:
            InputError: The state is beyond the end of its epoch.
        """
        if self.step > len(loader):
            raise InputError(
                f"checkpoint {self.source}: step {self.step} of an epoch of {len(loader)}; it is damaged, use another"
            )
        vars(self).update(loader.describe_data())

    def to_dict(self, model: nn.Module, optimizer: Optimizer) -> dict:
        """Return the entries of a checkpoint: plain data, the state's tensors, and those of model and optimiser."""
        entries = {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name not in NOT_ENTRIES}
        entries |= {"state_dict": checkpoint.add_prefix(model.state_dict()), "optimizer": optimizer.state_dict()}
        return {name: v for name, v in entries.items() if v is not None or name not in OMITTED_IF_NONE} | self.extra

    def __str__(self) -> str:
        return f"epoch {self.epoch} and {self.step} steps"


def are_statistics(entry: object) -> bool:
    """Whether an entry contains the mean and the standard deviation of three channels."""
    if not isinstance(entry, dict) or entry.keys() != {"mean", "std"}:
        return False
    channels = entry.values()
    are_numbers = all(isinstance(v, list) and len(v) == 3 and all(map(is_number, v)) for v in channels)
    return are_numbers and min(entry["std"]) > 0


def _are_means(entry: dict) -> bool:
    """Whether an entry has the form of `Means.state`."""
    if entry.keys() != {"steps", "count", "sums"} or not isinstance(entry["sums"], dict):
        return False
    are_sums = all(isinstance(name, str) and is_number(value) for name, value in entry["sums"].items())
    return are_sums and is_count(entry["steps"]) and is_number(entry["count"])
