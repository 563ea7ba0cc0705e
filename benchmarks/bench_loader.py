"""Measure the time that a loader worker, and then the device, spend on an image.

    python -m benchmarks.bench_loader

The input is 500 × 375 JPEG files, the output two augmented views of 224 px. The benchmark measures the CPU time of a
process with one thread, which other programs on the machine affect less. The pipelines take turns; results are medians
over the turns. Our pipelines are compared with floors and with torchvision's usual pipeline (textbook), which
normalises in the worker. "Collated" includes the collation of the batch, because float views have four times the bytes
of uint8 views.
"""

import multiprocessing
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image
from torch.utils.data import default_collate
from torchvision import transforms as T

from imagenet_inat.datasets import REGISTRY
from imagenet_inat.images import LongTailDataset
from moco.loader import Normalise, TwoCropsTransform, train_transform

SPEC = REGISTRY["imagenet"]
SIZE, IMAGES, TURNS = 224, 32, 25


def write_photographs(folder: Path) -> None:
    """Write JPEG files that take a realistic time to decode: smooth gradients, edges and grain."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:375, :500]
    for number in range(IMAGES):
        image = np.empty((375, 500, 3))
        for channel in range(3):
            across, down, phase = rng.uniform((0.002, 0.002, 0), (0.02, 0.02, 6))
            image[..., channel] = 128 + 100 * np.sin(across * x + down * y + phase)
        for _ in range(12):
            left, top, radius = rng.uniform((0, 0, 10), (500, 375, 90))
            disc = (x - left) ** 2 + (y - top) ** 2 < radius**2
            image[disc] = 0.4 * image[disc] + 0.6 * rng.uniform(0, 255, 3)
        image += rng.normal(0, 12, image.shape)
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.jpg", quality=90)
    (folder / "list.txt").write_text("".join(f"{number}.jpg 0\n" for number in range(IMAGES)))


def two_view_loader(folder: Path, view: Callable | None) -> Callable[[int], tuple]:
    """Return a function that loads an image in the usual way: it decodes the file, then computes two views.

    Without `view`, the function only decodes.
    """

    def load(number: int) -> tuple:
        image = Image.open(folder / f"{number}.jpg").convert("RGB")
        return ([view(image), view(image)] if view else torch.empty(0)), 0

    return load


def pipelines(folder: Path) -> dict[str, Callable[[int], tuple]]:
    """Return name -> pipeline, a function from an image number to the sample of a dataset."""

    def ours(device_aug: bool) -> Callable[[int], tuple]:
        transform = TwoCropsTransform(train_transform(SPEC.view, SIZE, device_aug))
        data = LongTailDataset(folder, folder / "list.txt", 1, transform)
        return lambda number: data[(number, number)]

    crop = [T.RandomResizedCrop(SIZE), T.RandomHorizontalFlip()]
    textbook = [*crop, T.ColorJitter(0.4, 0.4, 0.4, 0), T.ToTensor(), T.Normalize(SPEC.mean, SPEC.std)]
    return {
        "floor: decode": two_view_loader(folder, None),
        "floor: decode, crop, flip, uint8": two_view_loader(folder, T.Compose([*crop, T.PILToTensor()])),
        "textbook torchvision": two_view_loader(folder, T.Compose(textbook)),
        "default": ours(device_aug=False),
        "--device-aug": ours(device_aug=True),
    }


def time_worker(folder: Path) -> dict[str, list[float]]:
    """Return the CPU milliseconds per image of each pipeline, without and with collation into a batch."""
    torch.set_num_threads(1)
    times = {name: [] for name in pipelines(folder)}
    for turn in range(TURNS + 1):
        for name, load in pipelines(folder).items():
            start = time.process_time()
            samples = [load(number) for number in range(IMAGES)]
            loaded = time.process_time()
            default_collate(samples)
            collated = time.process_time()
            if turn:  # the first turn is a warm-up
                times[name].append((loaded - start, collated - start))
    return {name: [1000 * median(part) / IMAGES for part in zip(*rows, strict=True)] for name, rows in times.items()}


def time_device(folder: Path, device: torch.device) -> dict[str, float]:
    """Return the milliseconds per image (two views) from the worker's batch to the model's input, for our pipelines.

    On the CPU, one thread is used.
    """
    torch.set_num_threads(1)
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    normalise, times = Normalise(SPEC.mean, SPEC.std, device), {}
    for name, load in list(pipelines(folder).items())[-2:]:
        views, _ = default_collate([load(number) for number in range(IMAGES)])
        rows = []
        for _ in range(TURNS + 1):
            start = clock()
            for view in views:
                normalise(view)
            if device.type == "cuda":
                torch.cuda.synchronize()
            rows.append(clock() - start)
        times[name] = 1000 * median(rows[1:]) / IMAGES
    return times


def main() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_photographs(folder)
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as worker:
            times = worker.submit(time_worker, folder).result()
        device_times = time_device(folder, device)
    print_table(times, device_times, "the CPU" if device.type == "cpu" else torch.cuda.get_device_name())


def print_table(times: dict[str, list[float]], device_times: dict[str, float], device_name: str) -> None:
    """Print a Markdown table with one row per pipeline."""
    floor, textbook = times["floor: decode, crop, flip, uint8"], times["textbook torchvision"]
    print("| loader worker, 500 × 375 JPEG to two 224 px views | ms/image | ÷ crop floor | ÷ textbook ", end="")
    print(f"| collated, ms/image | ÷ textbook | then on {device_name}, ms/image |")
    print("|---|---|---|---|---|---|---|")
    for name, (loaded, collated) in times.items():
        ratios = f"{loaded / floor[0]:.2f} | {loaded / textbook[0]:.2f} | {collated:.2f} | {collated / textbook[1]:.2f}"
        print(f"| {name} | {loaded:.2f} | {ratios} | {f'{device_times[name]:.2f}' if name in device_times else ''} |")


if __name__ == "__main__":
    main()
