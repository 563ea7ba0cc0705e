"""The images of a split list: reading them, detecting the folder layout, and handling unreadable images."""

import hashlib
import stat
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from imagenet_inat import cache
from imagenet_inat.cache import Pixels
from imagenet_inat.lists.format import read_split
from imagenet_inat.sets import idx
from utils import distributed
from utils.distributed import say
from utils.errors import InputError, one_line
from utils.files import write_text
from utils.randomness import Stream, counted_seed

FILE = "bad_images.txt"
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")  # about tags, which training does not read
LOOKED_AT = 100  # if bad images are skipped and none of the first 100 exists, --data-root must be wrong


def in_found_layout(root: Path, paths: np.ndarray, folder: str) -> tuple[np.ndarray, str]:
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


def is_there(root: Path, path: str) -> bool:
    """Return whether the image file exists, or the IDX file if the path leads into one."""
    return idx.found((root / path).parent).is_file() if idx.is_inside(path) else (root / path).is_file()


def open_rgb(root: Path, path: str) -> Image.Image:
    """Decode the RGB image at a list's path, which is an image file or leads into an IDX file.

    Raises:
        InputError: the IDX file is invalid, or does not hold this image.
        OSError, SyntaxError, ValueError, Image.DecompressionBombError: Pillow cannot read the file.
    """
    if idx.is_inside(path):
        return Image.fromarray(idx.image(root, path)).convert("RGB")
    if not stat.S_ISREG((root / path).stat().st_mode):
        raise OSError("not a regular file")  # reading a pipe or /dev/zero might never end
    with Image.open(root / path) as image:
        image.load()
        return image if image.mode == "RGB" else image.convert("RGB")  # convert would copy an RGB image


