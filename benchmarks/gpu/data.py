"""Measure the loader and both stages at their real sizes, and estimate the time of an epoch of the real data sets."""

import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from statistics import median

import torch

from benchmarks.bench_loader import IMAGES, SPEC, write_photographs
from benchmarks.gpu.plan import NEEDS_CUDA, Plan
from benchmarks.gpu.suite import stream_lines
from imagenet_inat.datasets import REGISTRY
from imagenet_inat.images import LongTailDataset
from imagenet_inat.lists.known import PUBLISHED
from imagenet_inat.loaders import DeviceBatches, build_worker_loader
from imagenet_inat.samplers import ShuffledBatches
from moco.loader import Normalise, TwoCropsTransform, train_transform

TURNS = 3
KCL_EPOCHS = 200  # of the recipes; the 400 epochs of TSC are 200 of KCL and 200 with targets
REAL_SIZES_FLAGS = ["--targeted", "--steps", "3", "-b", "64"]
LOADER_NAMES = {False: "default", True: "--device-aug"}


def open_loader(plan: Plan, folder: Path, device_aug: bool) -> DeviceBatches:
    """Return a stage-1 loader of the photographs in a folder, with five batches per worker."""
    _, pixels, batch = plan.size
    transform = TwoCropsTransform(train_transform(SPEC.view, pixels, device_aug))
    dataset = LongTailDataset(folder, folder / "list.txt", 1, transform)
    repeat = -(-5 * plan.workers * batch // IMAGES)
    batches = ShuffledBatches(IMAGES, repeat, batch, seed=0)
    return build_worker_loader(dataset, batches, Normalise(SPEC.mean, SPEC.std, plan.device), plan.workers)


def images_per_second(loader: DeviceBatches, workers: int) -> float:
    """Return the images per second of an epoch.

    The first `workers` batches are not counted, because the loader processes are idle when they start.
    """
    num_images, started = 0, 0.0
    for number, (_, labels) in enumerate(loader):
        if number + 1 == workers:
            started = time.perf_counter()
        elif number >= workers:
            num_images += len(labels)
    if loader.normalise.device.type == "cuda":
        torch.cuda.synchronize()
    return num_images / (time.perf_counter() - started)


def measure_loader(plan: Plan, metrics: dict) -> Iterator[str]:
    """Yield a table of images/s (two views each), by default and with --device-aug. Set the metric `loader`."""
    metrics["loader"] = {}
    with tempfile.TemporaryDirectory() as name:
        write_photographs(Path(name))
        loaders = {device_aug: open_loader(plan, Path(name), device_aug) for device_aug in LOADER_NAMES}
        rates = {device_aug: [] for device_aug in LOADER_NAMES}
        for turn in range(TURNS):
            for device_aug, batches in loaders.items():
                batches.loader.batch_sampler.set_epoch(turn)
                rates[device_aug].append(images_per_second(batches, plan.workers))
        del loaders, batches  # end the loader processes
    yield f"500 × 375 JPEG files, {plan.workers} workers, batches of {plan.size[-1]}. Median of {TURNS} turns."
    yield ""
    yield "| loader | images/s | ÷ fastest step |"
    yield "|---|--:|--:|"
    fastest = max(metrics["rates"].values())
    for device_aug, name in LOADER_NAMES.items():
        metrics["loader"][name] = rate = median(rates[device_aug])
        yield f"| {name} | {rate:.0f} | {rate / fastest:.2f} (step: {fastest:.0f} images/s) |"


def estimate_epochs(plan: Plan, metrics: dict) -> Iterator[str]:
    """Yield a table of estimated times of an epoch, from the slower of step and loader."""
    rates, loaders = metrics["rates"], metrics["loader"]
    yield "| one GPU | step, images/s | loader, images/s | one epoch | all epochs of stage 1 |"
    yield "|---|--:|--:|--:|--:|"
    for data, many_classes in (("imagenet", False), ("inat", True)):
        num_images = PUBLISHED[REGISTRY[data].list_name("train")].lines
        for flags, loader_name in (("off", "default"), ("fast", "--device-aug")):
            if many_classes and flags == "off":
                continue  # not measured with so many classes
            seconds = {}
            for method in ("KCL", "TSC"):
                rate = rates["TSC fast, many classes" if many_classes and method == "TSC" else f"{method} {flags}"]
                seconds[method] = num_images / min(rate, loaders[loader_name])
                recipe = KCL_EPOCHS * sum(seconds.values())  # TSC starts with the KCL epochs
                name = f"{data} ({num_images:,} images), {method}, {flags}, loader {loader_name}"
                times = f"{_duration(seconds[method])} | {_duration(recipe)}"
                yield f"| {name} | {rate:.0f} | {loaders[loader_name]:.0f} | {times} |"


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def measure_real_sizes(plan: Plan, metrics: dict) -> Iterator[str]:
    """Yield the tables of benchmarks/many_classes/real_sizes.py: both stages on synthetic images."""
    for data in ("imagenet", "inat"):
        if plan.smoke_test:
            yield f"`benchmarks/many_classes/real_sizes.py --dataset {data}`: {NEEDS_CUDA} (on a CPU it takes minutes)"
            continue
        command = [sys.executable, "-m", "benchmarks.many_classes.real_sizes", "--dataset", data, *REAL_SIZES_FLAGS]
        yield from stream_lines(command)
        yield ""
