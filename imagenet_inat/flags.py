"""The flags that say which data a run has, and how it is read."""

import argparse

from imagenet_inat import datasets
from imagenet_inat.whereabouts import SPLITS
from moco.loader import VIEWS
from utils.parser import Group, Parser, number, positive_float, positive_int


def add_list_arguments(group: Parser | Group) -> None:
    """Which lists of a data set."""
    group.add_argument(
        "--splits",
        metavar="DIR",
        help="folder of the lists <Set>_{train,val,test}.txt (default: imagenet_inat/data/<Set>)",
    )
    for split in SPLITS:
        group.add_argument(
            f"--{split}-txt", metavar="FILE", help=f"this list, instead of the one in --splits, as {split}"
        )
    made = datasets.imbalances()
    group.add_argument(
        "--imbalance",
        type=positive_float,
        help=f"{', '.join(made)}: largest class ÷ smallest, 1 (balanced) to the images of a class "
        f"(default: {', '.join(f'{imbalance:g} for {name}' for name, imbalance in made.items())})",
    )
    largest = datasets.largest()
    group.add_argument(
        "--largest",
        type=positive_int,
        metavar="N",
        help=f"{', '.join(largest)}: training images of the largest class "
        f"(default: {', '.join(f'{count} for {name}' for name, count in largest.items())}, for CPUs; at most "
        f"{', '.join(str(datasets.row(name).most) for name in largest)})",
    )


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("Data")
    group.add_argument(
        "--dataset",
        choices=datasets.names(),
        default="imagenet",
        help="a row of imagenet_inat/datasets.py; custom: your images with your lists",
    )
    group.add_argument(
        "--data-root",
        default="data",
        metavar="DIR",
        help="folder that the split lists' paths start from; digits, and the lists of fashion, are written there; "
        "fashion's files are looked for there and in FashionMNIST/raw, then where Debian's dataset-fashion-mnist has "
        "them, else downloaded",
    )
    add_list_arguments(group)
    group.add_argument(
        "--holdout",
        type=number("share", float, lambda value: 0 < value <= 0.5, "more than 0, at most 0.5"),
        metavar="SHARE",
        help="of a set whose test list is its validation list too (CIFAR, iNaturalist): that share of each class's "
        "training images, one at least, is held out to choose by, the same for every seed; give it to both stages. "
        "0.1 is usual. Without it what is chosen is chosen on test, and every table says so",
    )
    group.add_argument(
        "--image-size",
        type=positive_int,
        metavar="PX",
        help="side of the network's input (default: the data set's)",
    )
    meanings = "; ".join(f"{name}: {view.help}" for name, view in VIEWS.items()).replace("%", "%%")
    group.add_argument("--views", choices=list(VIEWS), help=f"{meanings} (default: the data set's)")
    group.add_argument(
        "--crop-scale",
        type=float,
        nargs=2,
        metavar=("LO", "HI"),
        help="the share of the image that a random crop keeps, 0 < LO <= HI <= 1 (default: the views'). What an image "
        "is of should stay in its crop: the release has 0.08 on ImageNet, 0.2 on CIFAR",
    )
    group.add_argument(
        "--statistics",
        choices=sorted(datasets.REGISTRY),
        metavar="SET",
        help="normalise by this data set's mean and deviation (default: the data set's own; ImageNet's for custom)",
    )
    group.add_argument(
        "-j",
        "--workers",
        type=number("workers", int, lambda value: 0 <= value <= 1024, "0 to 1024"),
        help="loader processes over all training processes of a machine; 0: none, load in between steps "
        "(default: the cores this job may use, at most the release's 32; on the CPU half of them, none for small "
        "images that --cache keeps)",
    )
    group.add_argument(
        "--on-bad-image",
        choices=["stop", "skip"],
        default="stop",
        help="a training image that cannot be read ends the run; skip: take another of its class, count it, list it "
        "in bad_images.txt. In evaluation it always ends the run: an accuracy is over all images",
    )
    group.add_argument(
        "--device-aug",
        action="store_true",
        help="training views on the device, without rounding and clipping between their steps. Of small images that "
        "--cache keeps, all of one size: the whole view, a batch at a time, without loader processes. Of others: the "
        "colour jitter as one affine map an image (pixels differ by 1.6 of 255 on average), and a faster resize (by 1 "
        "at most); loader processes need about 0.6 of the time. When Data is much of Time in the console",
    )
    group.add_argument(
        "--cache",
        choices=["auto", "off"],
        default="auto",
        help="auto: images that are 2 GB or less when decoded (over all processes, each list) are decoded once and "
        "kept; it changes no result. off: read from their files each time, for a machine short of memory",
    )
