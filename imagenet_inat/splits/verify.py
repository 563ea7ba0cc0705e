"""Check a data set before anything trains: its lists against what is known of them, its images one by one."""

import json
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np

from imagenet_inat.datasets import LISTS_ROOT, DatasetSpec
from imagenet_inat.lists.format import BYTE_ORDER_MARK, count_classes, read_split
from imagenet_inat.lists.known import KnownFile, describe, known_files
from imagenet_inat.splits.findings import SHOWN, Findings, some
from imagenet_inat.splits.verify_images import check_images
from utils.distributed import say
from utils.errors import InputError
from utils.measure.metrics import shots


class SplitList(NamedTuple):
    """A list that could be read: paths (n,) bytes, labels (n,) int64."""

    file: Path
    paths: np.ndarray
    labels: np.ndarray


def verify(spec: DatasetSpec, files: dict[str, Path], get: dict[str, str], root: Path | None, decode: bool) -> int:
    """Check the lists of a data set, and below `root`, if given, every image; returns how many things are wrong.

    files, get: see `Lists`; a list may serve as two splits. decode: open every image.
    """
    findings, lists = Findings(), {}
    num_classes = spec.num_classes or None
    for file in dict.fromkeys(files.values()):
        serves = [split for split in files if files[split] == file]
        say(f"{file} ({' and '.join(serves)})")
        if not file.is_file():
            findings.bad(f"absent; {get[serves[0]]}")
            continue
        read = _check_list(file, num_classes, "train" in serves, findings)
        if read is not None:
            lists[file] = read
            if "train" in serves and num_classes is None:
                num_classes = int(read.labels.max()) + 1
    _check_overlap(list(lists.values()), findings)
    if root is None:
        say("images")
        findings.note("not looked for: name their folder with --data-root")
    else:
        say(f"images below {root}")
        for split_list in lists.values():
            check_images(spec, split_list.file.name, split_list.paths, root, decode, findings)
    return findings.wrong


def _check_list(file: Path, num_classes: int | None, is_train: bool, findings: Findings) -> SplitList | None:
    try:
        paths, labels = read_split(file, num_classes)
        if is_train and num_classes is None:
            num_classes = count_classes(file, labels)
    except InputError as error:
        findings.bad(str(error))
        return None
    counts = np.bincount(labels, minlength=num_classes or 0)
    _show_counts(counts, is_train, findings)
    _check_bytes(file, findings)
    _check_counts(file.name, counts, is_train, findings)
    _check_repeats(paths, labels, findings)
    _check_folders(paths, labels, findings)
    return SplitList(file, paths, labels)


def _show_counts(counts: np.ndarray, is_train: bool, findings: Findings) -> None:
    span = f"{counts.max()}" if counts.max() == counts.min() else f"{counts.max()} … {counts.min()}"
    text = f"{counts.sum():,} lines, {len(counts)} classes, {span} images a class"
    if is_train:
        text += ": " + ", ".join(f"{int(mask.sum())} {name}" for name, mask in shots(counts).items())
    findings.good(text)


def _check_bytes(file: Path, findings: Findings) -> None:
    """Against the SHA-256; a list that only differs in how its lines are written is the same list."""
    data, known = file.read_bytes(), known_files(file)
    found, plain = describe(data), describe(_plainly_written(data))
    if not known:
        findings.note(f"no SHA-256 of it is known here, so names and labels are taken as they are ({found.sha256})")
    elif found in known:
        findings.good(f"the known list, byte for byte (SHA-256 {found.sha256[:16]}…)")
    elif plain in known:
        findings.note(f"the known list, written otherwise ({_ways_of_writing(data)}); it is read the same")
    else:
        findings.bad(
            f"not the known list: {found.lines:,} lines, {found.bytes:,} bytes, SHA-256 {found.sha256[:16]}…; "
            f"expected {known[0].lines:,} lines, {known[0].bytes:,} bytes, {known[0].sha256[:16]}…"
            f"{_likely_change(plain, known[0])}"
        )


