"""Inputs for fitting heads, read from a checkpoint."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from moco.heads import HEADS
from moco.heads.candidates import FitInputs
from moco.methods import load_projection_and_targets
from moco.pretrained import read_classifier
from utils.errors import InputError
from utils.measure.feature_cache import Features

MAX_FLOAT64_ELEMENTS = 2**25  # larger feature matrices stay in float32; this one takes 256 MB in float64


def _read_projection_and_targets(checkpoint: Path, num_classes: int) -> tuple[nn.Module, Tensor]:
    projection, targets = load_projection_and_targets(checkpoint)
    if len(targets) != num_classes:
        raise InputError(f"checkpoint {checkpoint}: found targets of {len(targets)} classes, expected {num_classes}")
    return projection, targets


class CheckpointHeads(NamedTuple):
    """The parts of a checkpoint besides its encoder.

    Attributes:
        projection_and_targets: Projection head and class targets of TSC, or None.
        classifier: Weight (C, d) and bias (C,) of the last layer, or None.
        lacks: Maps a missing part ("targets" or "classifier") to the reason.
    """

    projection_and_targets: tuple[nn.Module, Tensor] | None
    classifier: tuple[Tensor, Tensor] | None
    lacks: dict[str, str]


def read_checkpoint_heads(checkpoint: Path, num_classes: int, head: str) -> CheckpointHeads:
    """Read the parts of a checkpoint before features are computed, which may take an hour.

    Args:
        head: Value of --head (with --compare-heads, the default).

    Raises:
        InputError: The checkpoint lacks a part that the head needs.
    """
    parts, lacks = {}, {}
    for need, read in (("targets", _read_projection_and_targets), ("classifier", read_classifier)):
        try:
            parts[need] = read(checkpoint, num_classes)
        except InputError as error:
            lacks[need] = str(error)
    if why := lacks.get(HEADS[head].needs):
        raise InputError(f"--head {head}: {why}")
    return CheckpointHeads(parts.get("targets"), parts.get("classifier"), lacks)


def build_fit_inputs(parts: CheckpointHeads, train: Features, counts: np.ndarray, device: torch.device) -> FitInputs:
    """Build the FitInputs on a device.

    Args:
        parts: Parts of the checkpoint whose encoder computed the features.
        train: Features of the training split.
        counts: (C,) training images per class.
    """
    features = train.features.double() if train.features.numel() <= MAX_FLOAT64_ELEMENTS else train.features
    counts = torch.from_numpy(counts)
    return FitInputs(
        features.to(device),
        train.labels.to(device),
        counts,
        parts.projection_and_targets,
        parts.classifier,
        parts.lacks,
    )
