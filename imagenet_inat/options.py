"""The data of a run, as its flags define it."""

import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from imagenet_inat.data_flags import DataFlags, LoadingFlags
from imagenet_inat.datasets import DatasetSpec, get_spec
from imagenet_inat.holdout import holdout_mask
from imagenet_inat.images import LongTailDataset
from imagenet_inat.lists.format import count_classes, read_split
from imagenet_inat.paths import Lists, find_lists
from moco.loader import (
    Normalise,
    RandomView,
    TwoCropsTransform,
    View,
    eval_transform,
    train_transform,
    view_named,
    without_jitter,
)
from moco.views.batch_views import BatchViews
from moco.views.colour import CifarAutoAugment, RandAugment
from utils.devices import check_memory, resolve_device
from utils.errors import InputError

SMALL_SIDE = 96  # pixels; from about 128 on, a CPU augments single images at least as fast as whole batches
LEGACY_LOADING = {"batch_views": False, "images_as_shown": False}  # values in older checkpoints, which lack them


@dataclass(frozen=True)
class DataConfig:
    """The data of a run, and how it is loaded.

    Attributes:
        spec: the properties of the data set, with the class count of the lists.
        lists: the split lists.
        image_size: --image-size.
        device_aug: whether to augment on the device: --device-aug, once `choose_loading` has resolved it.
        skip_bad: whether unreadable training images are skipped.
        crop_scale: --crop-scale.
        cache_decoded: whether decoded images that fit are kept in memory.
        holdout: fraction of the training list that is used for validation, or None.
        batch_views: whether whole batches are augmented on the device, from decoded images of one size.
        classifier_view: --classifier-view, the augmentation of the first view; None: as the others.
    """

    spec: DatasetSpec
    lists: Lists
    image_size: int
    device_aug: bool
    skip_bad: bool
    crop_scale: tuple[float, float] | None = None
    cache_decoded: bool = False
    holdout: float | None = None
    batch_views: bool = False
    classifier_view: str | None = None

    def open(self, split: str, transform: Callable | None = None, seed: int = 0) -> LongTailDataset:
        """Open the images of a split: train, val or test.

        Raises:
            InputError: the data root or the list is missing; see also LongTailDataset.
        """
        spec, root = self.spec, self.lists.root
        source = "train" if self.holdout and split != "test" else split  # the split whose list is read
        if spec.imbalance_ratio:  # lists and images are generated together, as the message about a missing list says
            self.lists.require(source)
        if not root.is_dir():
            raise InputError(f"--data-root {root}: no such folder, expected the root of {spec.source}")
        self.lists.require(source)
        skip_bad, line_mask, file = split == "train" and self.skip_bad, None, self.lists.files[source]
        if self.holdout and split != "test":
            line_mask = lambda labels: holdout_mask(labels, self.holdout) == (split == "val")  # noqa: E731
        options = (spec.flat_folder, skip_bad, line_mask, spec.as_shown, spec.wnid_folder)
        return LongTailDataset(root, file, spec.num_classes, transform, seed, *options)

    @property
    def facts(self) -> dict[str, object]:
        """What args.json stores besides the flags, or in place of them; a resumed run must not change it."""
        facts = {"num_classes": self.spec.num_classes, "images_as_shown": self.spec.as_shown}
        return facts | {"device_aug": self.device_aug, "batch_views": self.batch_views}

    @property
    def val_is_test(self) -> bool:
        return not self.holdout and self.lists.files["val"] == self.lists.files["test"]

    @property
    def selection_split(self) -> str:
        """The split that selection uses, for results.json and tables: "val", "test" or "held out"."""
        return "held out" if self.holdout else "test" if self.val_is_test else "val"

    def open_decoded(self, split: str, transform: Callable | None = None, seed: int = 0) -> LongTailDataset:
        """Open a split that is read many times. With --cache, decode its images now if they fit in memory."""
        images = self.open(split, transform, seed)
        if self.cache_decoded:
            images.cache_decoded()
        return images

    def train_view(self) -> RandomView:
        spec = self.spec
        return train_transform(spec.view, self.image_size, self.device_aug, spec.jitter, self.crop_scale, spec.mean)

    def train_views(self, count: int) -> TwoCropsTransform:
        """Return the transform that makes the `count` views of a training image in stage 1."""
        first, spec = None, self.spec
        if self.classifier_view:
            first = train_transform(self.classifier_view, self.image_size, self.device_aug, spec.jitter, fill=spec.mean)
        return TwoCropsTransform(self.train_view(), count, first)

    def view_rows(self) -> dict[str, View]:
        """Return the views of training by their flags: --views, and --classifier-view if it is given."""
        rows = {f"--views {self.spec.view}": view_named(self.spec.view, self.crop_scale)}
        if self.classifier_view:
            rows[f"--classifier-view {self.classifier_view}"] = view_named(self.classifier_view)
        return rows if self.spec.jitter else {flag: without_jitter(row) for flag, row in rows.items()}

    def device_views(self, count: int, device: torch.device) -> list[BatchViews]:
        """Return the `count` views of a training image for whole batches on the device, the classifier's first."""
        size, mean = self.image_size, self.spec.mean
        views = [
            BatchViews(row.geometry, row.colour, row.cutout, size, mean, device) for row in self.view_rows().values()
        ]
        return [views[-1], *[views[0]] * (count - 1)]

    def eval_view(self) -> Callable:
        return eval_transform(self.spec.view, self.image_size)

    def normalise(self, device: torch.device) -> Normalise:
        return Normalise(self.spec.mean, self.spec.std, device)

    def choose_loading(
        self, images: LongTailDataset, flags: LoadingFlags, processes: int, trains: bool = True
    ) -> tuple["DataConfig", int | None]:
        """Decide how to load the images, from a sample of them.

        Args:
            images: the images that the run reads.
            trains: whether the run draws random batches of the images.

        Returns:
            The data, with the decision whether views are augmented on the device, and the value of --workers.

        Raises:
            InputError: --device-aug does not support a view for these images, or a batch exceeds the memory.
        """
        size, local_batch_size = self.image_size, flags.batch_size // processes
        view_bytes = 4 * 3 * size**2 * local_batch_size  # one view of a process's images, as float32
        batch = f"a batch of {local_batch_size} images"
        check_memory(f"--image-size {size}", batch, view_bytes, "use a smaller one, or a smaller -b")
        rows, estimate = self.view_rows(), images.estimate_size()
        cached = self.cache_decoded and estimate.fits(processes)
        supported = all(BatchViews.supports(row.geometry, row.colour) for row in rows.values())
        one_size = estimate.size if cached and supported else None
        resumed = flags.resumed_arguments() if trains else None
        on_device = kept_device_aug(flags.device_aug, resumed or {})
        if flags.device_aug != "auto":
            batch_views = on_device and one_size is not None
            if on_device and not batch_views:
                _check_device_jitter(rows)
        elif resumed is not None:  # a resumed run keeps its choice
            batch_views = one_size is not None and bool(resumed.get("batch_views"))
        else:
            small = trains and one_size is not None and max(*one_size, size) <= SMALL_SIDE
            on_device = batch_views = small and images.all_have_size(one_size)
        # By default, no loader processes compete with training for the cores.
        on_cpu = flags.gpu is None and resolve_device(flags.device).type == "cpu"
        workers = 0 if flags.workers is None and cached and on_cpu else flags.workers
        return replace(self, device_aug=on_device, batch_views=batch_views), workers


