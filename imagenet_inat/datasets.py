"""Data sets: one registry row each, and the one class that reads the images of a split list.

A new data set is a new row in REGISTRY and its lists in the folder that `locate`
names; both scripts then take it. A set that is used once needs no row: --dataset custom.
"""

import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch.utils.data import Dataset

from imagenet_inat import digits
from imagenet_inat.split_lists import made_folders, read_split
from utils.errors import InputError
from utils.randomness import Stream, counted_seed

LISTS_ROOT = Path(__file__).parent / "data"
IMAGENET_STATISTICS = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
MANY_ABOVE, FEW_BELOW = 100, 20  # training images of a class: many > 100, few < 20


@dataclass(frozen=True)
class DatasetSpec:
    """What the project knows of one data set.

    set_name: split lists are called <set_name>_{train,val,test}.txt.
    val_split, test_split: the lists' names of these splits, the same where one list serves as both.
    published: whether the lists can be downloaded; get_lists: the command that makes or fetches
        them, to be filled in (see `how_to_get`).
    view: which random view (moco/loader.py); jitter: with colour or contrast jitter.
    repeat: how often an epoch passes over the training list (tiny sets).
    source: where the images come from, shown when they are missing.
    flat_folder: a folder below the root that may lack the class folders of the lists' paths.
    imbalance, largest: of a set that is made: its default imbalance and its largest class.
    prepare: root and folder of the lists for (--data-root, imbalance), where they are not
        --data-root and imagenet_inat/data/<set_name>.
    write: writes images and lists into these two, unless they are there.
    """

    name: str
    set_name: str
    num_classes: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    source: str
    get_lists: str = "write it, or name another with --train-txt, --val-txt or --test-txt"
    published: bool = False
    image_size: int = 224
    arch: str = "resnet50"
    view: str = "photo"
    jitter: bool = True
    val_split: str = "val"
    test_split: str = "test"
    repeat: int = 1
    flat_folder: str = ""
    imbalance: float | None = None
    largest: int = 0
    prepare: Callable[[Path, float], tuple[Path, Path]] | None = None
    write: Callable[[Path, float], object] | None = None

    def list_name(self, split: str) -> str:
        """The file name of the list that serves as train, val or test."""
        serves = {"val": self.val_split, "test": self.test_split}.get(split, split)
        return f"{self.set_name}_{serves}.txt"

    @property
    def list_names(self) -> list[str]:
        """The file names of all lists of the set, each once."""
        return list(dict.fromkeys(self.list_name(split) for split in ("train", "val", "test")))


DOWNLOAD = "python -m imagenet_inat.splits download"
MAKE = "python -m imagenet_inat.splits make"

REGISTRY = {
    spec.name: spec
    for spec in (
        DatasetSpec(
            name="imagenet",
            set_name="ImageNet_LT",
            num_classes=1000,
            **IMAGENET_STATISTICS,
            source="ILSVRC 2012 with train/<wnid>/*.JPEG and val/",
            get_lists=f"{DOWNLOAD} imagenet --output {{folder}}",
            published=True,
            flat_folder="val",
        ),
        DatasetSpec(
            name="inat",
            set_name="iNaturalist18",
            num_classes=8142,
            mean=(0.466, 0.471, 0.380),
            std=(0.195, 0.194, 0.192),
            source="iNaturalist 2018 with train_val2018/",
            get_lists=f"{DOWNLOAD} inat --output {{folder}}",
            published=True,
            jitter=False,
            test_split="val",
        ),
        DatasetSpec(
            name="places",
            set_name="Places_LT",
            num_classes=365,
            **IMAGENET_STATISTICS,
            source="Places365-Standard, small images",
            get_lists=f"{DOWNLOAD} places --output {{folder}}",
            published=True,
        ),
        # CIFAR: the statistics that its papers use; the release's views for ImageNet at 32 px (crops of 8 % to
        # 100 % of the image, flip, jitter). Its cifar_dirty/ has others (crops of 20 % to 100 %, jitter of hue too,
        # grey). The official 10,000 test images are the only balanced ones, so they serve as validation too.
        DatasetSpec(
            name="cifar10",
            set_name="CIFAR10_LT",
            num_classes=10,
            mean=(0.4914, 0.4822, 0.4465),
            std=(0.2023, 0.1994, 0.2010),
            source="CIFAR-10 as image files",
            get_lists=f"{MAKE} cifar10 --imbalance {{imbalance:g}} --output {{data_root}}",
            image_size=32,
            arch="resnet32",
            view="thumbnail",
            val_split="test",
            imbalance=100.0,
            largest=5000,
            prepare=functools.partial(made_folders, "CIFAR10_LT"),
        ),
        DatasetSpec(
            name="cifar100",
            set_name="CIFAR100_LT",
            num_classes=100,
            mean=(0.5071, 0.4867, 0.4408),
            std=(0.2675, 0.2565, 0.2761),
            source="CIFAR-100 as image files",
            get_lists=f"{MAKE} cifar100 --imbalance {{imbalance:g}} --output {{data_root}}",
            image_size=32,
            arch="resnet32",
            view="thumbnail",
            val_split="test",
            imbalance=100.0,
            largest=500,
            prepare=functools.partial(made_folders, "CIFAR100_LT"),
        ),
        DatasetSpec(
            name="digits",
            set_name="digits_LT",
            num_classes=10,
            mean=(0.305, 0.305, 0.305),
            std=(0.376, 0.376, 0.376),
            source="scikit-learn's handwritten digits, written at first use",
            image_size=16,
            arch="resnet20",
            view="digit",
            repeat=8,
            imbalance=50.0,
            largest=digits.TRAIN_LARGEST,
            prepare=functools.partial(made_folders, "digits_LT"),
            write=digits.prepare,
        ),
    )
}

