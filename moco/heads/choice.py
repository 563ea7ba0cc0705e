"""Selection of one candidate per head on the validation split, by the same rule for all heads."""

import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from moco.heads import HEADS
from moco.heads.classifiers import without_absent
from moco.heads.fitted import Problem
from moco.heads.flags import way_of
from utils.distributed import say
from utils.errors import InputError
from utils.measure.kept_features import Features
from utils.measure.results import made_with
from utils.run.compute import ComputeConfig
from utils.run.evaluation import validate

SMOOTH = 5000  # validation images above which accuracy, as a function of the penalty, has a single maximum
BLOCK = 8192  # images per batch
SLOW = 20  # seconds after which progress is printed
AFTERWARDS = ("t", "tau")  # names of values that are applied after the fit
UNCALIBRATED = ("ncm", "target")  # heads whose logits have no fitted scale


class Split:
    """Loader over stored features (n, d) and labels (n,), as `validate` expects."""

    on_every_rank = 0

    def __init__(self, found: Features, device: torch.device):
        self.found, self.device, self.dataset = found, device, found.labels

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for z, y in zip(*(tensor.split(BLOCK) for tensor in self.found), strict=True):
            yield z.to(self.device), y.to(self.device)


class Task(NamedTuple):
    """The data on which heads are fitted, selected and tested.

    Attributes:
        splits: "val" and "test".
        chosen_on: See `Data.chosen_on`.
    """

    problem: Problem
    splits: dict[str, Split]
    compute: ComputeConfig
    chosen_on: str

    @property
    def counts(self) -> np.ndarray:
        """(C,) training images per class."""
        return self.problem.counts.numpy()

    def measure(self, split: str, classifier: nn.Module, title: str) -> dict:
        """Evaluate a classifier on a split; returns the result of `validate`. title: the head's, for messages."""
        return validate(self.splits[split], classifier, self.compute, self.counts, where=f"{title}, {split}")


class Chosen(NamedTuple):
    """The selected candidate of a head.

    Attributes:
        entry: Entry of results.json.
        tried: Name of each hyperparameter -> the values tried.
        seconds: Duration of fitting and selection.
    """

    classifier: nn.Module
    entry: dict
    tried: dict[str, list[float]]
    seconds: float


def choose(name: str, sampling: str, adjustment: str, task: Task) -> Chosen:
    """Fit a head, select the candidate with the best balanced accuracy on val, and test it.

    Ties are broken by validation loss, because strong penalties can match the accuracy of weaker ones with less
    confident predictions. For heads without a scale, the first candidate wins. Fits that did not converge are reported
    and skipped. The search ends after two penalties in a row without improvement (one for a large validation split).

    Raises:
        InputError: No fit converged, or the logits are not finite.
    """
    started, title = time.monotonic(), titled(name, sampling, adjustment)
    best, tried, failed, worse = None, {}, [], 0
    patience = 1 if len(task.splits["val"].dataset) > SMOOTH else 2
    for together in HEADS[name].fit(task.problem, way_of(sampling, adjustment)):
        before = best
        for candidate in together:
            for value_name, value in candidate.values.items():
                tried.setdefault(value_name, {})[value] = None
            if not candidate.converged:
                what = ", ".join(f"{k} {v:g}" for k, v in candidate.values.items() if k not in AFTERWARDS) or "defaults"
                failed += [what] if what not in failed else []
                continue
            classifier = without_absent(candidate.classifier.to(task.compute.device), task.problem.counts)
            found = task.measure("val", classifier, title)
            key = found["balanced"], 0.0 if name in UNCALIBRATED else -found["loss"]
            if best is None or key > best.key:
                best = Best(key, found, classifier, candidate.values)
        said = made_with({"values": together[-1].values})
        say_slow(f"{title}: fitted up to {said}, best accuracy on val {best.key[0] if best else 0:.2f}", started)
        worse = worse + 1 if best is before else 0
        if best and worse == patience:
            break
    for what in failed:
        say(f"note: {title}: the fit with {what} did not converge and was skipped")
    if best is None:
        raise InputError(f"{title}: no fit converged; the features may be damaged. Choose another --head")
    entry = {"values": best.values, **task.measure("test", best.classifier, title)}
    entry |= {"val_acc1": best.of_val["acc1"], "val_balanced": best.of_val["balanced"]}
    if name in UNCALIBRATED:
        entry |= {"ece": None, "loss": None}
    return Chosen(best.classifier, entry, {k: list(v) for k, v in tried.items()}, time.monotonic() - started)


class Best(NamedTuple):
    """The best candidate so far. key: values to compare by. of_val: its result of `validate` on val."""

    key: tuple[float, float]
    of_val: dict
    classifier: nn.Module
    values: dict[str, float]


def say_slow(line: str, started: float) -> None:
    """Log the progress of a fit that takes long. started: `time.monotonic()` at the start."""
    if (seconds := time.monotonic() - started) > SLOW:
        say(f"{line} ({seconds / 60:.1f} min)")


def titled(name: str, sampling: str, adjustment: str) -> str:
    """Return the name of a head in tables: `logistic, class-balanced` or `logistic, post`."""
    words = [sampling] if sampling == "class-balanced" else [] if adjustment == "off" else [adjustment]
    return ", ".join([name, *words])