class LongTailDataset(Dataset):
    """The images of one split list.

    An item is indexed by a number, or by the samplers with (index, draw). `draw` numbers
    the draws of a run; the random view depends only on the seed and on this number.

    Args:
        root: data root that the list's paths start from. list_file: the split list.
        num_classes: C. transform: applied to the decoded RGB image. seed: the run's seed.
        flat_folder: see DatasetSpec.
        part: maps the list's labels, (n,), to a mask of the lines to use, (n,) bool; None: all lines.
        skip_bad: replace an unreadable image by another of its class, and mark it in `passed_over`,
            (n,) bool shared with the loader's workers. Otherwise an unreadable image is an error.

    Raises:
        InputError: see `read_split`; the list's first image is not below the root; and at
            access, an image is missing or cannot be decoded (the message names file and line).
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
        part: Callable[[np.ndarray], np.ndarray] | None = None,
    ):
        self.root, self.list_file, self.num_classes = Path(root), Path(list_file), num_classes
        self.transform, self.seed = transform, seed
        paths, labels = read_split(self.list_file, num_classes)
        self.rows = None if part is None else np.flatnonzero(part(labels))  # lines of the list; None: all
        paths, self.labels = (paths, labels) if part is None else (paths[self.rows], labels[self.rows])
        if not len(paths):
            raise InputError(f"{self.list_file}: no class has two images, expected at least one class with two")
        # Hash of paths and labels, in order: equal digests mean the same images.
        self.digest = hashlib.sha256(paths.tobytes() + self.labels.tobytes()).hexdigest()[:16]
        self.paths, self.layout = in_found_layout(self.root, paths, flat_folder)
        self.pixels: Pixels | None = None  # see `keep_decoded`
        self.passed_over = torch.zeros(len(self.labels), dtype=torch.bool).share_memory_() if skip_bad else None
        looked_at = self.paths[: LOOKED_AT if skip_bad else 1].tolist()
        if not any(is_there(self.root, path.decode()) for path in looked_at):
            which = "the first" if len(looked_at) == 1 else f"nor any of the first {len(looked_at)}"
            raise InputError(
                f"{self.root / looked_at[0].decode()}: no such image, {which} of {self.list_file}; set --data-root to "
                "the folder that the list's paths start from"
            )

    @property
    def class_counts(self) -> np.ndarray:
        """Images per class, (C,) int64."""
        return np.bincount(self.labels, minlength=self.num_classes)

    def line(self, index: int) -> str:
        """Return the place of an image in the list, as FILE:LINE."""
        return f"{self.list_file}:{(index if self.rows is None else self.rows[index]) + 1}"

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, item: int | tuple[int, int]):
        index, draw = item if isinstance(item, tuple) else (item, None)
        image = self._readable(index)
        if draw is not None:
            # torchvision's transforms use torch's global CPU generator. It is seeded before
            # each image, so that a view does not depend on earlier draws.
            torch.default_generator.manual_seed(counted_seed(self.seed, Stream.AUGMENT, draw))
        return self.transform(image), int(self.labels[index])

    def _readable(self, index: int) -> Image.Image:
        """Return the image, or another of its class if it is unreadable and `skip_bad` is set."""
        try:
            return self.read(index)
        except InputError:
            if self.passed_over is None:
                raise
            return self._read_another(index)

    def _read_another(self, index: int) -> Image.Image:
        """Return the next readable image of the class. The choice is the same in every process."""
        alike = np.flatnonzero(self.labels == self.labels[index])
        for candidate in np.roll(alike, -int(np.searchsorted(alike, index))):
            try:
                return self.read(int(candidate))
            except InputError as error:
                self.passed_over[int(candidate)] = True
                last = error
        raise InputError(f"class {self.labels[index]} has no readable image; the last error: {last}")

    def sample(self) -> cache.Sample:
        return cache.sample(len(self), self._from_file)

    def keep_decoded(self) -> None:
        """Decode all images now and keep them in memory, if they fit. Later reads give the same images."""
        if self.pixels is None and self.sample().fits(distributed.world_size()):
            key = (str(self.root.resolve()), self.digest)
            self.pixels = cache.shared(key, lambda: cache.decode(len(self), self._from_file, self.list_file.name))

    def of_one_size(self) -> Tensor:
        """Return all decoded images, (n, H, W, 3) uint8, with unreadable ones replaced if `skip_bad` is set.

        Raises:
            InputError: the images differ in size or do not fit; an image is unreadable and `skip_bad` is not set.
        """
        if self.pixels is not None and (0, 0) in self.pixels.sizes:
            self.pixels = Pixels([np.array(self._readable(number)) for number in range(len(self))])
        pixels = self.pixels and self.pixels.of_one_size()
        if pixels is None:
            raise InputError(
                f"{self.list_file}: images of different sizes, or more than --cache keeps; --device-aug expects "
                "images of one size in memory; omit --device-aug"
            )
        return pixels

    def read(self, index: int) -> Image.Image:
        """Return the decoded RGB image of a line of the list."""
        return (self.pixels and self.pixels.image(index)) or self._from_file(index)

    def _from_file(self, index: int) -> Image.Image:
        path = self.root / self.paths[index].decode()
        try:
            return open_rgb(self.root, self.paths[index].decode())
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise InputError(f"{path}: not a readable image, {self.line(index)} ({error})") from None


def report_bad_images(dataset: LongTailDataset, run_dir: Path, device: torch.device) -> None:
    """Log how many images have been skipped so far, and list them in bad_images.txt. Do nothing if there are none.

    All ranks must call this, after an epoch.
    """
    if dataset.passed_over is None:
        return
    found = distributed.sum_over_ranks(dataset.passed_over.int().to(device)).nonzero()[:, 0].tolist()
    if not found or not distributed.is_main():
        return
    file = run_dir / FILE
    before = file.read_text().splitlines() if file.exists() else []  # lines from before a resume
    lines = sorted({*before, *(_what_is_wrong(dataset, index) for index in found)})
    if lines != before:
        write_text(file, "".join(f"{line}\n" for line in lines))
        say(f"note: {len(lines)} unreadable images skipped so far, replaced by others of their class; see {file}")


def _what_is_wrong(dataset: LongTailDataset, index: int) -> str:
    try:
        dataset.read(index)
    except InputError as error:
        return one_line(error)
    return f"{dataset.line(index)}: was unreadable during training, readable now"
