"""Long-tailed Fashion-MNIST. The IDX files are read directly; only the lists are written.

Fashion-MNIST has 60,000 training and 10,000 test images of 28 × 28 grey pixels in ten classes of clothes (Xiao et al.
2017). All test images are used for test, and 100 training images of each class for validation. Class c keeps
largest · ρ^(−c/9) of its other images for training, as in long-tailed CIFAR. `split_seed` selects the images.
"""

import hashlib
import json
from pathlib import Path

import numpy as np

from imagenet_inat.lists.format import format_split, generated_folders
from imagenet_inat.lists.known import MADE, write_lists
from imagenet_inat.lists.profiles import class_sizes, sample_splits
from imagenet_inat.sets import idx
from utils.distributed import log
from utils.errors import InputError
from utils.files import write_folder

SET_NAME, NUM_CLASSES = "Fashion_MNIST_LT", 10
VAL_PER_CLASS = 100
TRAIN, TEST = (
    ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
)
SHA256 = {  # of the uncompressed content, because archives of the same content differ
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # from the package dataset-fashion-mnist


def find_image_folder(data_root: Path) -> Path:
    """Return the folder of the IDX files: --data-root, torchvision's folder below it, or Debian's. Otherwise download.

    Raises:
        InputError: a folder holds only some of the files, or no folder holds them and the download fails.
    """
    downloaded = Path(data_root) / "FashionMNIST" / "raw"
    candidates = (Path(data_root), downloaded, DEBIAN)
    for folder in candidates:
        existing = [name for name in SHA256 if idx.find_file(folder / name).is_file()]
        if len(existing) == len(SHA256):
            return folder
        if existing:  # perhaps another data set or an incomplete download, so do not look further
            missing = next(name for name in SHA256 if name not in existing)
            raise InputError(
                f"{folder / missing}: no such file, with or without .gz, although {existing[0]} exists; add the "
                "missing files (four in all), or remove those that exist"
            )
    from torchvision.datasets import FashionMNIST  # here, because PyTorch takes seconds to import

    try:
        FashionMNIST(str(data_root), download=True)
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"Fashion-MNIST: not found in {', '.join(map(str, candidates))}, and the download failed ({error}); put "
            f"its four files *-ubyte.gz into {data_root}, or, on Debian and Ubuntu, run apt-get install "
            "dataset-fashion-mnist"
        ) from None
    return downloaded


def prepare(data_root: Path, imbalance: float, largest: int, split_seed: int = 0) -> None:
    """Write the lists below data_root, unless they exist.

    Args:
        largest: training images of the largest class.
        split_seed: random seed of the selection of training and validation images.

    Raises:
        InputError: as `find_image_folder`; a file is invalid; a class has too few images; or existing lists were
            generated from other labels.
    """
    folder = find_image_folder(data_root)
    lists = generated_folders(SET_NAME, data_root, imbalance, largest, split_seed)[1]
    labels = {name: idx.content(idx.find_file(folder / name)) for _, name in (TRAIN, TEST)}
    digest = hashlib.sha256(b"".join(labels.values())).hexdigest()
    if not lists.is_dir():
        log(f"data: writing the lists {lists}")
    made = {"source": str(folder), "profile": "exp", "imbalance": imbalance, "largest": largest, "labels": digest}
    write_folder(lists, lambda draft: _write_lists(draft, folder, made | {"split_seed": split_seed}))
    try:
        stored_digest = json.loads((lists / MADE).read_text(encoding="utf-8"))["labels"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(f"{lists / MADE}: cannot be read ({error}); delete {lists} to create it again") from None
    if stored_digest != digest:
        raise InputError(f"{lists}: generated from other labels than those in {folder}; delete it to create it again")


def _write_lists(draft: Path, folder: Path, made: dict) -> None:
    """Write the lists and made.json, which has the entries `made`, into a draft folder. folder: the IDX files."""
    labels = {}
    for part in (TRAIN, TEST):
        files = [idx.find_file(folder / name) for name in part]
        images, labels[part] = idx.read(files[0], 3), idx.read(files[1], 1)
        if len(images) != len(labels[part]):
            raise InputError(f"{files[0]}: {len(images)} images, expected {len(labels[part])} as in {files[1].name}")
        _note_unknown_content(dict(zip(part, files, strict=True)))
    sizes = class_sizes("exp", NUM_CLASSES, made["imbalance"], made["largest"])
    _check_class_sizes(labels[TRAIN], sizes, idx.find_file(folder / TRAIN[1]))
    images_of_class = [[_path(TRAIN, i) for i in np.flatnonzero(labels[TRAIN] == c)] for c in range(NUM_CLASSES)]
    parts = sample_splits(images_of_class, sizes, VAL_PER_CLASS, 0, made["split_seed"])
    parts["test"] = [_path(TEST, i) for i in range(len(labels[TEST]))], labels[TEST].tolist()
    texts = {f"{SET_NAME}_{split}.txt": format_split(*part) for split, part in parts.items()}
    write_lists(draft, texts, made)


def _path(part: tuple[str, str], number: int) -> str:
    return f"{part[0]}/{number:05d}"


def _note_unknown_content(files: dict[str, Path]) -> None:
    for name, file in files.items():
        digest = hashlib.sha256(idx.content(file)).hexdigest()
        if digest != SHA256[name]:
            log(f"note: {file}: not Fashion-MNIST's (SHA-256 {digest[:16]}…, not {SHA256[name][:16]}…), used anyway")


def _check_class_sizes(labels: np.ndarray, sizes: list[int], file: Path) -> None:
    """Raise InputError unless each class, 0 to 9, has enough images for training and validation."""
    counts = np.bincount(labels, minlength=NUM_CLASSES)
    if len(counts) != NUM_CLASSES:
        raise InputError(f"{file}: found the label {len(counts) - 1}, expected 0 to {NUM_CLASSES - 1}")
    for label, (count, size) in enumerate(zip(counts, sizes, strict=True)):
        if size + VAL_PER_CLASS > count:
            raise InputError(
                f"{file}: class {label} has {count} images, expected {size + VAL_PER_CLASS} ({size} for training and "
                f"{VAL_PER_CLASS} for validation); use a smaller --largest"
            )
