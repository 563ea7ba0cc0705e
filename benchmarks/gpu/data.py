"""Measure the loader, the time of an epoch of the real data sets, and both stages at their real sizes."""

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
from benchmarks.gpu.suite import lines_of
from imagenet_inat.datasets import REGISTRY
from imagenet_inat.images import LongTailDataset
from imagenet_inat.lists.known import PUBLISHED
from imagenet_inat.loaders import DeviceBatches, train_loader
from imagenet_inat.samplers import ShuffledBatches
from moco.loader import Normalise, TwoCropsTransform, train_transform

TURNS = 3
KCL_EPOCHS = 200  # of the recipe; TSC's 400 epochs are 200 of KCL and 200 of TSC
REAL_SIZES = ["--targeted", "--steps", "3", "-b", "64"]
AUGMENTED = {False: "default", True: "--device-aug"}


def open_loader(plan: Plan, folder: Path, device_aug: bool) -> DeviceBatches:
    """Return a stage-1 loader of the photographs in a folder, with five batches per worker; the first is not timed."""
    _, pixels, batch = plan.size
    transform = TwoCropsTransform(train_transform(SPEC.view, pixels, device_aug))
    dataset = LongTailDataset(folder, folder / "list.txt", 1, transform)
    repeat = -(-5 * plan.workers * batch // IMAGES)
    batches = ShuffledBatches(IMAGES, repeat, batch, seed=0)
    return train_loader(dataset, batches, Normalise(SPEC.mean, SPEC.std, plan.where), plan.workers)


def images_a_second(loader: DeviceBatches, workers: int) -> float:
    """Return the images per second of an epoch, without its first `workers` batches, which find idle processes."""
    counted, started = 0, 0.0
    for number, (_, labels) in enumerate(loader):
        if number + 1 == workers:
            started = time.perf_counter()
        elif number >= workers:
            counted += len(labels)
    if loader.normalise.device.type == "cuda":
        torch.cuda.synchronize()
    return counted / (time.perf_counter() - started)


def loader(plan: Plan, facts: dict) -> Iterator[str]:
    """Yield a table of images/s (two views each), by default and with --device-aug. Set the fact `loader`."""
    facts["loader"] = {}
    with tempfile.TemporaryDirectory() as name:
        write_photographs(Path(name))
        loaders = {device_aug: open_loader(plan, Path(name), device_aug) for device_aug in AUGMENTED}
        rates = {device_aug: [] for device_aug in AUGMENTED}
        for turn in range(TURNS):
            for device_aug, batches in loaders.items():
                batches.loader.batch_sampler.set_epoch(turn)
                rates[device_aug].append(images_a_second(batches, plan.workers))
        del loaders, batches  # ends the loader processes
    yield f"500 × 375 JPEG files, {plan.workers} workers, batches of {plan.size[-1]}. Median of {TURNS} turns."
    yield ""
    yield "| loader | images/s | ÷ what the fastest step takes |"
    yield "|---|--:|--:|"
    fastest = max(facts["rates"].values())
    for device_aug, name in AUGMENTED.items():
        facts["loader"][name] = rate = median(rates[device_aug])
        yield f"| {name} | {rate:.0f} | {rate / fastest:.2f} (of {fastest:.0f}) |"


def epochs(plan: Plan, facts: dict) -> Iterator[str]:
    """Yield a table of the time of an epoch, from the slower of step and loader."""
    rates, loaders = facts["rates"], facts["loader"]
    yield "| one GPU | step, images/s | loader, images/s | an epoch | the recipe of stage 1 |"
    yield "|---|--:|--:|--:|--:|"
    for data, many in (("imagenet", False), ("inat", True)):
        images = PUBLISHED[REGISTRY[data].list_name("train")].lines
        for flags, aug in (("off", "default"), ("fast", "--device-aug")):
            if many and flags == "off":
                continue  # not measured with so many classes
            seconds = {}
            for method in ("KCL", "TSC"):
                rate = rates["TSC fast, many classes" if many and method == "TSC" else f"{method} {flags}"]
                seconds[method] = images / min(rate, loaders[aug])
                recipe = KCL_EPOCHS * sum(seconds.values())  # TSC starts with the KCL epochs
                name = f"{data} ({images:,} images), {method}, {flags}, loader {aug}"
                yield f"| {name} | {rate:.0f} | {loaders[aug]:.0f} | {_time(seconds[method])} | {_time(recipe)} |"


def _time(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def real_sizes(plan: Plan, facts: dict) -> Iterator[str]:
    """Yield the tables of benchmarks/many_classes/real_sizes.py: both stages on synthetic images."""
    for data in ("imagenet", "inat"):
        if plan.rehearsal:
            yield f"`benchmarks/many_classes/real_sizes.py --dataset {data}`: {NEEDS_CUDA} (on a CPU it takes minutes)"
            continue
        command = [sys.executable, "-m", "benchmarks.many_classes.real_sizes", "--dataset", data, *REAL_SIZES]
        yield from lines_of(command)
        yield ""
