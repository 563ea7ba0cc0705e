"""The images of a split list: reading them, detecting the folder layout, and handling unreadable images."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from imagenet_inat import cache
from imagenet_inat.cache import DecodedImages
from imagenet_inat.decoding import UNREADABLE, open_rgb
from imagenet_inat.lists.format import read_split
from imagenet_inat.sets import idx
from utils import distributed
from utils.distributed import collectives, log
from utils.errors import InputError, one_line
from utils.files import write_text
from utils.randomness import Stream, derive_seed

BAD_IMAGES_FILE = "bad_images.txt"
CHECKED_IMAGES = 100  # if bad images are skipped and none of the first 100 exists, --data-root must be wrong


def adapt_paths(root: Path, paths: np.ndarray, folder: str) -> tuple[np.ndarray, str]:
    """Adapt a list's paths to the layout on disk, where <folder>/<class>/X may be stored as <folder>/X.

    ImageNet's validation archive has no class folders, but the published lists assume them.

    Returns:
        The paths, adapted if necessary, and the layout, or "" if no path is below
        `folder` or the first such image exists in neither layout.
    """
    inside = [i for i, path in enumerate(paths.tolist()) if path.startswith(f"{folder}/".encode())] if folder else []
    if not inside:
        return paths, ""
    first = paths[inside[0]].decode()
    if (root / first).is_file():
        return paths, f"{folder}/<class>/"
    if not (root / folder / Path(first).name).is_file():
        return paths, ""
    flat = paths.copy()
    flat[inside] = [f"{folder}/".encode() + paths[i].rsplit(b"/", 1)[1] for i in inside]
    return flat, f"{folder}/ without class folders"


def image_exists(root: Path, path: str) -> bool:
    """Return whether the image file exists, or the IDX file if the path leads into one."""
    return idx.find_file((root / path).parent).is_file() if idx.is_inside(path) else (root / path).is_file()


class LongTailDataset(Dataset):
    """The images of one split list.

    An item is indexed by a number, or by the samplers with (index, draw). `draw` is the number of the draw in the run;
    the random view depends only on the seed and on this number.

    Args:
        root: data root that the list's paths start from.
        list_file: the split list.
        num_classes: number of classes C.
        transform: applied to the decoded RGB image.
        seed: the run's seed.
        flat_folder: see DatasetSpec.
        skip_bad: replace an unreadable image by another of its class, and mark it in `skipped`, (n,) bool shared with
            the loader's workers. Otherwise an unreadable image is an error.
        line_mask: maps the list's labels, (n,), to a mask of the lines to use, (n,) bool; None: all lines.
        as_shown: see `decoding.open_rgb`.
        wnid_folder: see `read_split`.

    Raises:
        InputError: see `read_split`; the list's first image (with `skip_bad`, all of its first images) is not below
            the root; and at access, an image is missing or cannot be decoded (the message names file and line).
    """

    def __init__(
        self,
        root: Path,
        list_file: Path,
        num_classes: int,
        transform: Callable,
        seed: int = 0,
        flat_folder: str = "",
        skip_bad: bool = False,
        line_mask: Callable[[np.ndarray], np.ndarray] | None = None,
        as_shown: bool = False,
        wnid_folder: str = "",
    ):
        self.root, self.list_file, self.num_classes = Path(root), Path(list_file), num_classes
        self.transform, self.seed, self.as_shown = transform, seed, as_shown
        paths, labels = read_split(self.list_file, num_classes, wnid_folder)
        self.line_numbers = (
            None if line_mask is None else np.flatnonzero(line_mask(labels))
        )  # lines of the list; None: all
        paths, self.labels = (
            (paths, labels) if line_mask is None else (paths[self.line_numbers], labels[self.line_numbers])
        )
        if not len(paths):
            raise InputError(f"{self.list_file}: no class has two images, so none can be held out; omit --holdout")
        # Hash of paths and labels, in order: equal digests mean the same images.
        self.digest = hashlib.sha256(paths.tobytes() + self.labels.tobytes()).hexdigest()[:16]
        self.paths, self.layout = adapt_paths(self.root, paths, flat_folder)
        self.pixels: DecodedImages | None = None  # see `cache_decoded`
        self.skipped = torch.zeros(len(self.labels), dtype=torch.bool).share_memory_() if skip_bad else None
        checked = self.paths[: CHECKED_IMAGES if skip_bad else 1].tolist()
        if not any(image_exists(self.root, path.decode()) for path in checked):
            which = "the first" if len(checked) == 1 else f"one of the first {len(checked)}, of which none exists,"
            raise InputError(
                f"{self.root / checked[0].decode()}: no such image, {which} of {self.list_file}; set --data-root to "
                "the folder that the list's paths start from"
            )

    @property
    def class_counts(self) -> np.ndarray:
        """Images per class, (C,) int64."""
        return np.bincount(self.labels, minlength=self.num_classes)

    def location(self, index: int) -> str:
        """Return the location of an image in the list, as FILE:LINE."""
        return f"{self.list_file}:{(index if self.line_numbers is None else self.line_numbers[index]) + 1}"

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, item: int | tuple[int, int]):
        index, draw = item if isinstance(item, tuple) else (item, None)
        image = self._readable(index)
        if draw is not None:
            # torchvision's transforms use torch's global CPU generator. It is seeded before
            # each image, so that a view does not depend on earlier draws.
            torch.default_generator.manual_seed(derive_seed(self.seed, Stream.AUGMENT, draw))
        return self.transform(image), int(self.labels[index])

    def _readable(self, index: int) -> Image.Image:
        """Return the image, or another of its class if it is unreadable and `skip_bad` is set."""
        try:
            return self.read(index)
        except InputError:
            if self.skipped is None:
                raise
            return self._read_another(index)

    def _read_another(self, index: int) -> Image.Image:
        """Return the next readable image of the class. The choice is the same in every process."""
        same_class = np.flatnonzero(self.labels == self.labels[index])
        for candidate in np.roll(same_class, -int(np.searchsorted(same_class, index))):
            try:
                return self.read(int(candidate))
            except InputError as error:
                self.skipped[int(candidate)] = True
                last_error = error
        raise InputError(f"class {self.labels[index]} has no readable image; the last error: {last_error}")

    def estimate_size(self) -> cache.SizeEstimate:
        """Estimate the memory that the decoded images need, from a sample of them."""
        return cache.estimate_size(len(self), self._read_file)

    def all_have_size(self, size: tuple[int, int]) -> bool:
        """Return whether all readable images have this (width, height), by decoding them."""
        return cache.all_have_size(size, len(self), self._read_file, self.list_file.name)

    def cache_decoded(self) -> None:
        """Decode all images now and keep them in memory, if they fit. Later reads give the same images."""
        if self.pixels is None and self.estimate_size().fits(distributed.world_size()):
            key = (str(self.root.resolve()), self.digest, self.as_shown)
            self.pixels = cache.get_or_decode(
                key, lambda: cache.decode(len(self), self._read_file, self.list_file.name)
            )

    def stacked_pixels(self) -> Tensor:
        """Return all decoded images, (n, H, W, 3) uint8, with unreadable ones replaced if `skip_bad` is set.

        Raises:
            InputError: the images differ in size or do not fit; an image is unreadable and `skip_bad` is not set.
        """
        if self.pixels is not None and (0, 0) in self.pixels.sizes:
            self.pixels = DecodedImages([np.array(self._readable(number)) for number in range(len(self))])
        pixels = self.pixels and self.pixels.stacked_pixels()
        if pixels is None:
            raise InputError(
                f"{self.list_file}: images of different sizes, or more than --cache keeps; --device-aug expects "
                "images of one size in memory; omit --device-aug"
            )
        return pixels

    def read(self, index: int) -> Image.Image:
        """Return the decoded RGB image of a line of the list."""
        return (self.pixels and self.pixels.image(index)) or self._read_file(index)

    def _read_file(self, index: int) -> Image.Image:
        path = self.root / self.paths[index].decode()
        try:
            return open_rgb(self.root, self.paths[index].decode(), self.as_shown)
        except UNREADABLE as error:
            raise InputError(f"{path}: not a readable image, {self.location(index)} ({error})") from None


def report_bad_images(dataset: LongTailDataset, run_dir: Path, device: torch.device) -> None:
    """Log how many images have been skipped so far, and list them in bad_images.txt. Do nothing if there are none.

    All ranks must call this, after an epoch.
    """
    if dataset.skipped is None:
        return
    skipped = collectives.sum_over_ranks(dataset.skipped.int().to(device)).nonzero()[:, 0].tolist()
    if not skipped or not distributed.is_main():
        return
    file = run_dir / BAD_IMAGES_FILE
    old_lines = file.read_text().splitlines() if file.exists() else []  # from before a resume
    lines = sorted({*old_lines, *(_describe_problem(dataset, index) for index in skipped)})
    if lines != old_lines:
        write_text(file, "".join(f"{line}\n" for line in lines))
        log(f"note: {len(lines)} unreadable images skipped so far, replaced by others of their class; see {file}")


def _describe_problem(dataset: LongTailDataset, index: int) -> str:
    try:
        dataset._read_file(index)  # the image in memory may be the one that replaces it
    except InputError as error:
        return one_line(error)
    return f"{dataset.location(index)}: was unreadable during training, readable now"