def _likely_change(found: KnownFile, known: KnownFile) -> str:
    if (found.bytes, found.lines) == (known.bytes, known.lines):
        return "; as many bytes and lines, so lines were moved, or labels or names exchanged"
    return "; as many lines, so labels or names were changed" if found.lines == known.lines else ""


def _plainly_written(data: bytes) -> bytes:
    """The bytes with one blank before the label, \\n behind every line, and no byte-order mark."""
    lines = data.removeprefix(BYTE_ORDER_MARK).removesuffix(b"\n").split(b"\n")
    return b"".join(b" ".join(line.rsplit(None, 1)) + b"\n" for line in lines)


def _ways_of_writing(data: bytes) -> str:
    ways = {
        "a byte-order mark": data.startswith(BYTE_ORDER_MARK),
        "Windows line ends": b"\r\n" in data,
        "tabs": b"\t" in data,
        "no end of the last line": not data.endswith(b"\n"),
    }
    return ", ".join(way for way, is_so in ways.items() if is_so) or "other blanks"


def _check_counts(name: str, counts: np.ndarray, is_train: bool, findings: Findings) -> None:
    if (counts == 0).any():
        gaps = np.flatnonzero(counts == 0)
        tell = findings.bad if is_train else findings.note
        tell(f"{len(gaps)} classes without an image: {some(gaps.tolist())}")
    known = LISTS_ROOT / name.removesuffix("_train.txt") / "train_counts.json"
    if is_train and known.is_file():
        expected = np.array(json.loads(known.read_text()))
        if len(expected) == len(counts) and (differ := np.flatnonzero(expected != counts)).size:
            cases = [f"class {c}: {counts[c]}, expected {expected[c]}" for c in differ]
            findings.bad(f"images a class differ from the published: {some(cases)}")


def _check_repeats(paths: np.ndarray, labels: np.ndarray, findings: Findings) -> None:
    unique, first, times = np.unique(paths, return_index=True, return_counts=True)
    if len(unique) == len(paths):
        findings.good("no image twice")
        return
    repeated = np.flatnonzero(times > 1)
    cases = []
    for i in repeated[np.argsort(first[repeated])][:SHOWN]:
        lines = np.flatnonzero(paths == unique[i])
        found = f"lines {', '.join(str(n + 1) for n in lines[:SHOWN])}"
        if len(classes := sorted(set(labels[lines].tolist()))) > 1:
            found += f" with labels {', '.join(map(str, classes))}"
        cases.append(f"{unique[i].decode()} ({found})")
    findings.bad(f"{len(repeated)} images more than once: {some(cases, len(repeated))}")


def _check_folders(paths: np.ndarray, labels: np.ndarray, findings: Findings) -> None:
    """Where folders are classes, an image whose label is not its folder's was relabelled by mistake."""
    folders: dict[bytes, Counter] = {}
    for path, label in zip(paths.tolist(), labels.tolist(), strict=True):
        folders.setdefault(path.rpartition(b"/")[0], Counter())[label] += 1
    main = {folder: counter.most_common(1)[0] for folder, counter in folders.items()}
    odd = len(paths) - sum(count for _, count in main.values())
    if len(folders) < 2 or not 0 < odd <= len(paths) / 100:
        return  # one label a folder, or folders are no classes
    cases = []
    for number, (path, label) in enumerate(zip(paths.tolist(), labels.tolist(), strict=True), start=1):
        usual = main[path.rpartition(b"/")[0]][0]
        if label != usual and len(cases) < SHOWN:
            cases.append(f"line {number}, {path.decode()} with label {label}, others in its folder {usual}")
    findings.bad(f"{odd} images with another label than their folder: {some(cases, odd)}")


def _check_overlap(lists: list[SplitList], findings: Findings) -> None:
    if len(lists) < 2:
        return
    say("overlap")
    for one, other in combinations(lists, 2):
        common = np.intersect1d(one.paths, other.paths)
        if len(common):
            names = [path.decode() for path in common[:SHOWN]]
            findings.bad(
                f"{len(common)} images are in {one.file.name} and in {other.file.name}: {some(names, len(common))}"
            )
        else:
            findings.good(f"no image of {one.file.name} is in {other.file.name}")