def kept_device_aug(flag: str, stored: dict[str, object]) -> bool:
    """Return whether a run that resumes from stored arguments augments on the device.

    Args:
        flag: --device-aug. With auto, a new run decides from its images and stores the decision.
    """
    return bool(stored.get("device_aug")) if flag == "auto" else flag == "on"


def build_data_config(
    flags: DataFlags, num_classes: int | None = None, classifier_view: str | None = None
) -> DataConfig:
    """Build the DataConfig of resolved flags.

    Args:
        num_classes: Number of classes of custom data. None: the training list is read.
        classifier_view: See DataConfig.

    Raises:
        InputError: the training list, which gives the number of classes, is missing or invalid; or --holdout is
            given although a validation list exists.
    """
    spec = get_spec(flags.dataset)
    lists = find_lists(spec, flags)
    num_classes = spec.num_classes or num_classes  # a DatasetSpec has 0 for custom data
    if not num_classes:
        lists.require("train")
        train = lists.files["train"]
        num_classes = count_classes(train, read_split(train, None)[1])
    reference = get_spec(flags.statistics or flags.dataset)
    statistics = {"mean": reference.mean, "std": reference.std}
    spec = replace(spec, num_classes=num_classes, view=flags.views, **statistics)
    if flags.holdout and lists.files["val"] != lists.files["test"]:
        val = lists.files["val"]
        if val.is_file():
            raise InputError(f"--holdout {flags.holdout:g}: validation list {val.name} exists; omit --holdout")
        if flags.val_txt:
            raise InputError(f"--val-txt {val}: no such list; correct it, or omit it because of --holdout")
    return DataConfig(
        spec,
        lists,
        flags.image_size,
        device_aug=False,
        skip_bad=flags.on_bad_image == "skip",
        crop_scale=flags.crop_scale,
        cache_decoded=flags.cache == "auto",
        holdout=flags.holdout,
        classifier_view=classifier_view,
    )


def _check_device_jitter(rows: dict[str, View]) -> None:
    """Raise InputError unless loader processes can leave the colours of these views to the device."""
    reasons = {}
    for flag, row in rows.items():
        if isinstance(row.colour, CifarAutoAugment | RandAugment):
            reasons = {flag: f"{row.colour.name} is not supported"}  # the reason, whatever the other view needs
            break
        if row.colour is not None and not getattr(row.colour, "is_jitter_only", False):
            reasons[flag] = "hue is supported only for images of one size that --cache keeps in memory"
    for flag, reason in reasons.items():
        raise InputError(f"--device-aug with {flag}: {reason}; omit --device-aug")


def command_line(script: str, **flags: object) -> str:
    """Return a command that runs a script of this project with these flags."""
    python = Path(sys.executable)
    python = python.relative_to(Path.cwd()) if python.is_relative_to(Path.cwd()) else python.name
    return shlex.join(
        [str(python), script, *(word for name, value in flags.items() for word in (f"--{name}", str(value)))]
    )
