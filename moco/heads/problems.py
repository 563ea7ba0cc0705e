"""What a checkpoint lets heads be fitted to."""

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

FEW_NUMBERS = 2**25  # a quarter of a GB in float64: so many are fitted to twice the digits


def _targets_for(checkpoint: Path, num_classes: int) -> tuple[nn.Module, Tensor]:
    projection, targets = targets_of(checkpoint)
    if len(targets) != num_classes:
        raise InputError(f"checkpoint {checkpoint}: has targets of {len(targets)} classes, expected {num_classes}")
    return projection, targets


class Held(NamedTuple):
    """What a checkpoint holds besides its encoder.

    targets: its projection and each class's target, of TSC. classifier: its last layer. lacks: what of a head's `needs`
    there is not -> why.
    """

    targets: tuple[nn.Module, Tensor] | None
    classifier: nn.Linear | None
    lacks: dict[str, str]


def held_by(checkpoint: Path, num_classes: int, head: str) -> Held:
    """Look before features are made, which may take an hour. head: of --head, with --compare-heads its default.

    Raises:
        InputError: the checkpoint lacks what the head needs.
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
    """The problem. held: by the checkpoint whose encoder made the features. train: of the training split.

    counts: (C,) its images a class.
    """
    features = train.features.double() if train.features.numel() <= FEW_NUMBERS else train.features
    counts = torch.from_numpy(counts)
    return Problem(features.to(device), train.labels.to(device), counts, held.targets, held.classifier, held.lacks)
