"""--split-seed, which selects the images of the data sets whose lists are generated at first use."""

import json
from pathlib import Path

from imagenet_inat.datasets import REGISTRY
from imagenet_inat.lists.format import read_split
from imagenet_inat.paths import SPLITS, ListFlags, find_lists, resolve_split_seed
from tests.idx_files import write_fashion_mnist
from tests.refusals import refusal


def files_of(name: str, data_root: Path, split_seed: int | None) -> dict[str, Path]:
    """Return the lists of a data set at imbalance 10, by split."""
    largest = 30 if name == "fashion" else None
    flags = ListFlags(data_root=str(data_root), imbalance=10, largest=largest, split_seed=split_seed)
    return find_lists(REGISTRY[name], flags).files


def images_of(files: dict[str, Path]) -> list[set[str]]:
    """Return the paths of the images of each split."""
    return [{*read_split(files[split], 10)[0]} for split in SPLITS]


def test_other_images_of_fashion_mnist_are_selected(tmp_path):
    """The test images are the same. No image is in both the training and the validation list of a seed."""
    write_fashion_mnist(tmp_path, 140, 1)
    first, same, other = (files_of("fashion", tmp_path, seed) for seed in (None, 0, 7))
    assert first == same and other["train"].parent.name == f"{first['train'].parent.name}_split_7"
    (train, val, test), (other_train, other_val, other_test) = images_of(first), images_of(other)
    assert not other_train & other_val and [*map(len, (train, val))] == [*map(len, (other_train, other_val))]
    assert train != other_train and val != other_val and test == other_test
    assert json.loads((other["train"].parent / "made.json").read_text())["split_seed"] == 7


def test_other_digits_are_selected(tmp_path):
    first, other = (images_of(files_of("digits", tmp_path, seed)) for seed in (0, 3))
    for images, other_images in zip(first, other, strict=True):
        assert images != other_images and len(images) == len(other_images)
    assert sum(map(len, other)) == len(set.union(*other)), "an image in two splits"


def test_fixed_lists_refuse_it():
    assert resolve_split_seed(REGISTRY["digits"], None) == 0 and resolve_split_seed(REGISTRY["imagenet"], None) is None
    refusal(lambda: resolve_split_seed(REGISTRY["cifar10"], 1), "--split-seed", 1, "cifar10", "digits, fashion, glyphs")