# Any folder of images with its own lists. The class count, 0 here, is read from the training list.
CUSTOM = DatasetSpec(
    name="custom",
    set_name="custom",
    num_classes=0,
    **IMAGENET_STATISTICS,
    source="your images",
    get_lists=f"{MAKE} IMAGES --output LISTS, then --splits LISTS; or --train-txt, --val-txt and --test-txt",
)


def names() -> list[str]:
    """What --dataset takes."""
    return [*sorted(REGISTRY), CUSTOM.name]


def row(name: str) -> DatasetSpec:
    """The row of a data set's name; `custom` has one outside REGISTRY, for it has no class count yet."""
    return CUSTOM if name == CUSTOM.name else REGISTRY[name]


def locate(
    spec: DatasetSpec, data_root: str, splits: str | None = None, imbalance: float | None = None
) -> tuple[Path, Path]:
    """The folder that the lists' paths start from, and the folder of the lists; digits are written at first use."""
    root, lists = Path(data_root), LISTS_ROOT / spec.set_name
    if spec.write:
        spec.write(root, imbalance or spec.imbalance)
    if spec.prepare:
        root, lists = spec.prepare(root, imbalance or spec.imbalance)
    return root, Path(splits) if splits else lists


def how_to_get(spec: DatasetSpec, file: Path, data_root: str, imbalance: float | None) -> str:
    """What to type when this list is not there."""
    command = spec.get_lists.format(folder=file.parent, data_root=data_root, imbalance=imbalance)
    return f"get it: {command}; or name the folder of the lists with --splits"


def list_files(spec: DatasetSpec, folder: Path, given: dict[str, str | None]) -> dict[str, Path]:
    """The lists of train, val and test: as given, or by their names in the folder of the lists."""
    if spec.val_split == spec.test_split:  # one list, under whichever name it is given
        val, test = given["val"], given["test"]
        given = given | {"val": val or test, "test": test or val}
    return {split: Path(file) if file else folder / spec.list_name(split) for split, file in given.items()}


def shots(class_counts: np.ndarray) -> dict[str, np.ndarray]:
    """Masks over the classes, (C,) bool each: many > 100, medium 20-100, few < 20 training images."""
    many, few = class_counts > MANY_ABOVE, class_counts < FEW_BELOW
    return {"many": many, "medium": ~many & ~few, "few": few}


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


class LongTailDataset(Dataset):
    """The images of one split list.

    Indexed with a number, or by the samplers with (index, draw): `draw` is the number
    of the draw in the run, and the random view is a function of the seed and of it.

    Args:
        root: the data root the list's paths start from. list_file: the split list.
        num_classes: C. transform: of the decoded RGB image. seed: the run's.
        flat_folder: see DatasetSpec.
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
    ):
        self.root, self.list_file, self.num_classes = Path(root), Path(list_file), num_classes
        self.transform, self.seed = transform, seed
        paths, self.labels = read_split(self.list_file, num_classes)
        # Of paths and labels in their order: runs on lists with the same one see the same images.
        self.digest = hashlib.sha256(paths.tobytes() + self.labels.tobytes()).hexdigest()[:16]
        self.paths, self.layout = in_found_layout(self.root, paths, flat_folder)
        self.passed_over = torch.zeros(len(self.labels), dtype=torch.bool).share_memory_() if skip_bad else None
        first = self.root / self.paths[0].decode()
        if not first.is_file():
            raise InputError(
                f"{first}: no such image, the first of {self.list_file}; --data-root must be the "
                "folder that the list's paths start from"
            )

    @property
    def class_counts(self) -> np.ndarray:
        """(C,) int64, images a class."""
        return np.bincount(self.labels, minlength=self.num_classes)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, item: int | tuple[int, int]):
        index, draw = item if isinstance(item, tuple) else (item, None)
        try:
            image = self.read(index)
        except InputError:
            if self.passed_over is None:
                raise
            image = self._read_another(index)
        if draw is not None:
            # torchvision's transforms draw from torch's global generator; only the CPU's is set,
            # and before each image, so nothing is left of what was drawn earlier.
            torch.default_generator.manual_seed(counted_seed(self.seed, Stream.AUGMENT, draw))
        return self.transform(image), int(self.labels[index])

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

    def read(self, index: int) -> Image.Image:
        """The decoded RGB image of a line of the list."""
        path = self.root / self.paths[index].decode()
        try:
            with Image.open(path) as image:
                image.load()
                return image if image.mode == "RGB" else image.convert("RGB")  # else convert would copy it
        except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            line = index + 1
            raise InputError(f"{path}: not a readable image, {self.list_file}:{line} ({error})") from None
