"""What a checkpoint lets heads be fitted to."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

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


def problem_of(checkpoint: Path, train: Features, counts: np.ndarray, device: torch.device) -> Problem:
    """The problem, with why heads cannot have what they need.

    Args:
        checkpoint: whose encoder made the features. train: of the training split. counts: (C,) its images a class.
    """
    found, lacks = {}, {}
    for need, read in (
        ("targets", lambda: _targets_for(checkpoint, len(counts))),
        ("classifier", lambda: read_classifier(checkpoint, len(counts))),
    ):
        try:
            found[need] = read()
        except InputError as error:
            lacks[need] = str(error)
    features = train.features.double() if train.features.numel() <= FEW_NUMBERS else train.features
    of_tsc, own = found.get("targets"), found.get("classifier")
    counts = torch.from_numpy(counts)
    return Problem(features.to(device), train.labels.to(device), counts, of_tsc, own, lacks)
