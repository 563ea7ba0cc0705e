"""Metrics: running means, top-k accuracy, accuracy over classes and shot groups, calibration error."""

import math

import numpy as np
import torch
from torch import Tensor

from utils import distributed
from utils.distributed import collectives
from utils.errors import InputError

NO_HIT = 2**62  # rank of a label whose own logit is nan


class Means:
    """Running means of a training epoch, kept on the device and copied to the host only when printed.

    Args:
        title: title of the epoch, for messages.
        state: means of a resumed epoch over all ranks, which rank 0 continues.
    """

    def __init__(self, title: str, device: torch.device, state: dict | None = None):
        state = state or {"steps": 0, "count": 0.0, "sums": {}}
        is_main = float(distributed.is_main())  # the other ranks start from 0
        self.title, self.steps = title, state["steps"]
        self.count = torch.tensor(is_main * state["count"], device=device)
        self.sums = {name: torch.tensor(is_main * total, device=device) for name, total in state["sums"].items()}
        # First step with a loss that is not finite; 0: no such step.
        self.first_bad = torch.zeros((), dtype=torch.long, device=device)

    def add(self, count: int, **values: Tensor) -> None:
        """Add the batch means of `count` images; `values` must contain `loss`."""
        self.steps += 1
        self.count += count
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0) + value.detach().float() * count
        bad = ~values["loss"].detach().isfinite() & (self.first_bad == 0)
        self.first_bad += bad * self.steps

    def read(self, over_ranks: bool = False) -> dict[str, float]:
        """Return the means so far, of this rank or over all ranks.

        Raises:
            InputError: a loss was not finite; the message names the step.
        """
        state = self.state(over_ranks)
        return {name: total / max(state["count"], 1) for name, total in state["sums"].items()}

    def state(self, over_ranks: bool = True) -> dict:
        """Return steps, image count and sums so far as plain numbers; for errors see `read`."""
        bad = int(self.first_bad)
        if step := collectives.max_over_ranks(bad) if over_ranks else bad:
            raise self.divergence_error("the loss is not finite", step)
        totals = torch.stack([self.count, *self.sums.values()])
        if over_ranks:
            totals = collectives.sum_over_ranks(totals)
        count, *sums = totals.tolist()
        return {"steps": self.steps, "count": count, "sums": dict(zip(self.sums, sums, strict=True))}

    def divergence_error(self, what: str, step: int | None = None) -> InputError:
        """Return the error to raise if numbers are not finite in a step (default: the current one)."""
        step = step or self.steps + 1
        return InputError(f"{self.title}, step {step}: {what}; use a smaller --lr; the last checkpoint is unchanged")


def in_top_k(rank: Tensor, k: int) -> Tensor:
    """Return the percentage of ranks, (N,) with 0 = first, that are below k, as a scalar tensor."""
    return (rank < k).float().mean() * 100


def rank_of_label(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the rank of each label, (N,) int64: the number of other logits that are not below the label's logit.

    A tie therefore counts as an error. If the label's own logit is nan, the rank is NO_HIT, which is above any k.

    Args:
        logits: (N, C).
        labels: (N,) int64.
    """
    own = logits.gather(1, labels[:, None])  # (N, 1)
    rank = (~(logits < own)).sum(1) - 1
    return rank.masked_fill(own[:, 0].isnan(), NO_HIT)


class ClassAccuracy:
    """Top-1 and top-5 hits per class, summed over ranks. where: name of the split, for messages."""

    def __init__(self, num_classes: int, device: torch.device, where: str = "this split"):
        self.hits = torch.zeros(4, num_classes, device=device)  # top-1, top-5, images, images without finite logits
        self.where = where

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Count a batch: logits (N, C), labels (N,)."""
        rank = rank_of_label(logits, labels)
        ones = torch.stack([rank < 1, rank < 5, torch.ones_like(rank, dtype=torch.bool), ~logits.isfinite().all(1)])
        self.hits.index_add_(1, labels, ones.float())

    def summary(self, class_counts: np.ndarray) -> dict:
        """Return accuracies in percent.

        - acc1, acc5: over images.
        - many, medium, few: means over the classes of a shot group (see `shots`); None for a group without classes.
        - balanced, worst, harmonic, spread: see `class_accuracy_summary`.
        - per_class: list over classes; None for a class without test images.

        Args:
            class_counts: (C,) training images per class, which define the shot groups.

        Raises:
            InputError: a logit is not finite; raised on all ranks.
        """
        top1, top5, images, bad = collectives.sum_over_ranks(self.hits).cpu().double().numpy()
        if bad.any():
            raise InputError(
                f"{self.where}: {bad.sum():.0f} of {images.sum():.0f} images have logits that are not finite; the "
                "network has diverged, or overflows with --amp fp16; omit --amp fp16, use an earlier checkpoint, or "
                "train with a smaller --lr"
            )
        with np.errstate(invalid="ignore"):
            per_class = 100 * top1 / images  # (C,), nan where there is no image
        out = {"acc1": float(100 * top1.sum() / images.sum()), "acc5": float(100 * top5.sum() / images.sum())}
        for shot, mask in shots(class_counts).items():
            tested = mask & (images > 0)
            out[shot] = float(per_class[tested].mean()) if tested.any() else None
        out |= class_accuracy_summary(per_class[images > 0])
        out["per_class"] = [None if math.isnan(value) else value for value in per_class.tolist()]
        return out


def class_accuracy_summary(per_class: np.ndarray) -> dict[str, float]:
    """Return statistics of the accuracies of the classes that have an image, (C,) in percent.

    - balanced, worst, harmonic: mean, minimum and harmonic mean (0 if a class has 0).
    - spread: standard deviation, in percentage points. For a class-balanced linear classifier on frozen features, this
      is how balanced the feature space is (Kang et al., ICLR 2021): 0 if all classes are equally separable.
    """
    harmonic = len(per_class) / (1 / per_class).sum() if per_class.all() else 0.0
    # Rounded, so that equal numbers of hits give equal values: with equal classes this is the mean over images.
    balanced = round(float(per_class.mean()), 9)
    return {
        "balanced": balanced,
        "worst": float(per_class.min()),
        "harmonic": float(harmonic),
        "spread": float(per_class.std()),
    }


class Calibration:
    """Expected calibration error (Guo et al. 2017) over all ranks, with 15 bins of equal width."""

    BINS = 15

    def __init__(self, device: torch.device):
        self.bins = torch.zeros(3, self.BINS, device=device, dtype=torch.float64)  # images, confidence, hits

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Count a batch: logits (N, C), labels (N,)."""
        confidence, predicted = logits.double().softmax(1).max(1)  # (N,)
        bin_index = (confidence * self.BINS).ceil().long().clamp(1, self.BINS) - 1  # bins are open at their lower end
        values = torch.stack([torch.ones_like(confidence), confidence, (predicted == labels).double()])
        self.bins.index_add_(1, bin_index, values)

    def error(self) -> float:
        """Return the mean over images of |accuracy − confidence| of their bin, in percent."""
        images, confidence, hits = collectives.sum_over_ranks(self.bins)
        return float(100 * (hits - confidence).abs().sum() / images.sum())


MANY_ABOVE, FEW_BELOW = 100, 20  # training images per class


def shots(class_counts: np.ndarray) -> dict[str, np.ndarray]:
    """Return the shot groups as masks over the classes, (C,) bool each.

    many: more than 100 training images; medium: 20 to 100; few: fewer than 20.
    """
    many, few = class_counts > MANY_ABOVE, class_counts < FEW_BELOW
    return {"many": many, "medium": ~many & ~few, "few": few}
