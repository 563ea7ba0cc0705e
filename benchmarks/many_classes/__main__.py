"""Measure stage 1 (KCL and TSC) with many classes: start, step, memory and checkpoint.

    python -m benchmarks.many_classes 10 1000 8142 80000

The floor is the KCL step with the first number of classes, at which the encoders dominate. Each
class has two images, all of them links to one 64 px JPEG. Targets are random unit vectors, and
class y keeps target y. benchmarks.many_classes.assignment measures the assignment. Linux only.
"""

import shutil
import sys
import tempfile
from pathlib import Path
from statistics import median

import numpy as np
import torch

from benchmarks import common
from benchmarks.many_classes.real_sizes import REPOSITORY, link_images, run_steps
from moco.targets.point_sets import random_points
from utils.cli.numbers import positive_int
from utils.cli.parser import Parser

MIN_IMAGES = 2000  # so that an epoch has enough steps
HEADER = (
    "| classes | phase | ready after | step | step ÷ floor | peak memory | checkpoint |\n|--:|---|--:|--:|--:|--:|--:|"
)
TSC = "--targeted --kcl-epochs 0 --sep_t --tw 0.2 --assignment-interval 0"
PHASES = {"KCL": "", "TSC": TSC}


def get_args_parser() -> Parser:
    parser = Parser(description=__doc__)
    parser.add_argument(
        "classes", type=positive_int, nargs="+", metavar="C", help="Numbers of classes; the first determines the floor."
    )
    parser.add_argument("-a", "--arch", default="resnet18", help="Encoder.")
    parser.add_argument("--image-size", type=positive_int, default=64, metavar="PX", help="Input size in pixels.")
    parser.add_argument("-b", "--batch-size", type=positive_int, default=64, metavar="N", help="Batch size.")
    parser.add_argument(
        "--steps", type=positive_int, default=12, metavar="N", help="Steps per phase; the first two are not timed."
    )
    return parser


def build(folder: Path, num_classes: int) -> str:
    """Write images, lists and targets. Return the flags that select them."""
    images = max(MIN_IMAGES, 2 * num_classes)
    lines = [f"{i // 1000}/{i}.jpg {i % num_classes}" for i in range(images)]
    link_images(folder / "images", {line.split()[0] for line in lines}, size=(64, 64))
    for name in ("train", "val"):  # the only lists that stage 1 reads
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
    np.save(folder / "targets.npy", random_points(num_classes, 128, torch.Generator().manual_seed(0)).numpy())
    return f"--dataset custom --data-root {folder}/images --train-txt {folder}/train.txt --val-txt {folder}/val.txt"


def measure(args, num_classes: int, folder: Path) -> dict[str, tuple[float, str]]:
    """Return phase -> (seconds per step, table row with a placeholder for the cells `step` and `step ÷ floor`)."""
    data, rows = build(folder, num_classes), {}
    for phase, flags in PHASES.items():
        run = folder / phase
        arguments = (
            f"{data} -a {args.arch} --image-size {args.image_size} -b {args.batch_size} -j 0 --cache off --seed 0 "
            f"--mlp --epochs 1 --run-dir {run} {flags}"
        )
        arguments += f" --targets {folder}/targets.npy" if flags else ""
        command = [sys.executable, str(REPOSITORY / "main_moco_supcon_imba.py"), *arguments.split()]
        measured = run_steps(command, args.steps, folder)
        checkpoint_mib = (run / "last.pth.tar").stat().st_size / 2**20
        seconds = median(np.diff(measured["steps"])[1:])
        memory = f"{measured['peak']:,.0f} MiB | {checkpoint_mib:,.0f} MiB"
        row = f"| {num_classes:,} | {phase} | {measured['set_up']:.1f} s | {{}} | {memory} |"
        rows[phase] = seconds, row
    return rows


def main() -> None:
    args, floor = get_args_parser().parse_args(), None
    print(f"{common.describe_machine()}\n")
    print(f"{args.arch}, {args.image_size} px, {args.batch_size} images per step\n\n{HEADER}")
    for num_classes in args.classes:
        folder = Path(tempfile.mkdtemp())
        try:
            rows = measure(args, num_classes, folder)
        finally:
            shutil.rmtree(folder)
        floor = floor or rows["KCL"][0]
        for seconds, row in rows.values():
            print(row.format(f"{1000 * seconds:.0f} ms | {seconds / floor:.2f}"), flush=True)


if __name__ == "__main__":
    main()
