"""Long-tailed CIFAR as the field makes it: torchvision's CIFAR classes, written once as image files.

Class c of C keeps ⌊n_max·ρ^(−c/(C−1))⌋ of its training images, chosen at random; the
10,000 test images stay as they are.
"""

from pathlib import Path

import numpy as np
from PIL import Image
from torchvision.datasets import CIFAR10, CIFAR100
from tqdm import tqdm

from imagenet_inat.known_files import write_lists
from imagenet_inat.profiles import class_sizes
from imagenet_inat.split_lists import made_folders, split_text
from utils.errors import InputError
from utils.files import write_folder

SETS = {"cifar10": ("CIFAR10_LT", CIFAR10), "cifar100": ("CIFAR100_LT", CIFAR100)}


def make(name: str, output: Path, imbalance: float, seed: int) -> tuple[Path, Path]:
    """Write the images, unless they are there, and the lists of an imbalance and a seed.

    Args:
        name: cifar10 or cifar100. output: the data root; CIFAR's archive is kept or
            downloaded there.

    Returns:
        The data root of the lists' paths and the folder of the lists.

    Raises:
        InputError: CIFAR is neither there nor can be downloaded, or an imbalance that
            would leave a class without an image.
    """
    set_name, source = SETS[name]
    root, lists = made_folders(set_name, output, imbalance)
    if seed:
        lists = lists.with_name(f"{lists.name}_seed_{seed}")
    output.mkdir(parents=True, exist_ok=True)
    try:
        train, test = (source(str(output), train=part, download=True) for part in (True, False))
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"{output}: {name} is not there and cannot be downloaded ({error}); put {source.filename} there "
            f"from {source.url}, the same command goes on"
        ) from None
    write_folder(root / "images", lambda folder: _write_images(folder, {"train": train, "test": test}))
    largest = int(np.bincount(train.targets).max())
    texts = split_texts(np.array(train.targets), np.array(test.targets), largest, imbalance, seed)
    texts = {f"{set_name}_{split}.txt": text for split, text in texts.items()}
    made = {"source": name, "profile": "exp", "imbalance": imbalance, "seed": seed, "classes": train.classes}
    write_folder(lists, lambda folder: write_lists(folder, texts, made))
    return root, lists


def split_texts(
    train_labels: np.ndarray, test_labels: np.ndarray, largest: int, imbalance: float, seed: int
) -> dict[str, str]:
    """The texts of the training and test lists.

    Raises:
        InputError: the smallest class would have no image.
    """
    if not 1 <= imbalance <= largest:
        raise InputError(f"--imbalance {imbalance:g}: expected 1 to {largest}, the images of a class")
    rng = np.random.RandomState(seed)  # the legacy generator: the same on every NumPy
    chosen = []
    sizes = class_sizes("exp", train_labels.max() + 1, imbalance, largest)
    for label, size in enumerate(sizes):
        chosen += rng.permutation(np.flatnonzero(train_labels == label))[:size].tolist()
    numbers = {"train": (chosen, train_labels), "test": (range(len(test_labels)), test_labels)}
    return {
        split: split_text([_image_name(split, labels[i], i) for i in part], [labels[i] for i in part])
        for split, (part, labels) in numbers.items()
    }


def _image_name(split: str, label: int, number: int) -> str:
    return f"images/{split}/{label}/{number:05d}.png"


def _write_images(folder: Path, parts: dict) -> None:
    total = sum(len(data.targets) for data in parts.values())
    with tqdm(total=total, desc="images", unit="file", leave=False, disable=None) as bar:
        for split, data in parts.items():
            for number, (pixels, label) in enumerate(zip(data.data, data.targets, strict=True)):
                path = folder / _image_name(split, label, number).removeprefix("images/")
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
                bar.update()
