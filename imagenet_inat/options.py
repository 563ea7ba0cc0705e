"""The data of a run: what its flags mean."""

import argparse
import dataclasses
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from imagenet_inat.datasets import CUSTOM, DatasetSpec, row
from imagenet_inat.holdout import held_out
from imagenet_inat.images import LongTailDataset
from imagenet_inat.lists.format import count_classes, read_split
from imagenet_inat.whereabouts import Lists, find_lists, names_all_lists, resolve_imbalance, resolve_largest
from moco.loader import Normalise, RandomView, eval_transform, train_transform, view_named
from moco.views.batch import BatchViews
from utils.devices import check_memory, device_named
from utils.distributed import say
from utils.errors import InputError


@dataclass(frozen=True)
class Data:
    """The data of a run: its row of the registry, with the class count of these lists, and its flags.

    skip_bad: whether a training image that cannot be read is passed over. crop_scale: of --crop-scale. keep:
    whether images that fit are kept decoded. holdout: the share of the training list that is the validation split.
    batch_views: see `settle_loading`.
    """

    spec: DatasetSpec
    lists: Lists
    image_size: int
    device_aug: bool
    skip_bad: bool
    crop_scale: tuple[float, float] | None = None
    keep: bool = False
    holdout: float | None = None
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
        skip_bad, part, file = split == "train" and self.skip_bad, None, self.lists.files[split]
        if self.holdout and split != "test":
            file = self.lists.files["train"]
            part = lambda labels: held_out(labels, self.holdout) == (split == "val")  # noqa: E731
        return LongTailDataset(root, file, spec.num_classes, transform, seed, spec.flat_folder, skip_bad, part)

    @property
    def val_is_test(self) -> bool:
        return not self.holdout and self.lists.files["val"] == self.lists.files["test"]

    @property
    def chosen_on(self) -> str:
        """What a choice is made by, for results.json and tables."""
        return "held out" if self.holdout else "test" if self.val_is_test else "val"

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
    if names_all_lists(args):  # no refusal: a recipe may say it
        for name in ("imbalance", "largest"):
            if getattr(args, name) is not None:
                say(f"note: --{name} without effect on lists that are named")
    args.arch = args.arch or spec.arch
    args.image_size = args.image_size or spec.image_size
    args.largest = resolve_largest(spec, args.largest)
    args.imbalance = resolve_imbalance(spec, args.imbalance, args.largest)


def before(args: argparse.Namespace) -> dict:
    """The data's arguments in checkpoints that do not say them, as they were: see `load_run`."""
    views = "thumbnail" if args.dataset in ("cifar10", "cifar100") else row(args.dataset).view
    return {
        "views": views,
        "crop_scale": None,
        "statistics": None,
        "holdout": None,
        "batch_views": False,
        "largest": None,
    }


def data_of(args: argparse.Namespace) -> Data:
    """The data of arguments that were filled in.

    Raises:
        InputError: the training list, which says how many classes there are, is not there, or is none.
    """
    spec = row(args.dataset)
    lists = find_lists(spec, args, args.imbalance, args.largest)
    num_classes = spec.num_classes or getattr(args, "num_classes", None)  # the latter: counted before the run began
    if not num_classes:
        lists.need("train")
        train = lists.files["train"]
        num_classes = count_classes(train, read_split(train, None)[1])
    normalised = row(args.statistics or args.dataset)
    statistics = {"mean": normalised.mean, "std": normalised.std}
    spec = dataclasses.replace(spec, num_classes=num_classes, view=args.views, **statistics)
    if args.holdout and lists.files["val"] != lists.files["test"]:
        raise InputError(f"--holdout {args.holdout:g}: {lists.files['val'].name} is there to choose by; leave it out")
    skip_bad, keep, batch_views = args.on_bad_image == "skip", args.cache == "auto", getattr(args, "batch_views", False)
    return Data(
        spec, lists, args.image_size, args.device_aug, skip_bad, args.crop_scale, keep, args.holdout, batch_views
    )


def settle_loading(args: argparse.Namespace, images: LongTailDataset, processes: int) -> None:
    """Settle, from a look at some training images, how they are loaded: `batch_views`, and --workers' default.

    batch_views: whether views are made for a whole batch, on the device.

    Raises:
        InputError: --device-aug with a view that it cannot do, of these images.
    """
    size, share = args.image_size, args.batch_size // processes
    views = 4 * 3 * size**2 * share  # bytes of one view of a process's images, as float32
    check_memory(f"--image-size {size}", f"a batch of {share} images", views, "give a smaller one, or a smaller -b")
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
    names += [name for name in ("splits", "train_txt", "val_txt", "test_txt") if getattr(args, name)]
    names += [name for name in ("imbalance", "largest") if getattr(args, name) and not names_all_lists(args)]
    names += ["views"] if args.views != row(args.dataset).view else []
    names += [name for name in ("crop_scale", "statistics", "holdout") if getattr(args, name)]
    flags = {name: getattr(args, name) for name in names} | flags
    python = Path(sys.executable)
    python = python.relative_to(Path.cwd()) if python.is_relative_to(Path.cwd()) else python.name
    words = []
    for name, value in flags.items():
        words += [f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, list) else [value])]
    return shlex.join([str(python), script, *words])
