"""Reproduce the paper's figure 1 with digits: where KCL and TSC place three classes on a circle.

    python -m examples.figure1

The command trains KCL and TSC for the same number of epochs on three digit classes, with
35:35:35 and with 100:2:2 training images and two-dimensional features. It writes
docs/figure1.png and the angles between the class centres, docs/figure1.md. If interrupted,
run the same command again to continue.
"""

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
from imagenet_inat.loaders import open_splits
from imagenet_inat.sets import digits
from moco.methods import trained
from moco.targets.files import target_file_name
from moco.targets.generation import generate_file
from utils import errors
from utils.distributed import say
from utils.files import write_text
from utils.measure.extraction import extract_features
from utils.measure.features import class_centres
from utils.measure.results import markdown
from utils.parser import Parser, positive_int, seed_number
from utils.report.style import COLOURS
from utils.run import checkpoint
from utils.run.launch import Place

SET = "three_digits"
CLASSES = (0, 1, 2)
COUNTS = {"1:1:1": (35, 35, 35), "50:1:1": (100, 2, 2)}  # nearly equal numbers of images, equal numbers of steps
METHODS = {"KCL": "", "TSC": "--targeted --sep_t --tw 0.2 --targets {targets}"}
STAGE_1 = (
    "--dataset {set} --data-root {root} --splits {splits} --moco-dim 2 --mlp --cos --epochs {epochs} -b 64 --lr 0.003 "
    "--moco-k 256 --moco-m 0.9 --moco-t 0.2 --seed {seed} -p 0 --resume auto --run-dir {run_dir}"
)


class Panel(NamedTuple):
    """Features of the test images, for one circle of the figure.

    Attributes:
        features: (n, 2), unit length.
        labels: (n,).
        targets: (3, 2), row y for class y, or None.
    """

    features: Tensor
    labels: Tensor
    targets: Tensor | None

    @property
    def centres(self) -> Tensor:
        return class_centres(self.features, self.labels, len(CLASSES))


def get_args_parser() -> Parser:
    parser = Parser(description=__doc__)
    parser.add_argument("--epochs", type=positive_int, default=60, metavar="E", help="Epochs of each of the four runs.")
    parser.add_argument("--seed", type=seed_number, default=0, help="Random seed.")
    parser.add_argument("--folder", default="runs/figure1", metavar="DIR", help="Folder for the runs.")
    parser.add_argument("--output", default="docs", metavar="DIR", help="Folder for figure1.png and figure1.md.")
    return parser


def main(argv: list[str] | None = None) -> None:
    args = get_args_parser().parse_args(argv)
    folder, output, started = Path(args.folder), Path(args.output), time.monotonic()
    lists_alone = {"imbalance": None, "write": None}  # the lists are written here, from those of all ten digits
    row = {"name": SET, "set_name": SET, "num_classes": len(CLASSES), **lists_alone}
    REGISTRY[SET] = dataclasses.replace(REGISTRY["digits"], **row)
    root, whole = digits.prepare(folder / "data", 1)
    targets = folder / target_file_name(len(CLASSES), 2)
    if not targets.exists():
        generate_file(targets, len(CLASSES), 2)
    panels = {}
    for number, (ratio, method) in enumerate(itertools.product(COUNTS, METHODS), start=1):
        splits = write_lists(folder / "lists" / ratio.replace(":", "_"), whole, COUNTS[ratio])
        run_dir = folder / f"{method}_{ratio.replace(':', '_')}".lower()
        say(f"\n{method}, {ratio}: run {number} of {len(COUNTS) * len(METHODS)}")
        values = vars(args) | {"set": SET, "root": root, "splits": splits, "run_dir": run_dir, "targets": targets}
        stage1.main([word.format(**values) for word in f"{STAGE_1} {METHODS[method]}".split()])
        panels[method, ratio] = read_panel(run_dir)
    output.mkdir(parents=True, exist_ok=True)
    draw(panels, output / "figure1.png")
    text = angles_table(panels, args)
    write_text(output / "figure1.md", text)
    say(f"\n{text}\nwrote {output}/figure1.png and figure1.md in {time.monotonic() - started:.0f} s; runs: {folder}")


def write_lists(folder: Path, whole: Path, counts: tuple[int, ...]) -> Path:
    """Write split lists of the three classes, from those of all ten. counts: training images per class."""
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "val", "test"):
        lines = (whole / f"digits_LT_{split}.txt").read_text().splitlines(keepends=True)
        kept = []
        for digit, count in zip(CLASSES, counts, strict=True):
            of_class = [line for line in lines if int(line.split()[-1]) == digit]
            kept += of_class[:count] if split == "train" else of_class
        write_text(folder / f"{SET}_{split}.txt", "".join(kept))
    return folder


def read_panel(run_dir: Path) -> Panel:
    """Compute the features of the test images with the run's last checkpoint."""
    place = Place(torch.device("cpu"), workers=0)
    method = trained(run_dir / checkpoint.LAST, place.device)
    test = open_splits(options.data_of(method.args), ("test",), method.args.batch_size, place)["test"]
    targets, _ = method.assigned() or (None, None)
    return Panel(*extract_features(method.model.encoder_q, test), targets)


def draw(panels: dict[tuple[str, str], Panel], path: Path) -> None:
    figure, axes = plt.subplots(len(METHODS), len(COUNTS), figsize=(7.6, 8.2), layout="constrained")
    for (row, method), (column, ratio) in itertools.product(enumerate(METHODS), enumerate(COUNTS)):
        circle(axes[row, column], panels[method, ratio], COUNTS[ratio])
        axes[row, column].set_title(f"{method}, {ratio}", fontsize=13)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def circle(axes: Axes, panel: Panel, counts: tuple[int, ...]) -> None:
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
    """Return the angles as Markdown, with the mean angle between the images of each class and its centre."""
    pairs = [f"{CLASSES[a]}–{CLASSES[b]}" for a, b in itertools.combinations(range(len(CLASSES)), 2)]
    rows = []
    for (method, ratio), panel in panels.items():
        own = (panel.features * panel.centres[panel.labels]).sum(dim=1).clamp(-1, 1).acos().rad2deg()
        within = [f"{own[panel.labels == y].mean():.0f}°" for y in range(len(CLASSES))]
        rows.append([method, ratio, *(f"{angle:.0f}°" for angle in angles(panel.centres)), *within])
    header = ["method", "imbalance", *pairs, *(f"within {digit}" for digit in CLASSES)]
    return (
        "# Three digit classes on the circle\n\n"
        "This page repeats the paper's first figure with handwritten digits. To draw it again, run\n"
        f"`python -m examples.figure1 --epochs {args.epochs} --seed {args.seed}`.\n\n"
        "![four circles](figure1.png)\n\n"
        f"The classes are the digits {CLASSES}, and the features have two dimensions. Each circle shows 120 test\n"
        "images as dots, class centres as stars and TSC's targets as triangles. All features lie on the unit circle.\n"
        "The dots are drawn at different radii so that they do not hide each other.\n\n"
        "The table shows the angles between class centres (120° each is perfectly even), and the mean angle between\n"
        "the images of a class and its centre:\n\n" + markdown(header, rows, words=2) + "\n\n"
        "In the paper's figure, KCL spreads balanced classes evenly. At 50:1:1, KCL places the two rare classes\n"
        "close together, and TSC spreads all three evenly. Here, at 50:1:1:\n\n" + angles_at_imbalance(panels)
    )


def angles_at_imbalance(panels: dict[tuple[str, str], Panel]) -> str:
    """Describe the angles of the imbalanced runs in one line per method."""
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
