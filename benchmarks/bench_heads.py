"""Measure classifiers fitted to features of ImageNet-LT's size: 115,846 training images, d = 2048, C = 1000.

The features are synthetic: ReLU of class centres plus noise with decreasing variance per direction; 20,000 validation
and 50,000 test images, balanced. First row: one pass over the features (loss and gradient), compared with its two
matrix products. Second row: fit, selection and test of --head logistic, with the number of passes, the minutes and the
peak memory of the process, including the features. With --whole this takes a quarter of an hour on two cores; without
it, a tenth of the training images is used.
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
from moco.heads.choice import Split, Task, choose
from moco.heads.fitted import Problem
from utils.measure.kept_features import Features
from utils.run.compute import ComputeConfig

D, VAL, TEST = 2048, 20, 50  # images per class
NOISE = 4.5  # relative to the centres; gives about the error rate of ImageNet-LT
COUNTS = LISTS_ROOT / "ImageNet_LT" / "train_counts.json"
ROUNDS = 3


def draw(counts: torch.Tensor, centres: torch.Tensor, spectrum: torch.Tensor) -> Features:
    labels = torch.arange(len(counts)).repeat_interleave(counts)
    features = torch.empty(len(labels), D)
    for z, y in zip(features.split(fits.BLOCK), labels.split(fits.BLOCK), strict=True):
        z.normal_().mul_(NOISE * spectrum).add_(centres[y]).relu_()
    return Features(features, labels)


def task(where: torch.device, counts: torch.Tensor) -> Task:
    spectrum = torch.arange(1, D + 1).float() ** -0.4
    centres = torch.randn(len(counts), D) * spectrum
    train, *evaluated = (draw(n, centres, spectrum) for n in (counts, counts.clamp(VAL, VAL), counts.clamp(TEST, TEST)))
    problem = Problem(train.features.to(where), train.labels.to(where), counts)
    splits = {name: Split(found, where) for name, found in zip(("val", "test"), evaluated, strict=True)}
    return Task(problem, splits, ComputeConfig(where), "val")


def measure_pass(problem: Problem, where: torch.device) -> str:
    """Measure loss and gradient of all images. The floor is their two matrix products, of (n, d) and (C, d)."""
    classes, z = problem.num_classes, problem.features
    weight, bias, y = torch.randn(classes, D).double() / D, torch.zeros(classes).double(), problem.labels
    w = weight.float().to(where)

    def products() -> None:
        for block in z.split(fits.BLOCK):
            (block @ w.T).T @ block

    works = {"floor": products, "pass": lambda: fits._cross_entropy(z, y, weight, bias, None)}
    times = common.interleaved(works, where, ROUNDS)
    return common.row(f"a pass, n = {len(z)}, d = {D}, C = {classes}", times["pass"], times["floor"], notes="float32")


def main() -> None:
    torch.manual_seed(0)
    whole = "--whole" in sys.argv
    sys.argv = [word for word in sys.argv if word != "--whole"]
    where, counts = common.device(), torch.tensor(json.loads(COUNTS.read_text()))
    of = task(where, counts if whole else (counts / 10).ceil().long())
    print(common.HEADER)
    print(measure_pass(of.problem, where), flush=True)
    passes, cross_entropy = [], fits._cross_entropy
    fits._cross_entropy = lambda *args: passes.append(1) or cross_entropy(*args)
    started = time.monotonic()
    with contextlib.redirect_stdout(sys.stderr):  # keeps progress lines out of the table
        chosen = choose("logistic", "instance", "post", of)
    minutes = (time.monotonic() - started) / 60
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    values = ", ".join(f"{name} {value:g}" for name, value in chosen.entry["values"].items())
    notes = f"{len(passes)} passes; peak memory of the process {peak:.1f} GiB; {values}: {chosen.entry['acc1']:.1f} %"
    print(f"| --head logistic, chosen and tested | {minutes:.1f} min | – | – | – | {notes} |")


if __name__ == "__main__":
    main()
