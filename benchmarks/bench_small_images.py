"""Measure stage 1 on small images: the training loop of the script, compared with its encoders only.

resnet20, 28 px images, batch 256. The floor is forward, backward and optimiser step of the same encoders on tensors in
memory, without loss and loader. In-batch contrast has one encoder for both views. With a queue, the query encoder has
a gradient and the key encoder has none. Loop and floor take turns; ratios are medians over the turns.
"""

import contextlib
import io
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image

import main_moco_supcon_imba as stage1
from benchmarks import common
from imagenet_inat.loaders import build_stage1_loader
from moco.methods.base import Method
from utils.distributed.launch import ProcessInfo
from utils.optimizers import sgd
from utils.run.compute import ComputeConfig
from utils.run.state import RunState

IMAGES, PIXELS, BATCH, CLASSES = 1024, 28, 256, 10
TURNS = 7
CONTRAST_FLAGS = {"batch": "--contrast batch", "queue": "--moco-k 1024"}
LOADER_FLAGS = {
    "default": "",
    "--device-aug off": "--device-aug off",
    "files, one loader process": "--cache off -j 1",
}


def write_images(folder: Path) -> None:
    """Write PNG files of noise, and split lists of them."""
    rng = np.random.default_rng(0)
    for number in range(IMAGES):
        pixels = rng.integers(0, 256, (PIXELS, PIXELS, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    for split in ("train", "val", "test"):
        text = "".join(f"{number}.png {number % CLASSES}\n" for number in range(IMAGES))
        (folder / f"custom_{split}.txt").write_text(text)


def epoch_functions(folder: Path, flags: str, device: torch.device) -> dict[str, Callable[[], None]]:
    """Return the two functions to measure, `floor` and `loop`. Each runs one epoch."""
    command = f"--dataset custom --data-root {folder} --splits {folder} --views cifar -a resnet20 --image-size {PIXELS}"
    command += f" --mlp -b {BATCH} --seed 0 --device {device} --run-dir {folder / 'run'} {flags}"
    parser = stage1.get_args_parser()
    plan = stage1.prepare(parser, parser.parse_args(command.split()))
    cores = torch.get_num_threads()
    workers = cores // 2 if plan.run.launch.workers is None else plan.run.launch.workers
    process = ProcessInfo(device, workers)
    with contextlib.redirect_stdout(io.StringIO()):  # hide the log line about views
        loader = build_stage1_loader(plan.data, "instance", BATCH, 0, process)
    method, compute = plan.method, ComputeConfig(process.device)
    method.check_extra_state(RunState(), CLASSES)
    model = method.build(CLASSES, RunState(seed=0), device).to(device)
    optimizer = sgd(model.parameters(), 0.03, 0.9, 1e-4)
    epoch = iter(range(10**6))

    def loop() -> None:
        torch.set_num_threads(max(1, cores - workers))
        loader.start_at(next(epoch), 0)
        for views, labels in loader:
            compute.step(model(*views, labels).loss, optimizer)
        torch.set_num_threads(cores)

    return {"floor": lambda: run_encoders(method, optimizer, device), "loop": loop}


def run_encoders(method: Method, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """Run the encoders only, for one epoch."""
    query, *key = method.encoders()
    views = torch.randn(2, BATCH, 3, PIXELS, PIXELS, device=device)
    for _ in range(IMAGES // BATCH):
        optimizer.zero_grad(set_to_none=True)
        query(views[0] if key else views.flatten(0, 1)).sum().backward()
        with torch.no_grad():
            for encoder in key:
                encoder(views[1])
        optimizer.step()


def measure(folder: Path, contrast: str, loading: str, device: torch.device) -> str:
    """Return a table row. contrast and loading are keys of CONTRAST_FLAGS and LOADER_FLAGS."""
    functions = epoch_functions(folder, f"{CONTRAST_FLAGS[contrast]} {LOADER_FLAGS[loading]}", device)
    times = common.time_interleaved(functions, device, TURNS)
    rates = (IMAGES / median(times[name]) for name in ("loop", "floor"))
    notes = "{:.0f} images/s, encoders only {:.0f}".format(*rates)
    return common.row(f"stage 1, {contrast}, {loading}", times["loop"], times["floor"], notes=notes)


def main() -> None:
    started = time.monotonic()
    print(common.HEADER)
    with tempfile.TemporaryDirectory() as name:
        write_images(Path(name))
        for contrast in CONTRAST_FLAGS:
            for loading in LOADER_FLAGS:
                print(measure(Path(name), contrast, loading, common.device_from_argv()), flush=True)
    print(f"\n{TURNS} turns of an epoch of {IMAGES} images each, {time.monotonic() - started:.0f} s in all")


if __name__ == "__main__":
    main()
