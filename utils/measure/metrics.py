"""Measures: running means, top-k, accuracy over classes and shots."""

import math

import numpy as np
import torch
from torch import Tensor

from utils import distributed
from utils.errors import InputError

NO_HIT = 2**62  # the rank of a label whose own logit is no number


class Means:
    """Running means of a training epoch, kept on the device and read only when shown.

    where: what the epoch is called in messages. state: of an epoch that goes on, over all ranks; rank 0 takes it over.
    """

    def __init__(self, where: str, device: torch.device, state: dict | None = None):
        state = state or {"steps": 0, "count": 0.0, "sums": {}}
        share = float(distributed.is_main())
        self.where, self.steps = where, state["steps"]
        self.count = torch.tensor(share * state["count"], device=device)
        self.sums = {name: torch.tensor(share * total, device=device) for name, total in state["sums"].items()}
        self.first_bad = torch.zeros((), dtype=torch.long, device=device)  # 0: none yet

    def add(self, count: int, **values: Tensor) -> None:
        """Add the batch means of `count` images; `loss` must be among them."""
        self.steps += 1
        self.count += count
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0) + value.detach().float() * count
        bad = ~values["loss"].detach().isfinite() & (self.first_bad == 0)
        self.first_bad += bad * self.steps

    def read(self, over_ranks: bool = False) -> dict[str, float]:
        """The means so far, of this rank or over all of them.

        Raises InputError: a loss was not finite; says in which step.
        """
        state = self.state(over_ranks)
        return {name: total / max(state["count"], 1) for name, total in state["sums"].items()}

    def state(self, over_ranks: bool = True) -> dict:
        """Steps, images and sums so far, as plain numbers; raises as `read`."""
        bad = int(self.first_bad)
        if step := distributed.max_over_ranks(bad) if over_ranks else bad:
            raise self.diverged("the loss is not finite", step)
        totals = torch.stack([self.count, *self.sums.values()])
        if over_ranks:
            totals = distributed.sum_over_ranks(totals)
        count, *sums = totals.tolist()
        return {"steps": self.steps, "count": count, "sums": dict(zip(self.sums, sums, strict=True))}

    def diverged(self, what: str, step: int | None = None) -> InputError:
        """The error to raise for numbers that are not finite in a step (default: the one begun now)."""
        step = step or self.steps + 1
        return InputError(f"{self.where}, step {step}: {what}; try a smaller --lr; the last checkpoint stays as it was")


def in_top_k(rank: Tensor, k: int) -> Tensor:
    """Percent of (N,) ranks (0 = first) that are among the first k; a scalar."""
    return (rank < k).float().mean() * 100


def rank_of_label(logits: Tensor, labels: Tensor) -> Tensor:
    """(N,) int64: how many other of the (N, C) logits are not below the label's own; a tie is no hit.

    Where the label's own is nan, NO_HIT, which is among no first k.
    """
    own = logits.gather(1, labels[:, None])  # (N, 1)
    rank = (~(logits < own)).sum(1) - 1
    return rank.masked_fill(own[:, 0].isnan(), NO_HIT)


class ClassAccuracy:
    """Top-1 and top-5 hits counted class by class, summed over ranks. where: what is measured, for messages."""

    def __init__(self, num_classes: int, device: torch.device, where: str = "this split"):
        self.hits = torch.zeros(4, num_classes, device=device)  # top-1, top-5, images, images without finite logits
        self.where = where

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Count a batch: logits (N, C), labels (N,)."""
        rank = rank_of_label(logits, labels)
        ones = torch.stack([rank < 1, rank < 5, torch.ones_like(rank, dtype=torch.bool), ~logits.isfinite().all(1)])
        self.hits.index_add_(1, labels, ones.float())

    def summary(self, class_counts: np.ndarray) -> dict:
        """Percent: acc1 and acc5 over images; many, medium, few, balanced (all) as means over classes; the worst class,
        the harmonic mean over classes (0 if one is 0); per_class.

        class_counts: (C,) training images a class, which make the shots. A shot without a class, and a class
        without a test image, gets None. Raises InputError: on all ranks, if a logit is not finite.
        """
        top1, top5, images, bad = distributed.sum_over_ranks(self.hits).cpu().double().numpy()
        if bad.any():
            raise InputError(
                f"{self.where}: {bad.sum():.0f} of {images.sum():.0f} images have logits that are not finite, so there "
                "is no accuracy; the network has diverged, or overflows in --amp fp16: leave that out, take an earlier "
                "checkpoint, or train with a smaller --lr"
            )
        with np.errstate(invalid="ignore"):
            per_class = 100 * top1 / images  # (C,), nan where there is no image
        out = {"acc1": float(100 * top1.sum() / images.sum()), "acc5": float(100 * top5.sum() / images.sum())}
        for shot, mask in shots(class_counts).items():
            tested = mask & (images > 0)
            out[shot] = float(per_class[tested].mean()) if tested.any() else None
        out |= over_classes(per_class[images > 0])
        out["per_class"] = [None if math.isnan(value) else value for value in per_class.tolist()]
        return out


def over_classes(per_class: np.ndarray) -> dict[str, float]:
    """What one number can say of the accuracies of the classes, percent, that have an image."""
    harmonic = len(per_class) / (1 / per_class).sum() if per_class.all() else 0.0
    # Rounded: of as many images a class it is the mean over images, and equal hits must not differ in their last bits.
    balanced = round(float(per_class.mean()), 9)
    return {"balanced": balanced, "worst": float(per_class.min()), "harmonic": float(harmonic)}


class Calibration:
    """Expected calibration error of logits (Guo et al. 2017), summed over ranks: 15 bins of equal width."""

    BINS = 15

    def __init__(self, device: torch.device):
        self.bins = torch.zeros(3, self.BINS, device=device, dtype=torch.float64)  # images, confidence, hits

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Count a batch: logits (N, C), labels (N,)."""
        confidence, predicted = logits.double().softmax(1).max(1)  # (N,)
        place = (confidence * self.BINS).ceil().long().clamp(1, self.BINS) - 1  # bins are open at their lower end
        values = torch.stack([torch.ones_like(confidence), confidence, (predicted == labels).double()])
        self.bins.index_add_(1, place, values)

    def error(self) -> float:
        """Mean over the images of |accuracy − confidence| of their bin, in percent."""
        images, confidence, hits = distributed.sum_over_ranks(self.bins)
        return float(100 * (hits - confidence).abs().sum() / images.sum())


MANY_ABOVE, FEW_BELOW = 100, 20  # training images of a class: many > 100, few < 20


def shots(class_counts: np.ndarray) -> dict[str, np.ndarray]:
    """Masks over the classes, (C,) bool each: many > 100, medium 20-100, few < 20 training images."""
    many, few = class_counts > MANY_ABOVE, class_counts < FEW_BELOW
    return {"many": many, "medium": ~many & ~few, "few": few}
