"""Inputs for fitting heads, read from a checkpoint."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from moco.heads import HEADS
from moco.heads.fitted import Problem
from moco.methods import targets_of
from moco.pretrained import read_classifier
from utils.errors import InputError
from utils.measure.kept_features import Features

FEW_NUMBERS = 2**25  # up to this many values (256 MB in float64), features are converted to float64


def _targets_for(checkpoint: Path, num_classes: int) -> tuple[nn.Module, Tensor]:
    projection, targets = targets_of(checkpoint)
    if len(targets) != num_classes:
        raise InputError(f"checkpoint {checkpoint}: found targets of {len(targets)} classes, expected {num_classes}")
    return projection, targets


class Held(NamedTuple):
    """The parts of a checkpoint besides its encoder.

    Attributes:
        targets: Projection head and class targets of TSC, or None.
        classifier: Last layer of the network, or None.
        lacks: Missing part ("targets", "classifier") -> reason.
    """

    targets: tuple[nn.Module, Tensor] | None
    classifier: nn.Linear | None
    lacks: dict[str, str]


def held_by(checkpoint: Path, num_classes: int, head: str) -> Held:
    """Read the parts of a checkpoint before features are computed, which may take an hour.

    Args:
        head: Value of --head (with --compare-heads, the default).

    Raises:
        InputError: The checkpoint lacks a part that the head needs.
    """
    found, lacks = {}, {}
    for need, read in (("targets", _targets_for), ("classifier", read_classifier)):
        try:
            found[need] = read(checkpoint, num_classes)
        except InputError as error:
            lacks[need] = str(error)
    if why := lacks.get(HEADS[head].needs):
        raise InputError(f"--head {head}: {why}")
    return Held(found.get("targets"), found.get("classifier"), lacks)


def problem_of(held: Held, train: Features, counts: np.ndarray, device: torch.device) -> Problem:
    """Build the problem on a device.

    Args:
        held: Parts of the checkpoint whose encoder computed the features.
        train: Features of the training split.
        counts: (C,) training images per class.
    """
    features = train.features.double() if train.features.numel() <= FEW_NUMBERS else train.features
    counts = torch.from_numpy(counts)
    return Problem(features.to(device), train.labels.to(device), counts, held.targets, held.classifier, held.lacks)
