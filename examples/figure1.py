"""Reproduce the paper's figure 1 with digits: where KCL and TSC place three classes on a circle.

    python -m examples.figure1

The command trains KCL and TSC for the same number of epochs on three digit classes, with
35:35:35 and with 100:2:2 training images. The features are two-dimensional. It writes
docs/figure1.png, and the angles between the class centres to docs/figure1.md. If
interrupted, run the same command again to continue.
"""

import utils.startup  # first, because it handles signals during the other imports
from utils import errors
from utils.cli.numbers import positive_int, seed_number
from utils.cli.parser import Parser


def get_args_parser() -> Parser:
    parser = Parser(description=__doc__)
    parser.add_argument("--epochs", type=positive_int, default=60, metavar="E", help="Epochs of each of the four runs.")
    parser.add_argument("--seed", type=seed_number, default=0, help="Random seed.")
    parser.add_argument("--folder", default="runs/figure1", metavar="DIR", help="Folder for the runs.")
    parser.add_argument("--output", default="docs", metavar="DIR", help="Folder for figure1.png and figure1.md.")
    return parser


utils.startup.answer_help(__name__, get_args_parser)  # before the imports below, which take seconds

import dataclasses
import itertools
import time
from argparse import Namespace
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor

import main_moco_supcon_imba as stage1
from imagenet_inat import options
from imagenet_inat.datasets import REGISTRY
from imagenet_inat.loaders import build_eval_loaders
from imagenet_inat.sets import digits
from moco.methods.loading import load_method
from moco.targets.files import target_file_name
from moco.targets.generation import generate_file
from utils.distributed import log
from utils.distributed.launch import ProcessInfo
from utils.files import write_text
from utils.measure.extraction import extract_features
from utils.measure.feature_measures import class_centres
from utils.measure.results import format_markdown_table
from utils.report.style import COLOURS, save_figure
from utils.run import checkpoint

DATASET = "three_digits"
CLASSES = (0, 1, 2)
COUNTS = {"1:1:1": (35, 35, 35), "50:1:1": (100, 2, 2)}  # training images; the numbers of steps are equal
METHODS = {"KCL": "", "TSC": "--targeted --sep_t --tw 0.2 --targets {targets}"}
STAGE_1 = (
    "--dataset {set} --data-root {root} --splits {splits} --moco-dim 2 --mlp --cos --epochs {epochs} -b 64 --lr 0.003 "
    "--moco-k 256 --moco-m 0.9 --moco-t 0.2 --seed {seed} -p 0 --resume auto --run-dir {run_dir}"
)


class Panel(NamedTuple):
    """Features of the test images, which one circle of the figure shows.

    Attributes:
        features: (n, 2), unit length.
        labels: (n,).
        targets: (3, 2), row y for class y. None for KCL.
    """

    features: Tensor
    labels: Tensor
    targets: Tensor | None

    @property
    def centres(self) -> Tensor:
        return class_centres(self.features, self.labels, len(CLASSES))


def main(argv: list[str] | None = None) -> None:
    args = get_args_parser().parse_args(argv)
    folder, output, started = Path(args.folder), Path(args.output), time.monotonic()
    entry = {"name": DATASET, "set_name": DATASET, "num_classes": len(CLASSES)}
    entry |= {"imbalance_ratio": None, "write_files": None}  # write_lists writes the lists, so that stage 1 need not
    REGISTRY[DATASET] = dataclasses.replace(REGISTRY["digits"], **entry)
    root, all_digits = digits.prepare(folder / "data", 1)
    targets = folder / target_file_name(len(CLASSES), 2)
    if not targets.exists():
        generate_file(targets, len(CLASSES), 2)
    panels = {}
    for number, (ratio, method) in enumerate(itertools.product(COUNTS, METHODS), start=1):
        splits = write_lists(folder / "lists" / ratio.replace(":", "_"), all_digits, COUNTS[ratio])
        run_dir = folder / f"{method}_{ratio.replace(':', '_')}".lower()
        log(f"\n{method}, {ratio}: run {number} of {len(COUNTS) * len(METHODS)}")
        values = vars(args) | {"set": DATASET, "root": root, "splits": splits, "run_dir": run_dir, "targets": targets}
        stage1.main([argument.format(**values) for argument in f"{STAGE_1} {METHODS[method]}".split()])
        panels[method, ratio] = read_panel(run_dir)
    output.mkdir(parents=True, exist_ok=True)
    draw(panels, output / "figure1.png")
    text = angles_table(panels, args)
    write_text(output / "figure1.md", text)
    log(f"\n{text}\nwrote {output}/figure1.png and figure1.md in {time.monotonic() - started:.0f} s; runs: {folder}")


