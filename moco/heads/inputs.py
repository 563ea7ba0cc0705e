"""Read what fitted heads need from a checkpoint, and prepare the training features."""

from pathlib import Path

import torch
from torch import Tensor, nn

from moco.heads import HEADS
from moco.methods import load_projection_and_targets
from moco.pretrained import read_classifier
from utils.errors import InputError
from utils.measure.feature_cache import Features

MAX_FLOAT64_ELEMENTS = 2**25  # larger feature matrices stay in float32; this one takes 256 MB in float64


def _read_targets(checkpoint: Path, num_classes: int) -> tuple[nn.Module, Tensor]:
    projection, targets = load_projection_and_targets(checkpoint)
    if len(targets) != num_classes:
        raise InputError(f"checkpoint {checkpoint}: found targets of {len(targets)} classes, expected {num_classes}")
    return projection, targets


def read_checkpoint_parts(checkpoint: Path, num_classes: int, head: str) -> tuple[dict[str, tuple], dict[str, str]]:
    """Read the parts of a checkpoint besides its encoder. Return `parts` and `lacks` of `HeadData`.

    Call this before features are computed, which may take an hour.

    Args:
        head: Value of --head (with --compare-heads, the default).

    Raises:
        InputError: The checkpoint lacks a part that the head needs.
    """
    parts, lacks = {}, {}
    for part, read in (("targets", _read_targets), ("classifier", read_classifier)):
        try:
            parts[part] = read(checkpoint, num_classes)
        except InputError as error:
            lacks[part] = str(error)
    if why := lacks.get(HEADS[head].needs):
        raise InputError(f"--head {head}: {why}")
    return parts, lacks


def prepare_training_features(train: Features, device: torch.device) -> Features:
    """Move training features to a device, in float64 unless they have more than MAX_FLOAT64_ELEMENTS elements."""
    features = train.features.double() if train.features.numel() <= MAX_FLOAT64_ELEMENTS else train.features
    return Features(features.to(device), train.labels.to(device))
