"""Features of a run after it ended: its last checkpoint on its validation split."""

from argparse import Namespace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from imagenet_inat.datasets import names, row
from moco.builder import KCL
from moco.encoders import get_encoder
from moco.targets import assign_targets
from utils import checkpoint, distributed, resolve
from utils.errors import InputError
from utils.monitor import assignment_of, extract_features, open_loaders, target_cosines
from utils.runs import Stage


class RunFeatures(NamedTuple):
    """What a checkpoint makes of the validation split.

    features: (n, D) unit, labels: (n,). class_counts: (C,) training images. epoch: whole epochs done.
    targets: (C, D), row y the target assigned to class y, and centroid_cosines (C,) of the running
    centroids to them; None where the run has no targets, or not yet.
    """

    features: Tensor
    labels: Tensor
    class_counts: np.ndarray
    epoch: int
    targets: Tensor | None
    centroid_cosines: Tensor | None


def features_of(stage: Stage, device: torch.device, data_root: str | None = None) -> RunFeatures:
    """Encode the validation split with the query encoder of last.pth.tar, as --monitor-freq does.

    Args:
        stage: of a pre-training. data_root: where the data is now, if not where it was.

    Raises:
        InputError: the checkpoint, the data set's row, its lists or its images are not there, or
            an argument of the run, as in a folder of another version; or a feature is not finite.
    """
    try:
        return _features_of(stage, device, data_root)
    except AttributeError as error:
        if not isinstance(error.obj, Namespace):
            raise
        raise InputError(f"{stage.folder / 'args.json'}: has no '{error.name}' among its arguments") from None


def need_data(stage: Stage, data_root: str) -> None:
    """Check that the data of a run is below a folder: who only reads a run makes none, nor folders for it.

    Raises:
        InputError: it is not. Of a set that the registry does not know nothing is said here.
    """
    if stage.args.get("dataset") not in names():
        return
    spec = row(stage.args["dataset"])
    folders = [Path(data_root)]
    if spec.prepare:
        root, lists = spec.prepare(Path(data_root), stage.args.get("imbalance") or spec.imbalance)
        folders = [root / "images", lists]
    for folder in folders:
        if not folder.is_dir():
            raise InputError(
                f"{folder}: no such folder; a report reads the images of {stage.folder} and makes none: say where they "
                "are with --data-root, or --no-features"
            )


def _features_of(stage: Stage, device: torch.device, data_root: str | None) -> RunFeatures:
    args = Namespace(**stage.args)
    if args.dataset not in names():
        raise InputError(f"--dataset {args.dataset}: no row of imagenet_inat/datasets.py")
    args.data_root, args.device = data_root or args.data_root, device
    need_data(stage, args.data_root)
    args.workers = min(args.workers or 0, distributed.usable_cores())
    path = stage.folder / checkpoint.LAST
    state = checkpoint.load(path, needs=("state_dict", "epoch"))
    counts = resolve.open_split(args, "train", None).class_counts
    loader = open_loaders(args, ("val",))["val"]
    model = load_model(args, state, path).to(device)
    with tqdm(total=len(loader), desc=f"{stage.folder}: validation", unit="batch", leave=False, disable=None) as bar:
        features, labels = extract_features(model.encoder_q, loader, bar.update, f"checkpoint {path}, val")
    targets = cosines = None
    if (assignment := assignment_of(model)) is not None:
        targets = model.optimal_target[:: model.tr]
        cosines = target_cosines(model.class_centroid, targets, assignment).cpu()
        targets = targets[assignment].cpu()
    return RunFeatures(features.cpu(), labels.cpu(), counts, state["epoch"], targets, cosines)


def load_model(args: Namespace, state: dict, path) -> KCL:
    """The model of a stage-1 checkpoint, in the TSC phase if that is where it was written."""
    weights = checkpoint.unpacked(state)
    if "class_centroid" not in weights:
        raise InputError(f"checkpoint {path}: has no class_centroid, expected one of stage 1")
    targets = weights.get("optimal_target")
    model = KCL(
        get_encoder(args.arch, args.image_size),
        args.moco_dim,
        args.moco_k,
        mlp=args.mlp,
        tr=args.tr,
        num_classes=len(weights["class_centroid"]),
        targets=None if targets is None else targets[:: args.tr],
    )
    checkpoint.load_into(model, weights, path)
    model.targeted = state.get("phase") == "TSC"
    if model.targeted:
        model.assignment = assign_targets(model.class_centroid, model.optimal_target[:: args.tr])
    return model.eval()
