"""Read what fitted heads need from a checkpoint, and prepare the training features."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from moco.heads import HEADS
from moco.heads.data import HeadData
from moco.methods.loading import load_projection_and_targets
from moco.pretrained import read_classifier, read_state
from utils.errors import InputError
from utils.measure.feature_cache import Features, weights_digest
from utils.run.compute import ComputeConfig

MAX_FLOAT64_ELEMENTS = 2**25  # larger feature matrices stay in float32; a matrix of this size takes 256 MB in float64


def _read_targets(checkpoint: Path, num_classes: int) -> tuple[nn.Module, Tensor]:
    projection, targets = load_projection_and_targets(checkpoint)
    if len(targets) != num_classes:
        raise InputError(f"checkpoint {checkpoint}: found targets of {len(targets)} classes, expected {num_classes}")
    return projection, targets


def _read_own_classifier(checkpoint: Path, num_classes: int) -> tuple[Tensor, Tensor, float | None, nn.Module | None]:
    """Return the classifier of a run: weight, bias and scale of `Fit`, and the projection before it, if any."""
    args = read_state(checkpoint).get("args")
    if isinstance(args, dict) and args.get("joint") and args.get("joint_classifier") == "targets":
        projection, targets = _read_targets(checkpoint, num_classes)
        return targets, torch.zeros(num_classes), 1 / args["moco_t"], projection
    return *read_classifier(checkpoint, num_classes), None


def read_checkpoint_parts(checkpoint: Path, num_classes: int, head: str) -> tuple[dict[str, tuple], dict[str, str]]:
    """Read the parts of a checkpoint besides its encoder. Return `parts` and `lacks` of `HeadData`.

    Call this before features are computed, which may take an hour.

    Args:
        head: Value of --head (with --compare-heads, the default).

    Raises:
        InputError: The checkpoint lacks a part that the head needs.
    """
    parts, lacks = {}, {}
    for part, read in (("targets", _read_targets), ("classifier", _read_own_classifier)):
        try:
            parts[part] = read(checkpoint, num_classes)
        except InputError as error:
            lacks[part] = str(error)
    if why := lacks.get(HEADS[head].needs):
        raise InputError(f"--head {head}: {why}")
    return parts, lacks


def encoder_digest(network: nn.Module) -> str:
    """Return a hash of an encoder's weights, which identifies the features that heads were fitted to."""
    return weights_digest(network)


def build_head_data(features: dict[str, Features], counts: np.ndarray, compute: ComputeConfig, **others) -> HeadData:
    """Return the data of fitted heads, with the training features on the device.

    Args:
        features: Those of train, val and test. They are fitted in float64 unless there are more than
            MAX_FLOAT64_ELEMENTS.
        counts: (C,) training images per class.
        others: Further attributes of HeadData.
    """
    train = features["train"].features
    train = train.double() if train.numel() <= MAX_FLOAT64_ELEMENTS else train
    train = Features(train.to(compute.device), features["train"].labels.to(compute.device))
    return HeadData(train, features["val"], features["test"], counts, compute, **others)
