"""Command-line flags that select the data of a run and how it is loaded."""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

from imagenet_inat import datasets
from imagenet_inat.datasets import CUSTOM, get_spec
from imagenet_inat.paths import ListFlags, add_list_arguments
from moco.views.rows import VIEWS
from utils.cli.flags import ENCODER
from utils.cli.numbers import number_type, positive_int
from utils.configs import FromArgs
from utils.distributed import log

CIFAR = ("cifar10", "cifar100")


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("Data")
    group.add_argument(
        "--dataset",
        choices=datasets.names(),
        default="imagenet",
        metavar="NAME",
        help="Data set: %(choices)s. Use custom for your own images.",
        stored=ENCODER,
    )
    group.add_argument(
        "--data-root",
        default="data",
        metavar="DIR",
        help="Folder of the images, from which the paths in the lists start. digits, fashion and glyphs are "
        "written here.",
        affects_result=False,
        stored=ENCODER,
    )
    add_list_arguments(group)
    group.add_argument(
        "--holdout",
        type=number_type("share", float, lambda value: 0 < value <= 0.5, "more than 0, at most 0.5"),
        metavar="SHARE",
        help="Hold out this share of each class's training images (at least one, except in single-image classes) for "
        "validation, when no separate validation list exists (CIFAR, iNaturalist, custom); typically 0.1. Without it, "
        "selection uses the test list, if any, and tables say so.",
        legacy=None,
        stored=ENCODER,
    )
    group.add_argument(
        "--image-size",
        type=positive_int,
        metavar="PX",
        help="Input size in pixels (default: the data set's).",
        stored=ENCODER,
    )
    meanings = "\n".join(f"{name}: {view.help}" for name, view in VIEWS.items()).replace("%", "%%")
    group.add_argument(
        "--views",
        choices=list(VIEWS),
        metavar="NAME",
        help=f"Augmentation (default: the data set's).\n{meanings}",
        legacy=lambda args: "thumbnail" if args.dataset in CIFAR else datasets.get_spec(args.dataset).view,
        stored=ENCODER,
    )
    group.add_argument(
        "--crop-scale",
        type=float,
        nargs=2,
        metavar=("LO", "HI"),
        help="Share of the area that a random crop keeps (default: the view's). Increase LO if crops miss the object.",
        legacy=None,
        stored=ENCODER,
    )
    group.add_argument(
        "--statistics",
        choices=sorted(datasets.REGISTRY),
        metavar="SET",
        help="Data set whose mean and std normalise the images (default: its own; ImageNet's for custom).",
        rare=True,
        legacy=None,
        stored=ENCODER,
    )
    group.add_argument(
        "-j",
        "--workers",
        type=number_type("workers", int, lambda value: 0 <= value <= 1024, "0 to 1024"),
        metavar="N",
        help="Number of data-loading processes per machine; 0 loads in the training process (default: the available "
        "cores, at most 32; fewer on the CPU).",
        affects_result=False,
    )
    group.add_argument(
        "--on-bad-image",
        choices=["stop", "skip"],
        default="stop",
        metavar="WHAT",
        help="What to do with an unreadable training image: stop, or skip (use another image of the class and list the "
        "file in bad_images.txt). Unreadable evaluation images always end the run.",
        affects_result=False,
        same_everywhere=True,
    )
    group.add_argument(
        "--device-aug",
        nargs="?",
        choices=["auto", "on", "off"],
        const="on",
        default="auto",
        help="Augment on the device, in whole batches. auto: small images of one size that --cache keeps. on: others "
        "too; of images of mixed size only the colour jitter. A resumed run keeps its choice.",
        legacy=False,
    )
    group.add_argument(
        "--cache",
        choices=["auto", "off"],
        default="auto",
        help="auto: keep a list's decoded images in memory if they fit in 2 GB. off: read the files.",
        affects_result=False,
    )


@dataclass(frozen=True, kw_only=True)
class DataFlags(ListFlags):
    """The flags of the data, and the network and image size whose defaults depend on the data set; see --help."""

    dataset: str
    arch: str | None
    image_size: int | None
    views: str | None
    crop_scale: list[float] | None
    statistics: str | None
    holdout: float | None
    on_bad_image: str
    device_aug: str
    cache: str

    def resolved(self) -> "DataFlags":
        """Return the flags with the defaults that depend on the data set. No file is read or written.

        Raises:
            InputError: the view is unknown, or `with_class_sizes` raises it.
        """
        from moco.loader import view_named  # here, because PyTorch takes seconds to import

        spec = get_spec(self.dataset)
        views, arch, image_size = self.views or spec.view, self.arch or spec.arch, self.image_size or spec.image_size
        view_named(views, self.crop_scale)
        resolved = replace(self, views=views, arch=arch, image_size=image_size).with_class_sizes(spec)
        if self.name_all_lists:  # a note, not an error, because a recipe may contain the flag
            for name in ("imbalance", "largest", "split_seed"):
                if getattr(self, name) is not None:
                    log(f"note: --{name.replace('_', '-')}: ignored, because the flags name all lists")
        return resolved

    @property
    def data_name(self) -> str:
        """The data set's name for run folders. Custom data includes the image folder, to keep runs apart."""
        return self.dataset if self.dataset != CUSTOM.name else f"{CUSTOM.name}-{Path(self.data_root).resolve().name}"


@dataclass(frozen=True)
class LoadingFlags(FromArgs):
    """The flags that decide how images are loaded; see --help."""

    device_aug: str
    batch_size: int
    workers: int | None
    device: str
    gpu: int | None
    resume: str | None
    run_dir: str

    def resumed_arguments(self) -> dict | None:
        """Return the arguments of the run that is continued, or None if the run is new."""
        from utils.run import folder

        return folder.resumed_arguments(self.resume, Path(self.run_dir))
