"""Which of a head's candidates the validation split chooses; all heads by one rule."""

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
from utils.run.evaluation import validate
from utils.run.speed import Speed

SMOOTH = 5000  # validation images from which on accuracy over the penalty has no second rise
BLOCK = 8192  # images at a time
SLOW = 20  # seconds after which a fit says how far it is
AFTERWARDS = ("t", "tau")  # values of what is done with a fit
UNCALIBRATED = ("ncm", "target")  # whose logits have no scale that was fitted


class Split:
    """Features as `validate` takes a loader. features: (n, d), labels: (n,)."""

    on_every_rank = 0

    def __init__(self, found: Features, device: torch.device):
        self.found, self.device, self.dataset = found, device, found.labels

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for z, y in zip(*(tensor.split(BLOCK) for tensor in self.found), strict=True):
            yield z.to(self.device), y.to(self.device)


class Task(NamedTuple):
    """Where heads are fitted, chosen and tested. splits: val and test. chosen_on: see `Data.chosen_on`."""

    problem: Problem
    splits: dict[str, Split]
    speed: Speed
    chosen_on: str

    @property
    def counts(self) -> np.ndarray:
        """(C,) training images a class."""
        return self.problem.counts.numpy()

    def measure(self, split: str, classifier: nn.Module, title: str) -> dict:
        """As `validate`; title: of the head, for messages."""
        return validate(self.splits[split], classifier, self.speed, self.counts, where=f"{title}, {split}")


class Chosen(NamedTuple):
    """entry: of results.json. tried: each value -> those that there were to choose from. seconds: it took."""

    classifier: nn.Module
    entry: dict
    tried: dict[str, list[float]]
    seconds: float


def choose(name: str, sampling: str, adjustment: str, task: Task) -> Chosen:
    """Fit a head, take the candidate with the best balanced accuracy on val, and test it.

    Of those that tie the least loss on val is taken: strong penalties often have the accuracy of weaker ones, and are
    unsure of all they say. Of a head without a scale it is the first. A fit that has not arrived at its optimum is
    said, and not chosen. When two penalties in a row (of a large validation split one) are no better
    than the best, no weaker one is tried.

    Raises:
        InputError: no fit has arrived; or logits that are not finite.
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
                what = ", ".join(f"{k} {v:g}" for k, v in candidate.values.items() if k not in AFTERWARDS) or "its fit"
                failed += [what] if what not in failed else []
                continue
            classifier = without_absent(candidate.classifier.to(task.speed.device), task.problem.counts)
            found = task.measure("val", classifier, title)
            key = found["balanced"], 0.0 if name in UNCALIBRATED else -found["loss"]
            if best is None or key > best.key:
                best = Best(key, found, classifier, candidate.values)
        said = made_with({"values": together[-1].values})
        say_slow(f"{title}: up to {said} there is at best {best.key[0] if best else 0:.2f} on val", started)
        worse = worse + 1 if best is before else 0
        if best and worse == patience:
            break
    for what in failed:
        say(f"note: {title}: {what} has not arrived at its optimum, it is not chosen from")
    if best is None:
        raise InputError(f"{title}: no fit has arrived at its optimum; the features are damaged, or take another head")
    entry = {"values": best.values, **task.measure("test", best.classifier, title)}
    entry |= {"val_acc1": best.of_val["acc1"], "val_balanced": best.of_val["balanced"]}
    if name in UNCALIBRATED:
        entry |= {"ece": None, "loss": None}
    return Chosen(best.classifier, entry, {k: list(v) for k, v in tried.items()}, time.monotonic() - started)


class Best(NamedTuple):
    """The best candidate so far, and what it is compared by. of_val: what `validate` says of it."""

    key: tuple[float, float]
    of_val: dict
    classifier: nn.Module
    values: dict[str, float]


def say_slow(line: str, started: float) -> None:
    """Say how far a fit has come, if it takes long."""
    if (seconds := time.monotonic() - started) > SLOW:
        say(f"{line} ({seconds / 60:.1f} min)")


def titled(name: str, sampling: str, adjustment: str) -> str:
    """Of a head in tables: `logistic, class-balanced`, `logistic, post`."""
    words = [sampling] if sampling == "class-balanced" else [] if adjustment == "off" else [adjustment]
    return ", ".join([name, *words])
