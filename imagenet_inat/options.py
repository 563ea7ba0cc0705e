"""The data of a run, as its flags define it."""

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
from imagenet_inat.paths import Lists, find_lists, names_all_lists, resolve_imbalance, resolve_largest
from moco.loader import Normalise, RandomView, eval_transform, train_transform, view_named
from moco.views.batch import BatchViews
from utils.devices import check_memory, device_named
from utils.distributed import say
from utils.errors import InputError


@dataclass(frozen=True)
class Data:
    """The data of a run: its registry row, with the class count of the lists, and its flags.

    Attributes:
        skip_bad: whether unreadable training images are skipped. crop_scale: --crop-scale. keep: whether decoded
            images that fit are kept in memory. holdout: share of the training list that is used for validation.
            batch_views: see `choose_workers`.
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
        """Open the images of a split: train, val or test.

        Raises:
            InputError: the data root or the list is missing; see also LongTailDataset.
        """
        spec, root = self.spec, self.lists.root
        if spec.imbalance:  # generated together with the images, so a missing list explains a missing root
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
        """The split that selection uses, for results.json and tables: "val", "test" or "held out"."""
        return "held out" if self.holdout else "test" if self.val_is_test else "val"

    def open_decoded(self, split: str, transform: Callable | None = None, seed: int = 0) -> LongTailDataset:
        """Open a split that is read many times. With --cache, decode its images now if they fit in memory."""
        images = self.open(split, transform, seed)
        if self.keep:
            images.keep_decoded()
        return images

    def train_view(self) -> RandomView:
        spec = self.spec
        return train_transform(spec.view, self.image_size, self.device_aug, spec.jitter, self.crop_scale, spec.mean)

    def batch_view(self, device: torch.device) -> BatchViews:
        """Return the training view for whole batches on the device."""
        view, spec = view_named(self.spec.view, self.crop_scale), self.spec
        colour = view.colour if spec.jitter else None
        return BatchViews(view.geometry, colour, view.cutout, self.image_size, spec.mean, device)

    def eval_view(self) -> Callable:
        return eval_transform(self.spec.view, self.image_size)

    def normalise(self, device: torch.device) -> Normalise:
        return Normalise(self.spec.mean, self.spec.std, device)


def resolve_defaults(args: argparse.Namespace) -> None:
    """Set the arguments whose defaults depend on the data set. No file is read or written.

    Raises:
        InputError: the view is unknown, or the imbalance or largest class is not possible.
    """
    spec = row(args.dataset)
    args.views = args.views or spec.view
    view_named(args.views, args.crop_scale)
    if names_all_lists(args):  # a note, not an error, because a recipe may contain the flag
        for name in ("imbalance", "largest"):
            if getattr(args, name) is not None:
                say(f"note: --{name}: ignored, because the flags name all lists")
    args.arch = args.arch or spec.arch
    args.image_size = args.image_size or spec.image_size
    args.largest = resolve_largest(spec, args.largest)
    args.imbalance = resolve_imbalance(spec, args.imbalance, args.largest)


def before(args: argparse.Namespace) -> dict:
    """Return the values of data arguments that older checkpoints do not store; see `load_run`."""
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
    """Return the data of arguments that `resolve_defaults` has completed.

    Raises:
        InputError: the training list, which gives the number of classes, is missing or invalid; or --holdout is
            given although a validation list exists.
    """
    spec = row(args.dataset)
    lists = find_lists(spec, args, args.imbalance, args.largest)
    num_classes = spec.num_classes or getattr(args, "num_classes", None)  # custom data: counted by an earlier call
    if not num_classes:
        lists.need("train")
        train = lists.files["train"]
        num_classes = count_classes(train, read_split(train, None)[1])
    normalised = row(args.statistics or args.dataset)
    statistics = {"mean": normalised.mean, "std": normalised.std}
    spec = dataclasses.replace(spec, num_classes=num_classes, view=args.views, **statistics)
    if args.holdout and lists.files["val"] != lists.files["test"]:
        raise InputError(
            f"--holdout {args.holdout:g}: validation list {lists.files['val'].name} exists; omit --holdout"
        )
    skip_bad, keep, batch_views = args.on_bad_image == "skip", args.cache == "auto", getattr(args, "batch_views", False)
    return Data(
        spec, lists, args.image_size, args.device_aug, skip_bad, args.crop_scale, keep, args.holdout, batch_views
    )


def choose_workers(args: argparse.Namespace, images: LongTailDataset, processes: int) -> None:
    """Choose from a sample of the training images how to load them: `args.batch_views` and the default of --workers.

    `batch_views` says whether whole batches are augmented on the device.

    Raises:
        InputError: --device-aug does not support this view for these images, or a batch exceeds the memory.
    """
    size, share = args.image_size, args.batch_size // processes
    views = 4 * 3 * size**2 * share  # bytes of one view of a process's images, as float32
    check_memory(f"--image-size {size}", f"a batch of {share} images", views, "use a smaller one, or a smaller -b")
    view, sample = view_named(args.views, args.crop_scale), images.sample()
    colour = view.colour if row(args.dataset).jitter else None
    small = args.cache == "auto" and sample.fits(processes)
    args.batch_views = args.device_aug and small and sample.one_size and BatchViews.can(view.geometry, colour)
    if args.device_aug and not args.batch_views and not (colour is None or getattr(colour, "plain", False)):
        what = "AutoAugment is not supported" if args.views == "autoaugment" else "hue is supported only for images "
        what += "" if args.views == "autoaugment" else "of one size that --cache keeps in memory"
        raise InputError(f"--device-aug with --views {args.views}: {what}; omit --device-aug")
    if args.workers is None and small and args.gpu is None and device_named(args.device).type == "cpu":
        args.workers = 0  # loader processes would compete with training for the cores


def data_name(args: argparse.Namespace) -> str:
    """Return the data set's name for run folders. Custom data includes the image folder, to keep runs apart."""
    if args.dataset != CUSTOM.name:
        return args.dataset
    return f"{args.dataset}-{Path(args.data_root).resolve().name}"


def command_line(script: str, args: argparse.Namespace, **flags) -> str:
    """Return a command that uses the same data as these arguments."""
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
