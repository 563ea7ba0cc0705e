"""Check a data set before training: its lists against known hashes and counts, and its images one by one."""

import json
from itertools import combinations
from pathlib import Path

import numpy as np

from imagenet_inat.datasets import CUSTOM, LISTS_ROOT, DatasetSpec
from imagenet_inat.lists.format import BYTE_ORDER_MARK, count_classes, read_split
from imagenet_inat.lists.known import KnownFile, counts_problem, fingerprint, known_files
from imagenet_inat.splits.duplicates import check_duplicates
from imagenet_inat.splits.findings import MAX_CASES, Findings, format_first_cases
from imagenet_inat.splits.image_search import is_hidden_or_system
from imagenet_inat.splits.verify_images import check_images
from imagenet_inat.splits.verify_labels import SplitList, check_folder_labels
from utils.distributed import log
from utils.errors import InputError
from utils.measure.metrics import shots


def verify(spec: DatasetSpec, files: dict[str, Path], hints: dict[str, str], root: Path | None, decode: bool) -> int:
    """Check the lists of a data set and, if `root` is given, every image. Return the number of problems.

    Args:
        files, hints: see `Lists`; a list may serve as two splits.
        root: data root, or None.
        decode: whether to open every image.
    """
    findings, lists = Findings(), {}
    num_classes = spec.num_classes or None
    for file in dict.fromkeys(files.values()):
        splits = [split for split in files if files[split] == file]
        log(f"{file} ({' and '.join(splits)})")
        if not file.is_file():
            # --holdout replaces the validation list of a custom set.
            report = findings.note if spec == CUSTOM and splits == ["val"] else findings.bad
            report(f"no such list; {hints[splits[0]]}")
            continue
        split_list = _check_list(file, spec, num_classes, "train" in splits, findings)
        if split_list is not None:
            lists[file] = split_list
            if "train" in splits and num_classes is None:
                num_classes = int(split_list.labels.max()) + 1
    _check_overlap(list(lists.values()), findings)
    check_folder_labels(list(lists.values()), findings)
    if root is None:
        log("images")
        findings.note("not checked; add --data-root to check them")
    else:
        log(f"images below {root}")
        images = [
            check_images(spec, split_list.file.name, split_list.paths, root, decode, findings)
            for split_list in lists.values()
        ]
        if decode and root.is_dir():
            check_duplicates(spec, list(lists.values()), images, findings)
    return findings.num_problems


def _check_list(
    file: Path, spec: DatasetSpec, num_classes: int | None, is_train: bool, findings: Findings
) -> SplitList | None:
    try:
        paths, labels = read_split(file, num_classes, spec.wnid_folder)
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
    _check_hidden(paths, findings)
    return SplitList(file, paths, labels)


def _show_counts(counts: np.ndarray, is_train: bool, findings: Findings) -> None:
    span = f"{counts.max()}" if counts.max() == counts.min() else f"{counts.max()} … {counts.min()}"
    text = f"{counts.sum():,} lines, {len(counts)} classes, {span} images per class"
    if is_train:
        text += ": " + ", ".join(f"{int(mask.sum())} {name}" for name, mask in shots(counts).items())
    findings.good(text)


def _check_bytes(file: Path, findings: Findings) -> None:
    """Compare the list with its known SHA-256. Lists that differ only in line ends or blanks count as equal."""
    data, known = file.read_bytes(), known_files(file)
    actual, normalised = fingerprint(data), fingerprint(_normalise_layout(data))
    if not known:
        findings.note(f"no known SHA-256 for this list, so paths and labels were not compared ({actual.sha256})")
    elif actual in known:
        findings.good(f"the known list, byte for byte (SHA-256 {actual.sha256[:16]}…)")
    elif normalised in known:
        findings.note(f"the known list, formatted differently ({_format_differences(data)}); it reads the same")
    else:
        findings.bad(
            f"not the known list: {actual.lines:,} lines, {actual.bytes:,} bytes, SHA-256 {actual.sha256[:16]}…; "
            f"expected {known[0].lines:,} lines, {known[0].bytes:,} bytes, {known[0].sha256[:16]}…"
            f"{_likely_change(normalised, known[0])}"
        )