def write_lists(folder: Path, all_digits: Path, counts: tuple[int, ...]) -> Path:
    """Write split lists of the three classes, and return their folder.

    Args:
        all_digits: Folder with the split lists of all ten digits.
        counts: Training images per class.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "val", "test"):
        lines = (all_digits / f"digits_LT_{split}.txt").read_text().splitlines(keepends=True)
        selected_lines = []
        for digit, count in zip(CLASSES, counts, strict=True):
            class_lines = [line for line in lines if int(line.split()[-1]) == digit]
            selected_lines += class_lines[:count] if split == "train" else class_lines
        write_text(folder / f"{DATASET}_{split}.txt", "".join(selected_lines))
    return folder


def read_panel(run_dir: Path) -> Panel:
    """Compute the features of the test images with the last checkpoint of a run."""
    process = ProcessInfo(torch.device("cpu"), workers=0)
    method = load_method(run_dir / checkpoint.LAST, process.device)
    data = options.build_data_config(options.DataFlags.from_args(method.settings))
    test = build_eval_loaders(data, ("test",), method.settings.batch_size, process)["test"]
    targets, _ = method.class_targets_and_cosines() or (None, None)
    return Panel(*extract_features(method.model.encoder_q, test), targets)


def draw(panels: dict[tuple[str, str], Panel], path: Path) -> None:
    """Draw one circle per panel and write the figure. panels: (method, ratio) -> panel."""
    figure, axes = plt.subplots(len(METHODS), len(COUNTS), figsize=(7.6, 8.2), layout="constrained")
    for (row, method), (column, ratio) in itertools.product(enumerate(METHODS), enumerate(COUNTS)):
        draw_circle(axes[row, column], panels[method, ratio], COUNTS[ratio])
        axes[row, column].set_title(f"{method}, {ratio}", fontsize=13)
    save_figure(figure, path, dpi=110)


def draw_circle(axes: Axes, panel: Panel, counts: tuple[int, ...]) -> None:
    """Draw test images as dots inside the circle, class centres as spokes, and targets outside."""
    axes.add_patch(plt.Circle((0, 0), 1, fill=False, color="0.6"))
    for y, (centre, colour) in enumerate(zip(panel.centres.numpy(), COLOURS, strict=False)):
        points = panel.features[panel.labels == y].numpy()
        depth = np.linspace(0.86, 0.99, len(points))[:, None]  # different radii, so that dots do not hide each other
        axes.scatter(*(points * depth).T, s=14, color=colour, alpha=0.5, linewidth=0)
        axes.plot([0, centre[0]], [0, centre[1]], color=colour, linewidth=2)
        label = f"digit {CLASSES[y]}: {counts[y]} training images"
        axes.scatter(*centre, s=130, marker="*", color=colour, edgecolor="black", linewidth=0.7, zorder=3, label=label)
        if panel.targets is not None:
            axes.scatter(*(1.1 * panel.targets[y].numpy()), s=60, marker="v", facecolor="none", edgecolor=colour)
    axes.set(xlim=(-1.2, 1.2), ylim=(-1.2, 1.2), aspect="equal")
    axes.axis("off")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 0.02), frameon=False, fontsize=9)


def angles(centres: Tensor) -> list[float]:
    """Return the angles in degrees between the centres of classes 0 and 1, 0 and 2, 1 and 2."""
    cosines = (centres @ centres.T).clamp(-1, 1)
    return [float(cosines[a, b].acos().rad2deg()) for a, b in itertools.combinations(range(len(centres)), 2)]


def angles_table(panels: dict[tuple[str, str], Panel], args: Namespace) -> str:
    """Return figure1.md: the angles between class centres, and between the images of a class and its centre."""
    pairs = [f"{CLASSES[a]}–{CLASSES[b]}" for a, b in itertools.combinations(range(len(CLASSES)), 2)]
    rows = []
    for (method, ratio), panel in panels.items():
        angle_to_centre = (panel.features * panel.centres[panel.labels]).sum(dim=1).clamp(-1, 1).acos().rad2deg()
        within = [f"{angle_to_centre[panel.labels == y].mean():.0f}°" for y in range(len(CLASSES))]
        rows.append([method, ratio, *(f"{angle:.0f}°" for angle in angles(panel.centres)), *within])
    header = ["method", "imbalance", *pairs, *(f"within {digit}" for digit in CLASSES)]
    return (
        "# Three digit classes on the circle\n\n"
        "This page repeats the paper's first figure with handwritten digits. To draw it again (3.5 minutes on two CPU\n"
        "cores):\n\n"
        f"```bash\npython -m examples.figure1 --epochs {args.epochs} --seed {args.seed}\n```\n\n"
        "![four circles](figure1.png)\n\n"
        f"The classes are the digits {CLASSES}, and the features have two dimensions. Each circle shows 120 test\n"
        "images as dots, class centres as stars and TSC's targets as triangles. All features lie on the unit circle.\n"
        "The dots are drawn at different radii so that they do not hide each other. The training sets have\n"
        f"{describe_counts()}.\n\n"
        "The table shows the angles between class centres (120° each is perfectly even), and the mean angle between\n"
        "the images of a class and its centre:\n\n" + format_markdown_table(header, rows, text_columns=2) + "\n\n"
        "In the paper's figure, KCL spreads balanced classes evenly. At 50:1:1, KCL places the two rare classes\n"
        "close together, and TSC spreads all three evenly. Here, at 50:1:1:\n\n" + angles_at_imbalance(panels)
    )


def describe_counts() -> str:
    """Return the training images of each class, as in `35, 35 and 35 images (1:1:1)`."""
    return " or ".join(f"{a}, {b} and {c} images of the three digits ({ratio})" for ratio, (a, b, c) in COUNTS.items())


def angles_at_imbalance(panels: dict[tuple[str, str], Panel]) -> str:
    """Describe the angles of the imbalanced runs, one line per method."""
    lines = []
    for method in METHODS:
        *to_frequent, rare = angles(panels[method, list(COUNTS)[-1]].centres)
        lines.append(
            f"- {method}: the two rare classes are {rare:.0f}° apart, and at least {min(to_frequent):.0f}° from the "
            "frequent class.\n"
        )
    return "".join(lines)


if __name__ == "__main__":
    errors.run(main, "run the same command again to continue")
