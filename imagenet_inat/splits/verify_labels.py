"""Check the labels of lists against the folders of the images, within each list and between lists."""

from collections import Counter
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np

from imagenet_inat.splits.findings import MAX_CASES, Findings, format_first_cases
from imagenet_inat.splits.image_folders import SPLIT_FOLDERS
from utils.distributed import log

NUM_SHUFFLES = 20  # random assignments of labels, against which the labels of the folders are compared
MIN_AGREEMENT = 0.2  # agreement of folders and labels, from 0 (as by chance) to 1, if folders are classes
MIN_SHARE = 2 / 3  # share of a folder's images with its usual label, if folders and labels match one to one


class SplitList(NamedTuple):
    """A valid list: paths (n,) bytes, labels (n,) int64."""

    file: Path
    paths: np.ndarray
    labels: np.ndarray


class FolderLabels(NamedTuple):
    """The folders of a list: folders (n,) of each line, and the most frequent label of each folder."""

    split_list: SplitList
    folders: list[bytes]
    usual: dict[bytes, int]

    def lines_that_differ(self, usual: dict[bytes, int]) -> Iterator[tuple[int, bytes, int, int]]:
        """Yield (line, path, label, expected label) of the lines whose label differs from these labels of folders."""
        lines = zip(self.folders, self.split_list.paths.tolist(), self.split_list.labels.tolist(), strict=True)
        for number, (folder, path, label) in enumerate(lines, start=1):
            if (expected := usual.get(folder, label)) != label:
                yield number, path, label, expected


def check_folder_labels(lists: list[SplitList], findings: Findings) -> None:
    """Report images whose label differs from their folder's, and folders whose label differs between lists.

    Nothing is reported for folders that are not classes, such as one folder per day or for all images.
    """
    found = [
        FolderLabels(split_list, folders, _usual_labels(folders, split_list.labels))
        for split_list, folders in zip(lists, _class_folders(lists), strict=True)
    ]
    by_class = [one for one in found if one.usual and _folders_are_classes(one)]
    if not by_class:
        return
    log("labels of folders")
    known = {folder: label for one in reversed(by_class) for folder, label in one.usual.items()}
    problems = findings.num_problems
    for one in found:
        usual = one.usual if one in by_class else known
        if sum(folder in usual for folder in one.folders) * 2 < len(one.folders):
            findings.note(f"{one.split_list.file.name}: folders are not classes, so labels were not compared with them")
            continue
        differing = list(one.lines_that_differ(usual))
        cases = [
            f"line {number}, {path.decode()} with label {label}, others in its folder {expected}"
            for number, path, label, expected in differing[:MAX_CASES]
        ]
        if differing:
            findings.bad(
                f"{one.split_list.file.name}: {len(differing):,} of {len(one.folders):,} images whose label differs "
                f"from their folder's: {format_first_cases(cases, len(differing))}"
            )
    for one, other in combinations(by_class, 2):
        shared = sorted(one.usual.keys() & other.usual.keys())
        cases = [
            f"{folder.decode()} ({one.usual[folder]} and {other.usual[folder]})"
            for folder in shared
            if one.usual[folder] != other.usual[folder]
        ]
        if cases:
            findings.bad(
                f"{len(cases)} of {len(shared)} folders have other labels in {one.split_list.file.name} than in "
                f"{other.split_list.file.name}: {format_first_cases(cases)}"
            )
    if findings.num_problems == problems:
        findings.good("every image has the label of its folder")


def _class_folders(lists: list[SplitList]) -> list[list[bytes]]:
    """Return the class folder of each line of each list; empty lists if no level of folders may be the classes.

    Names of splits are omitted, so that train/cat and val/cat are the same folder. Of the levels of nested folders, the
    first one with at least as many folders as labels is used.
    """
    parts = [[_folder_parts(path.rpartition(b"/")[0]) for path in one.paths.tolist()] for one in lists]
    distinct = set().union(*(set(of_list) for of_list in parts))
    num_labels = len(set().union(*(set(one.labels.tolist()) for one in lists))) if lists else 0
    for depth in range(1, max(map(len, distinct), default=0) + 1):
        num_folders = len({folder[:depth] for folder in distinct})
        if num_folders >= num_labels:
            break
    else:
        depth, num_folders = None, len(distinct)
    if not (num_folders >= 2 and num_labels / 2 <= num_folders <= 2 * num_labels):
        return [[] for _ in lists]
    return [[b"/".join(folder[:depth]) for folder in of_list] for of_list in parts]


def _folder_parts(folder: bytes) -> tuple[bytes, ...]:
    parts = folder.split(b"/")
    return tuple(part for part in parts if part.decode().casefold() not in SPLIT_FOLDERS) or tuple(parts)


def _usual_labels(folders: list[bytes], labels: np.ndarray) -> dict[bytes, int]:
    counters: dict[bytes, Counter] = {}
    for folder, label in zip(folders, labels.tolist() if folders else [], strict=True):
        counters.setdefault(folder, Counter())[label] += 1
    return {folder: counter.most_common(1)[0][0] for folder, counter in counters.items()}


def _folders_are_classes(one: FolderLabels) -> bool:
    """Return whether the folders of a list determine its labels, even if some lines are wrong.

    The number of images that have their folder's usual label is compared with that for shuffled labels.
    """
    folders, labels = np.unique(one.folders, return_inverse=True)[1], one.split_list.labels
    labels = np.unique(labels, return_inverse=True)[1]
    usual = _largest_counts(folders, labels)  # (F,)
    if usual.sum() == len(labels):
        return True
    one_to_one = len(set(one.usual.values())) == len(one.usual) == labels.max() + 1
    if one_to_one and (usual / np.bincount(folders) >= MIN_SHARE).all():
        return True
    rng = np.random.default_rng(0)
    by_chance = [_largest_counts(folders, rng.permutation(labels)).sum() for _ in range(NUM_SHUFFLES)]
    gain, most = usual.sum() - np.mean(by_chance), len(labels) - np.mean(by_chance)
    return bool(usual.sum() > max(by_chance) and gain > MIN_AGREEMENT * most)


def _largest_counts(folders: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the number of images with the usual label of each folder, (F,), for indices (n,) of folders and labels."""
    pairs, counts = np.unique(folders * (labels.max() + 1) + labels, return_counts=True)
    largest = np.zeros(folders.max() + 1, dtype=np.int64)
    np.maximum.at(largest, pairs // (labels.max() + 1), counts)
    return largest