def _likely_change(found: KnownFile, known: KnownFile) -> str:
    if (found.bytes, found.lines) == (known.bytes, known.lines):
        return "; same size and number of lines: lines were moved, or labels or paths swapped"
    return "; same number of lines: labels or paths were changed" if found.lines == known.lines else ""


def _normalise_layout(data: bytes) -> bytes:
    """Return the list with one blank before each label, \\n after each line, and no byte-order mark."""
    lines = data.removeprefix(BYTE_ORDER_MARK).removesuffix(b"\n").split(b"\n")
    return b"".join(b" ".join(line.rsplit(None, 1)) + b"\n" for line in lines)


def _format_differences(data: bytes) -> str:
    variants = {
        "a byte-order mark": data.startswith(BYTE_ORDER_MARK),
        "Windows line ends": b"\r\n" in data,
        "tabs": b"\t" in data,
        "no newline at the end": not data.endswith(b"\n"),
    }
    return ", ".join(name for name, present in variants.items() if present) or "other blanks"


def _check_counts(name: str, counts: np.ndarray, is_train: bool, findings: Findings) -> None:
    if (counts == 0).any():
        gaps = np.flatnonzero(counts == 0)
        report = findings.bad if is_train else findings.note
        report(f"{len(gaps)} classes without images: {format_first_cases(gaps.tolist())}")
    if is_train and (problem := counts_problem(name, counts)):
        findings.bad(f"not the published list: {problem}")
    known = LISTS_ROOT / name.removesuffix("_train.txt") / "train_counts.json"
    if is_train and known.is_file():
        expected = np.array(json.loads(known.read_text()))
        if len(expected) == len(counts) and (differ := np.flatnonzero(expected != counts)).size:
            cases = [f"class {c}: {counts[c]}, expected {expected[c]}" for c in differ]
            findings.bad(f"images per class differ from the published list: {format_first_cases(cases)}")


def _check_repeats(paths: np.ndarray, labels: np.ndarray, findings: Findings) -> None:
    unique, first, times = np.unique(paths, return_index=True, return_counts=True)
    if len(unique) == len(paths):
        findings.good("no repeated images")
        return
    repeated = np.flatnonzero(times > 1)
    cases = []
    for i in repeated[np.argsort(first[repeated])][:MAX_CASES]:
        lines = np.flatnonzero(paths == unique[i])
        location = f"lines {', '.join(str(n + 1) for n in lines[:MAX_CASES])}"
        if len(classes := sorted(set(labels[lines].tolist()))) > 1:
            location += f" with labels {', '.join(map(str, classes))}"
        cases.append(f"{unique[i].decode()} ({location})")
    findings.bad(f"{len(repeated)} repeated images: {format_first_cases(cases, len(repeated))}")


def _check_hidden(paths: np.ndarray, findings: Findings) -> None:
    """Report hidden files and those of operating systems, which are not a user's images."""
    hidden = [
        f"line {number}, {path.decode()}"
        for number, path in enumerate(paths.tolist(), start=1)
        if any(map(is_hidden_or_system, path.decode().split("/")))
    ]
    if hidden:
        findings.bad(f"{len(hidden)} hidden or system files: {format_first_cases(hidden)}")


def _check_overlap(lists: list[SplitList], findings: Findings) -> None:
    if len(lists) < 2:
        return
    log("overlap")
    for one, other in combinations(lists, 2):
        common = np.intersect1d(one.paths, other.paths)
        if len(common):
            names = [path.decode() for path in common[:MAX_CASES]]
            cases = format_first_cases(names, len(common))
            findings.bad(f"{len(common)} images are in {one.file.name} and {other.file.name}: {cases}")
        else:
            findings.good(f"no image of {one.file.name} is in {other.file.name}")
