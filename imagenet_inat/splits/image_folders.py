"""Find the images of a folder of class folders, or of train/, val/ and test/ with class folders in each."""

from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from imagenet_inat.splits.image_search import ImageSearch
from utils.distributed import log
from utils.errors import InputError

# The split that a folder holds, by its name in lower case.
SPLIT_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


class FoundImages(NamedTuple):
    """The images of a source.

    Attributes:
        classes: the names of the classes, in label order.
        images: for each split that the source defines, the images of each class as paths below the data root. Without
            split folders, this is only "train".
    """

    classes: list[str]
    images: dict[str, list[list[str]]]


def find_images(source: Path) -> FoundImages:
    """Return the classes and images of a folder.

    A folder that contains only train/ and, optionally, val/ (or valid/, validation/) and test/ defines these splits. A
    class has the same label in all of them. In any other folder, each subfolder is a class.

    Raises:
        InputError: the folder cannot be read; or there are split folders, but no train/, two for one split, or other
            folders beside them.
    """
    search = ImageSearch(source)
    names = search.subfolders("")
    split_folders = _split_folders(source, names)
    if not split_folders:
        classes = names
        images = {"train": [search.images_below(name) for name in _progress(classes)]}
    else:
        by_split = {split: _class_folders(search, folder) for split, folder in split_folders.items()}
        classes = sorted(set().union(*by_split.values()))
        images = {
            split: [search.images_below(f"{folder}/{name}") for name in _progress(classes)]
            for split, folder in split_folders.items()
        }
        log_split_folders(source, split_folders, images)
    if search.skipped:
        log(f"{source}: skipped {search.summary()}")
    return FoundImages(classes, images)


def log_split_folders(source: Path, folders: dict[str, str], images: dict[str, list[list[str]]]) -> None:
    """Report which split folders were recognised. folders: split -> name of its folder."""
    counts = [
        f"{folder}/ is {split} ({sum(map(len, images[split])):,} images of {sum(map(bool, images[split]))} classes)"
        for split, folder in folders.items()
    ]
    missing = [split for split in ("val", "test") if split not in folders]
    split_off = f"; {' and '.join(missing)}: split off from train" if missing else ""
    log(f"{source}: recognised split folders: {', '.join(counts)}{split_off}")


def _split_folders(source: Path, names: list[str]) -> dict[str, str]:
    """Return the folder of each split, in the order train, val, test; an empty dict if the subfolders are classes."""
    found: dict[str, list[str]] = {split: [] for split in SPLIT_FOLDERS.values()}
    others = []
    for name in names:
        found[split].append(name) if (split := SPLIT_FOLDERS.get(name.casefold())) else others.append(name)
    found = {split: folders for split, folders in found.items() if folders}
    if not found or (others and ("train" not in found or len(found) == 1)):
        return {}  # with others, a single "train" or "test" is the name of a class
    if "train" not in found:
        raise InputError(f"{source}: found {', '.join(names)}, but no train folder; add train/<class>/")
    for split, folders in found.items():
        if len(folders) > 1:
            raise InputError(f"{source}: {' and '.join(folders)}: two folders for {split}, expected one; rename one")
    if others:
        found_folders = ", ".join(folders[0] for folders in found.values())
        raise InputError(
            f"{source}: split folders ({found_folders}) beside {', '.join(others[:5])}; expected only split folders, "
            "or only class folders; move the others"
        )
    return {split: folders[0] for split, folders in found.items()}


def _class_folders(search: ImageSearch, folder: str) -> list[str]:
    if not (classes := search.subfolders(folder)):
        raise InputError(f"{search.root / folder}: no class folders, expected {folder}/<class>/")
    return classes


def _progress(classes: list[str]):
    return tqdm(classes, desc="images", unit="class", leave=False, disable=None)
