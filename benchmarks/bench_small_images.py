"""Measure stage 1 on small images: the whole training loop, compared with the bare encoders on existing tensors.

resnet20, 28 px images, batch 256, with the training loop of the script. The floor is forward, backward and optimiser
step of the same encoders, without loss and loader. In-batch contrast has one encoder for both views; with a queue, the
query encoder has a gradient and the key encoder has none. Loop and floor take turns; ratios are medians over the turns.
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
from imagenet_inat import options
from imagenet_inat.loaders import open_pairs
from moco.methods import Method, method_of
from utils.optimizers import sgd
from utils.run.compute import ComputeConfig
from utils.run.launch import Place
from utils.run.state import RunState

IMAGES, PIXELS, BATCH, CLASSES = 1024, 28, 256, 10
TURNS = 7
CONTRASTS = {"batch": "--contrast batch", "queue": "--moco-k 1024"}
LOADING = {
    "default": "",
    "--device-aug": "--device-aug",
    "files, one loader process": "--cache off -j 1",
}


def write_images(folder: Path) -> None:
    """Write PNG files of noise, and their lists."""
    rng = np.random.default_rng(0)
    for number in range(IMAGES):
        pixels = rng.integers(0, 256, (PIXELS, PIXELS, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    for split in ("train", "val", "test"):
        text = "".join(f"{number}.png {number % CLASSES}\n" for number in range(IMAGES))
        (folder / f"custom_{split}.txt").write_text(text)


def works(folder: Path, flags: str, where: torch.device) -> dict[str, Callable[[], None]]:
    """Return the two functions to measure, `floor` and `loop`; each runs one epoch."""
    words = f"--dataset custom --data-root {folder} --splits {folder} --views cifar -a resnet20 --image-size {PIXELS}"
    words += f" --mlp -b {BATCH} --seed 0 --device {where} --run-dir {folder / 'run'} {flags}"
    args = stage1.get_args_parser().parse_args(words.split())
    stage1.prepare(args)
    cores = torch.get_num_threads()
    workers = cores // 2 if args.workers is None else args.workers
    place = Place(where, workers)
    with contextlib.redirect_stdout(io.StringIO()):  # hides the log line about views
        loader = open_pairs(options.data_of(args), "instance", BATCH, 0, place)
    method, compute = method_of(args), ComputeConfig(place.device)
    method.read_state(RunState())
    model = method.build(CLASSES, RunState(seed=0), where).to(where)
    optimizer = sgd(model.parameters(), 0.03, 0.9, 1e-4)
    epoch = iter(range(10**6))

    def loop() -> None:
        torch.set_num_threads(max(1, cores - workers))
        loader.start_at(next(epoch), 0)
        for views, labels in loader:
            compute.step(model(*views, labels).loss, optimizer)
        torch.set_num_threads(cores)

    return {"floor": lambda: bare(method, optimizer, where), "loop": loop}


def bare(method: Method, optimizer: torch.optim.Optimizer, where: torch.device) -> None:
    """Run only the encoders, for one epoch."""
    query, *key = method.encoders()
    views = torch.randn(2, BATCH, 3, PIXELS, PIXELS, device=where)
    for _ in range(IMAGES // BATCH):
        optimizer.zero_grad(set_to_none=True)
        query(views[0] if key else views.flatten(0, 1)).sum().backward()
        with torch.no_grad():
            for encoder in key:
                encoder(views[1])
        optimizer.step()


def measure(folder: Path, contrast: str, loading: str, where: torch.device) -> str:
    pair = works(folder, f"{CONTRASTS[contrast]} {LOADING[loading]}", where)
    times = common.interleaved(pair, where, TURNS)
    rates = (IMAGES / median(times[name]) for name in ("loop", "floor"))
    notes = "{:.0f} images/s, bare encoders {:.0f}".format(*rates)
    return common.row(f"stage 1, {contrast}, {loading}", times["loop"], times["floor"], notes=notes)


def main() -> None:
    started = time.monotonic()
    print(common.HEADER)
    with tempfile.TemporaryDirectory() as name:
        write_images(Path(name))
        for contrast in CONTRASTS:
            for loading in LOADING:
                print(measure(Path(name), contrast, loading, common.device()), flush=True)
    print(f"\n{TURNS} turns of an epoch of {IMAGES} images each, {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
