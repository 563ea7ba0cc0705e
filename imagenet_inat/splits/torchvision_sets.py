"""The usual long-tailed CIFAR: torchvision's CIFAR images, written once as image files, and lists of them.

The training list keeps a random subset with exponential class sizes. The test list holds all 10,000 test images.
"""

from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from imagenet_inat.lists.format import format_split, generated_folders
from imagenet_inat.lists.known import write_lists
from imagenet_inat.lists.profiles import class_sizes, sample_splits
from utils.errors import InputError
from utils.files import write_folder

SETS = {"cifar10": "CIFAR10_LT", "cifar100": "CIFAR100_LT"}  # --dataset -> prefix of the lists


def make(name: str, output: Path, imbalance: float, seed: int) -> tuple[Path, Path]:
    """Write the images, unless they exist, and the lists for an imbalance and a seed. Return their folders.

    Args:
        name: a key of SETS.
        output: data root that contains CIFAR's archive, or to which it is downloaded.

    Raises:
        InputError: CIFAR does not exist and cannot be downloaded, or as `format_splits`.
    """
    from torchvision.datasets import CIFAR10, CIFAR100  # here, because PyTorch takes seconds to import

    set_name, source = SETS[name], CIFAR10 if name == "cifar10" else CIFAR100
    root, lists = generated_folders(set_name, output, imbalance)
    if seed:
        lists = lists.with_name(f"{lists.name}_seed_{seed}")
    output.mkdir(parents=True, exist_ok=True)
    try:
        train, test = (source(str(output), train=part, download=True) for part in (True, False))
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"{output}: {name} not found, and the download failed ({error}); put {source.filename} there "
            f"from {source.url}, and run the same command again"
        ) from None
    write_folder(root / "images", lambda folder: _write_images(folder, {"train": train, "test": test}))
    texts = format_splits(np.array(train.targets), np.array(test.targets), imbalance, seed)
    texts = {f"{set_name}_{split}.txt": text for split, text in texts.items()}
    made = {"source": name, "profile": "exp", "imbalance": imbalance, "seed": seed, "classes": train.classes}
    write_folder(lists, lambda folder: write_lists(folder, texts, made))
    return root, lists


def format_splits(train_labels: np.ndarray, test_labels: np.ndarray, imbalance: float, seed: int) -> dict[str, str]:
    """Format the training and test lists as texts.

    Raises:
        InputError: the smallest class would have no image.
    """
    counts = np.bincount(train_labels)
    if not 1 <= imbalance <= counts.max():
        raise InputError(f"--imbalance {imbalance:g}: expected 1 to {counts.max()} (the images per class)")
    images = [[_image_name("train", c, i) for i in np.flatnonzero(train_labels == c)] for c in range(len(counts))]
    train = sample_splits(images, class_sizes("exp", len(counts), imbalance, counts.max()), 0, 0, seed)["train"]
    test = [_image_name("test", label, i) for i, label in enumerate(test_labels)]
    return {"train": format_split(*train), "test": format_split(test, test_labels)}


def _image_name(split: str, label: int, number: int) -> str:
    return f"images/{split}/{label}/{number:05d}.png"


def _write_images(folder: Path, datasets: dict) -> None:
    total = sum(len(data.targets) for data in datasets.values())
    with tqdm(total=total, desc="images", unit="file", leave=False, disable=None) as bar:
        for split, data in datasets.items():
            for number, (pixels, label) in enumerate(zip(data.data, data.targets, strict=True)):
                path = folder / _image_name(split, label, number).removeprefix("images/")
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
                bar.update()
