"""The images of a split list: read, found in the layout they lie in, and those that cannot be read."""

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
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")  # of tags, which training does not read
LOOKED_AT = 100  # images of which one must be there, where bad ones are skipped; else it is the root that is wrong


def in_found_layout(root: Path, paths: np.ndarray, folder: str) -> tuple[np.ndarray, str]:
    """A list's paths as they are on disk, where <folder>/<class>/X may lie there as <folder>/X.

    ImageNet's validation archive has no class folders, the published lists assume them.

    Returns:
        The paths, changed or not, and the layout that was found, "" if the first such
        image is in neither place or there is none.
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
    """Whether the file of a list's path is there, or the IDX file that the path leads into."""
    return idx.found((root / path).parent).is_file() if idx.is_inside(path) else (root / path).is_file()


def open_rgb(root: Path, path: str) -> Image.Image:
    """The decoded image of a list's path: a file, or one in an IDX file.

    Raises:
        InputError: an IDX file that is none, or holds no such image.
        OSError, SyntaxError, ValueError, Image.DecompressionBombError: a file that Pillow cannot read.
    """
    if idx.is_inside(path):
        return Image.fromarray(idx.image(root, path)).convert("RGB")
    if not stat.S_ISREG((root / path).stat().st_mode):
        raise OSError("no regular file")  # a pipe would keep the reader waiting, /dev/zero busy, for ever
    with Image.open(root / path) as image:
        image.load()
        return image if image.mode == "RGB" else image.convert("RGB")  # else convert would copy it


class LongTailDataset(Dataset):
    """The images of one split list.

    Indexed with a number, or by the samplers with (index, draw): `draw` is the number
    of the draw in the run, and the random view is a function of the seed and of it.

    Args:
        root: the data root the list's paths start from. list_file: the split list.
        num_classes: C. transform: of the decoded RGB image. seed: the run's.
        flat_folder: see DatasetSpec.
        part: of the list's labels (n,), which lines there are, (n,) bool; None: all.
        skip_bad: take another image of the class for one that cannot be read, and note it in
            `passed_over`, (n,) bool shared with the loader's workers; else that is an error.

    Raises:
        InputError: see `read_split`; a root without the list's first image; and at
            access, an image that is missing or cannot be decoded (file and line named).
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
        self.rows = None if part is None else np.flatnonzero(part(labels))  # of the list, where there are not all
        paths, self.labels = (paths, labels) if part is None else (paths[self.rows], labels[self.rows])
        if not len(paths):
            raise InputError(f"{self.list_file}: no class has two images, one to train on and one to hold out")
        # Of paths and labels in their order: runs on lists with the same one see the same images.
        self.digest = hashlib.sha256(paths.tobytes() + self.labels.tobytes()).hexdigest()[:16]
        self.paths, self.layout = in_found_layout(self.root, paths, flat_folder)
        self.pixels: Pixels | None = None  # see `keep_decoded`
        self.passed_over = torch.zeros(len(self.labels), dtype=torch.bool).share_memory_() if skip_bad else None
        looked_at = self.paths[: LOOKED_AT if skip_bad else 1].tolist()
        if not any(is_there(self.root, path.decode()) for path in looked_at):
            which = "the first" if len(looked_at) == 1 else f"nor are the first {len(looked_at)}"
            raise InputError(
                f"{self.root / looked_at[0].decode()}: no such image, {which} of {self.list_file}; --data-root must be "
                "the folder that the list's paths start from"
            )

    @property
    def class_counts(self) -> np.ndarray:
        """(C,) int64, images a class."""
        return np.bincount(self.labels, minlength=self.num_classes)

    def line(self, index: int) -> str:
        """Where an image stands."""
        return f"{self.list_file}:{(index if self.rows is None else self.rows[index]) + 1}"

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, item: int | tuple[int, int]):
        index, draw = item if isinstance(item, tuple) else (item, None)
        image = self._readable(index)
        if draw is not None:
            # torchvision's transforms draw from torch's global generator; only the CPU's is set,
            # and before each image, so nothing is left of what was drawn earlier.
            torch.default_generator.manual_seed(counted_seed(self.seed, Stream.AUGMENT, draw))
        return self.transform(image), int(self.labels[index])

    def _readable(self, index: int) -> Image.Image:
        """The image, or another of its class where those that cannot be read are skipped."""
        try:
            return self.read(index)
        except InputError:
            if self.passed_over is None:
                raise
            return self._read_another(index)

    def _read_another(self, index: int) -> Image.Image:
        """The next image of the class that can be read: the same whoever asks."""
        alike = np.flatnonzero(self.labels == self.labels[index])
        for candidate in np.roll(alike, -int(np.searchsorted(alike, index))):
            try:
                return self.read(int(candidate))
            except InputError as error:
                self.passed_over[int(candidate)] = True
                last = error
        raise InputError(f"class {self.labels[index]} has no readable image left; the last: {last}")

    def sample(self) -> cache.Sample:
        return cache.sample(len(self), self._from_file)

    def keep_decoded(self) -> None:
        """Decode all images now and keep them, if they fit; what is read from then on is the same."""
        if self.pixels is None and self.sample().fits(distributed.world_size()):
            key = (str(self.root.resolve()), self.digest)
            self.pixels = cache.shared(key, lambda: cache.decode(len(self), self._from_file, self.list_file.name))

    def of_one_size(self) -> Tensor:
        """(n, H, W, 3) uint8, all images, which have been decoded; in place of an unreadable one, another of its class.

        Raises:
            InputError: they differ in size, or are too many; an unreadable one, unless it is to be skipped.
        """
        if self.pixels is not None and (0, 0) in self.pixels.sizes:
            self.pixels = Pixels([np.array(self._readable(number)) for number in range(len(self))])
        pixels = self.pixels and self.pixels.of_one_size()
        if pixels is None:
            raise InputError(
                f"{self.list_file}: its images differ in size, or are more than --cache keeps: --device-aug cannot "
                "make whole batches of them; leave it out"
            )
        return pixels

    def read(self, index: int) -> Image.Image:
        """The decoded RGB image of a line of the list."""
        return (self.pixels and self.pixels.image(index)) or self._from_file(index)

    def _from_file(self, index: int) -> Image.Image:
        path = self.root / self.paths[index].decode()
        try:
            return open_rgb(self.root, self.paths[index].decode())
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise InputError(f"{path}: not a readable image, {self.line(index)} ({error})") from None


def report_bad_images(dataset: LongTailDataset, run_dir: Path, device: torch.device) -> None:
    """Say how many images have been passed over so far, and write which into bad_images.txt; nothing while none has.

    All ranks call it, after an epoch.
    """
    if dataset.passed_over is None:
        return
    found = distributed.sum_over_ranks(dataset.passed_over.int().to(device)).nonzero()[:, 0].tolist()
    if not found or not distributed.is_main():
        return
    file = run_dir / FILE
    before = file.read_text().splitlines() if file.exists() else []  # of a run that goes on
    lines = sorted({*before, *(_what_is_wrong(dataset, index) for index in found)})
    if lines != before:
        write_text(file, "".join(f"{line}\n" for line in lines))
        say(f"note: {len(lines)} unreadable images passed over so far, others of their class taken instead: {file}")


def _what_is_wrong(dataset: LongTailDataset, index: int) -> str:
    try:
        dataset.read(index)
    except InputError as error:
        return one_line(error)
    return f"{dataset.line(index)}: could not be read then, can be now"
