"""Measure classifiers fitted to features of ImageNet-LT's size: 115,846 training images, d = 2048, C = 1000.

The features are synthetic: ReLU of class centres plus noise with decreasing variance per direction. There are 20,000
validation and 50,000 test images, balanced. The first row measures one pass over the features (loss and gradient),
compared with its two matrix products. The second row measures fit, selection and test of --head logistic: the number
of passes, the minutes, and the peak memory of the process including the features. By default, a tenth of the training
images is used. With --whole, all are used, which takes a quarter of an hour on two cores.
"""

import contextlib
import json
import resource
import sys
import time

import torch

from benchmarks import common
from imagenet_inat.datasets import LISTS_ROOT
from moco.heads import fits
from moco.heads.data import HeadData
from moco.heads.selection import select_head
from utils.measure.feature_cache import Features
from utils.run.compute import ComputeConfig

DIM, VAL, TEST = 2048, 20, 50  # images per class
NOISE = 4.5  # relative to the centres; gives about the error rate of ImageNet-LT
COUNTS = LISTS_ROOT / "ImageNet_LT" / "train_counts.json"
ROUNDS = 3


def sample_features(counts: torch.Tensor, centres: torch.Tensor, spectrum: torch.Tensor) -> Features:
    """Sample features of each class: ReLU of its centre plus noise.

    Args:
        counts: (C,) number of images per class.
        centres: (C, d).
        spectrum: (d,) relative standard deviation of the noise per direction.
    """
    labels = torch.arange(len(counts)).repeat_interleave(counts)
    features = torch.empty(len(labels), DIM)
    for block, y in zip(features.split(fits.BLOCK), labels.split(fits.BLOCK), strict=True):
        block.normal_().mul_(NOISE * spectrum).add_(centres[y]).relu_()
    return Features(features, labels)


def head_data(device: torch.device, counts: torch.Tensor) -> HeadData:
    """Return training, validation and test features. counts: (C,) training images per class."""
    spectrum = torch.arange(1, DIM + 1).float() ** -0.4
    centres = torch.randn(len(counts), DIM) * spectrum
    train, val, test = (
        sample_features(n, centres, spectrum) for n in (counts, counts.clamp(VAL, VAL), counts.clamp(TEST, TEST))
    )
    train = Features(train.features.to(device), train.labels.to(device))
    return HeadData(train, val, test, counts.numpy(), ComputeConfig(device), "val")


def measure_pass(data: HeadData, device: torch.device) -> str:
    """Measure loss and gradient over all images. The floor is their two matrix products, of (n, d) and (C, d)."""
    classes, (features, y) = data.num_classes, data.train
    weight, bias = torch.randn(classes, DIM).double() / DIM, torch.zeros(classes).double()
    w = weight.float().to(device)

    def matrix_products() -> None:
        for block in features.split(fits.BLOCK):
            (block @ w.T).T @ block

    functions = {"floor": matrix_products, "pass": lambda: fits._cross_entropy(features, y, weight, bias, None)}
    times = common.time_interleaved(functions, device, ROUNDS)
    return common.row(
        f"a pass, n = {len(features)}, d = {DIM}, C = {classes}", times["pass"], times["floor"], notes="float32"
    )


def main() -> None:
    torch.manual_seed(0)
    use_all = "--whole" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--whole"]
    device, counts = common.device_from_argv(), torch.tensor(json.loads(COUNTS.read_text()))
    data = head_data(device, counts if use_all else (counts / 10).ceil().long())
    print(common.HEADER)
    print(measure_pass(data, device), flush=True)
    passes, cross_entropy = [], fits._cross_entropy
    fits._cross_entropy = lambda *args: passes.append(1) or cross_entropy(*args)
    started = time.monotonic()
    with contextlib.redirect_stdout(sys.stderr):  # keep progress lines out of the table
        selected = select_head("logistic", "instance", "post", data)
    minutes = (time.monotonic() - started) / 60
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    values = ", ".join(f"{name} {value:g}" for name, value in selected.entry["values"].items())
    notes = f"{len(passes)} passes; peak memory of the process {peak:.1f} GiB; {values}: {selected.entry['acc1']:.1f} %"
    print(f"| --head logistic, selected and tested | {minutes:.1f} min | – | – | – | {notes} |")


if __name__ == "__main__":
    main()
