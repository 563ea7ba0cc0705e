"""The data of a run: its flags, and what they mean."""

import argparse
import dataclasses
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from imagenet_inat import datasets
from imagenet_inat.datasets import CUSTOM, DatasetSpec, row
from imagenet_inat.images import LongTailDataset
from imagenet_inat.lists.format import count_classes, read_split
from imagenet_inat.whereabouts import SPLITS, Lists, find_lists, resolve_imbalance
from moco.loader import VIEWS, Normalise, RandomView, eval_transform, train_transform, view_named
from moco.views.batch import BatchViews
from utils.devices import device_named
from utils.errors import InputError
from utils.parser import Group, Parser, natural, positive_float, positive_int


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
        help="folder that the split lists' paths start from; digits are written there",
    )
    add_list_arguments(group)
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
        type=natural,
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


@dataclass(frozen=True)
class Data:
    """The data of a run: its row of the registry, with the class count of these lists, and its flags.

    skip_bad: whether a training image that cannot be read is passed over. crop_scale: of --crop-scale. keep:
    whether images that fit are kept decoded. batch_views: see `settle_loading`.
    """

    spec: DatasetSpec
    lists: Lists
    image_size: int
    device_aug: bool
    skip_bad: bool
    crop_scale: tuple[float, float] | None = None
    keep: bool = False
    batch_views: bool = False

    def open(self, split: str, transform: Callable | None = None, seed: int = 0) -> LongTailDataset:
        """The images of a split, train, val or test.

        Raises:
            InputError: root or list is missing (what belongs where), or see LongTailDataset.
        """
        spec, root = self.spec, self.lists.root
        if spec.imbalance:  # images and lists are made together
            self.lists.need(split)
        if not root.is_dir():
            raise InputError(f"--data-root {root}: no such folder, expected the root of {spec.source}")
        self.lists.need(split)
        skip_bad = split == "train" and self.skip_bad
        file = self.lists.files[split]
        return LongTailDataset(root, file, spec.num_classes, transform, seed, spec.flat_folder, skip_bad)

    def open_decoded(self, split: str, transform: Callable | None = None, seed: int = 0) -> LongTailDataset:
        """The same to be read many times: decoded now, if that is wanted and they fit."""
        images = self.open(split, transform, seed)
        if self.keep:
            images.keep_decoded()
        return images

    def train_view(self) -> RandomView:
        spec = self.spec
        return train_transform(spec.view, self.image_size, self.device_aug, spec.jitter, self.crop_scale, spec.mean)

    def batch_view(self, device: torch.device) -> BatchViews:
        """The training view, for batches on the device."""
        view, spec = view_named(self.spec.view, self.crop_scale), self.spec
        colour = view.colour if spec.jitter else None
        return BatchViews(view.geometry, colour, view.cutout, self.image_size, spec.mean, device)

    def eval_view(self) -> Callable:
        return eval_transform(self.spec.view, self.image_size)

    def normalise(self, device: torch.device) -> Normalise:
        return Normalise(self.spec.mean, self.spec.std, device)


def fill_in(args: argparse.Namespace) -> None:
    """Give the arguments that were left to the data set their values; nothing is read or written.

    Raises:
        InputError: a row with a view that is none, or an imbalance that the set cannot have.
    """
    spec = row(args.dataset)
    args.views = args.views or spec.view
    view_named(args.views, args.crop_scale)
    args.arch = args.arch or spec.arch
    args.image_size = args.image_size or spec.image_size
    args.imbalance = resolve_imbalance(spec, args.imbalance)


def before(args: argparse.Namespace) -> dict:
    """The data's arguments in checkpoints that do not say them, as they were: see `load_run`."""
    views = "thumbnail" if args.dataset in ("cifar10", "cifar100") else row(args.dataset).view
    return {"views": views, "crop_scale": None, "statistics": None, "batch_views": False}


def data_of(args: argparse.Namespace) -> Data:
    """The data of arguments that were filled in.

    Raises:
        InputError: the training list, which says how many classes there are, is not there, or is none.
    """
    spec = row(args.dataset)
    lists = find_lists(spec, args, args.imbalance)
    num_classes = spec.num_classes or getattr(args, "num_classes", None)  # the latter: counted before the run began
    if not num_classes:
        lists.need("train")
        train = lists.files["train"]
        num_classes = count_classes(train, read_split(train, None)[1])
    normalised = row(args.statistics or args.dataset)
    statistics = {"mean": normalised.mean, "std": normalised.std}
    spec = dataclasses.replace(spec, num_classes=num_classes, view=args.views, **statistics)
    skip_bad, keep, batch_views = args.on_bad_image == "skip", args.cache == "auto", getattr(args, "batch_views", False)
    return Data(spec, lists, args.image_size, args.device_aug, skip_bad, args.crop_scale, keep, batch_views)


def settle_loading(args: argparse.Namespace, images: LongTailDataset, processes: int) -> None:
    """Settle, from a look at some training images, how they are loaded: `batch_views`, and --workers' default.

    batch_views: whether views are made for a whole batch, on the device.

    Raises:
        InputError: --device-aug with a view that it cannot do, of these images.
    """
    view, sample = view_named(args.views, args.crop_scale), images.sample()
    colour = view.colour if row(args.dataset).jitter else None
    small = args.cache == "auto" and sample.fits(processes)
    args.batch_views = args.device_aug and small and sample.one_size and BatchViews.can(view.geometry, colour)
    if args.device_aug and not args.batch_views and not (colour is None or getattr(colour, "plain", False)):
        what = "AutoAugment is not done there" if args.views == "autoaugment" else "its hue is done there with images "
        what += "" if args.views == "autoaugment" else "of one size that --cache keeps, and these are none"
        raise InputError(f"--device-aug with --views {args.views}: {what}; leave --device-aug out")
    if args.workers is None and small and args.gpu is None and device_named(args.device).type == "cpu":
        args.workers = 0  # a small image costs less than a process that competes for the cores


def data_name(args: argparse.Namespace) -> str:
    """The data set in the names of run folders: two folders of own images do not share one."""
    if args.dataset != CUSTOM.name:
        return args.dataset
    return f"{args.dataset}-{Path(args.data_root).resolve().name}"


def command_line(script: str, args: argparse.Namespace, **flags) -> str:
    """A command to type next on the same data as these arguments."""
    names = ["dataset", "arch", "data_root", "image_size"]
    names += [name for name in ("splits", "train_txt", "val_txt", "test_txt", "imbalance") if getattr(args, name)]
    names += ["views"] if args.views != row(args.dataset).view else []
    names += [name for name in ("crop_scale", "statistics") if getattr(args, name)]
    flags = {name: getattr(args, name) for name in names} | flags
    python = Path(sys.executable)
    python = python.relative_to(Path.cwd()) if python.is_relative_to(Path.cwd()) else python.name
    words = []
    for name, value in flags.items():
        words += [f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, list) else [value])]
    return shlex.join([str(python), script, *words])
