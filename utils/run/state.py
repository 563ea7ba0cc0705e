"""Where a run stands: what its checkpoints hold, in one dataclass whose `from_dict` is the check."""

from dataclasses import dataclass, field, fields
from pathlib import Path

from torch import Tensor, nn
from torch.optim import Optimizer

from utils.errors import InputError, brief
from utils.measure.results import what_is_wrong_with_results
from utils.run import checkpoint
from utils.untrusted import MOST, is_count, is_number, is_plain

NOT_AN_ENTRY = ("weights", "extra", "source", "broken")  # of a file, under this name
LEFT_OUT = ("phase", "results", "best_acc1", "scaler")  # of a file, where there is none


@dataclass
class RunState:
    """A run after `epoch` whole epochs and `step` steps of the next one.

    Attributes:
        epoch, step: what is done. phase: that of the epoch (stage 1).
        arch, seed, args: of the run, args as JSON holds them. processes: how many wrote it.
        weights: the model's state dict that was read, without DistributedDataParallel's prefix; optimizer: the
            optimiser's. Both are of the file, not of the moment.
        means: of the epoch so far (see `Means`), None at its end. scaler: the loss scale of --amp fp16.
        results: what has been measured (stage 2). best_acc1: the release's entry of that.
        extra: the method's own entries (stage 1), which it checks itself.
        source: the checkpoint that was read, None of a new run. broken: newer ones that could not be.
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
    best_acc1: object = None
    scaler: object = None
    weights: dict[str, Tensor] = field(default_factory=dict)
    extra: dict = field(default_factory=dict)
    source: Path | None = None
    broken: list[Path] = field(default_factory=list)

    @classmethod
    def from_dict(cls, entries: dict, source: Path) -> "RunState":
        """The state in a checkpoint of this project, or of the release, which has fewer entries.

        Raises:
            InputError: an entry of another kind, or a place that no run stands at.
        """
        kinds = {entry.name: entry.type for entry in fields(cls) if entry.name not in NOT_AN_ENTRY}
        for name, kind in kinds.items():
            if name in entries and (not isinstance(entries[name], kind) or isinstance(entries[name], bool)):
                expected = getattr(kind, "__name__", kind)
                raise InputError(f"checkpoint {source}: {name} is {brief(entries[name])}, expected {expected}")
        state = cls(**{name: entries[name] for name in kinds if name in entries}, source=source)
        if wrong := state._what_is_wrong():
            raise InputError(f"checkpoint {source}: {wrong}")
        state.weights = checkpoint.unpacked(entries)
        state.extra = {name: value for name, value in entries.items() if name not in kinds and name != "state_dict"}
        return state

    def _what_is_wrong(self) -> str | None:
        """Why no run stands here; None: one may."""
        if not (is_count(self.epoch) and is_count(self.step)):
            return f"epoch {brief(self.epoch)} and step {brief(self.step)}, expected 0 or more, and less than {MOST}"
        if self.seed is not None and not 0 <= self.seed < 2**63:
            return f"seed is {brief(self.seed)}, expected 0 or more, and less than 2**63"
        if self.processes is not None and not 0 < self.processes < MOST:
            return f"processes is {brief(self.processes)}, expected 1 or more"
        for name, value in self.args.items():
            if not (isinstance(name, str) and is_plain(value)):
                return f"its argument {brief(name)} is {brief(value)}, expected what a command line gives"
        if self.means is not None and not _are_means(self.means):
            return f"means is {brief(self.means)}, expected steps, count and sums"
        return what_is_wrong_with_results(self.results) if self.results else None

    def load_into(self, model: nn.Module) -> None:
        """Give a model the weights that were read, and hold them no longer. Raises as `checkpoint.load_into`."""
        checkpoint.load_into(model, self.weights, self.source)
        self.weights = {}

    def load_optimizer(self, optimizer: Optimizer) -> None:
        """The same of the optimiser; raises as `checkpoint.load_optimizer`."""
        checkpoint.load_optimizer(optimizer, self.optimizer, self.source)
        self.optimizer = None

    def check_step(self, steps: int) -> None:
        """Refuse a checkpoint that stands beyond the end of its epoch of so many steps.

        Raises:
            InputError: it does.
        """
        if self.step > steps:
            raise InputError(
                f"checkpoint {self.source}: step {self.step} of an epoch of {steps}; it is damaged: take another"
            )

    def to_dict(self, model: nn.Module, optimizer: Optimizer) -> dict:
        """The entries of a checkpoint of this moment: plain data and tensors."""
        entries = {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name not in NOT_AN_ENTRY}
        entries |= {"state_dict": checkpoint.packed(model), "optimizer": optimizer.state_dict()}
        return {name: v for name, v in entries.items() if v is not None or name not in LEFT_OUT} | self.extra

    def __str__(self) -> str:
        return f"epoch {self.epoch} and {self.step} steps"


def _are_means(found: dict) -> bool:
    """Whether it is what `Means.state` gives."""
    if found.keys() != {"steps", "count", "sums"} or not isinstance(found["sums"], dict):
        return False
    sums = all(isinstance(name, str) and is_number(value) for name, value in found["sums"].items())
    return sums and is_count(found["steps"]) and is_number(found["count"])
