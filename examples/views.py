"""Draw a figure of all augmentations (--views), one row each, with the original image on the left.

    python -m examples.views --output docs/views.png

The images are from scikit-learn: photographs, reduced to 32 px for small images, and a digit.
"""

import utils.startup  # first, because it handles signals during the other imports
from utils import errors
from utils.cli.numbers import positive_int, seed_number
from utils.cli.parser import Parser


def get_args_parser() -> Parser:
    parser = Parser(description=__doc__)
    parser.add_argument("--output", default="views.png", metavar="FILE", help="Figure to write.")
    parser.add_argument("--draws", type=positive_int, default=8, metavar="N", help="Random views per row.")
    parser.add_argument("--seed", type=seed_number, default=0, help="Random seed.")
    return parser


utils.startup.answer_help(__name__, get_args_parser)  # before the imports below, which take seconds

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_image

from imagenet_inat.sets.digits import load_digits
from moco.loader import train_transform
from moco.views.rows import VIEWS
from utils.distributed import log
from utils.report.style import save_figure  # its module selects a backend that needs no display

PHOTOGRAPH, SMALL, DIGIT = 224, 32, 16
SIZES = {
    "photo": PHOTOGRAPH,
    "simclr": PHOTOGRAPH,
    "simaugment": PHOTOGRAPH,
    "randaugment": PHOTOGRAPH,
    "digit": DIGIT,
}  # pixels; other augmentations: SMALL


def source_image(size: int) -> Image.Image:
    """Return the original image for a size: a digit for the smallest size, a photograph otherwise."""
    if size == DIGIT:
        return Image.fromarray(np.round(load_digits().images[3] * 255 / 16).astype(np.uint8)).convert("RGB")
    if size == PHOTOGRAPH:
        return Image.fromarray(load_sample_image("china.jpg"))
    square = Image.fromarray(load_sample_image("flower.jpg")).crop((120, 20, 520, 420))
    return square.resize((size, size), Image.Resampling.BOX)


def main(argv: list[str] | None = None) -> None:
    args = get_args_parser().parse_args(argv)
    output = Path(args.output)
    if not output.parent.is_dir():
        raise errors.InputError(f"{output.parent}: no such folder")
    draw(args, output)
    log(f"wrote {output}: {len(VIEWS)} augmentations, {args.draws} random views each")


def draw(args: argparse.Namespace, output: Path) -> None:
    """Draw the figure and write it to a file."""
    columns = args.draws + 1
    figure, axes = plt.subplots(len(VIEWS), columns, figsize=(1.05 * columns, 1.18 * len(VIEWS)), layout="constrained")
    for row, name in zip(axes, VIEWS, strict=True):
        size = SIZES.get(name, SMALL)
        image, view = source_image(size), train_transform(name, size)
        torch.manual_seed(args.seed)
        row[0].imshow(image.resize((size, size)) if size == DIGIT else image)
        row[0].set_title(f"{name}, {size} px", fontsize=7, loc="left")
        for axes_cell in row[1:]:
            axes_cell.imshow(view(image).permute(1, 2, 0))
    for axes_cell in axes.flat:
        axes_cell.axis("off")
    save_figure(figure, output, dpi=100)


if __name__ == "__main__":
    errors.run(main)
