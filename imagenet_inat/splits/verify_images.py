"""Check that every listed image exists and can be read, in many threads because most of the time is disk latency."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from os import SEEK_END
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from imagenet_inat.datasets import DatasetSpec
from imagenet_inat.decoding import UNREADABLE, open_rgb_and_kinds
from imagenet_inat.images import adapt_paths, image_exists
from imagenet_inat.sets import idx
from imagenet_inat.splits.findings import Findings, format_first_cases
from utils.errors import InputError

THREADS, CHUNK = 32, 256  # CHUNK: images per task
# First bytes of JPEG and PNG files -> bytes near the end of a complete file.
ENDS = {b"\xff\xd8\xff": b"\xff\xd9", b"\x89PNG\r\n\x1a\n": b"IEND\xaeB`\x82"}


class ImageCheck(NamedTuple):
    """The problem of an image, or ""; its kinds, see `open_rgb_and_kinds`; and a hash of its pixels, if decoded."""

    problem: str = ""
    kinds: tuple[str, ...] = ()
    digest: bytes = b""


def check_images(
    spec: DatasetSpec, name: str, listed: np.ndarray, root: Path, decode: bool, findings: Findings
) -> list[tuple[str, bytes]]:
    """Look for every image of a list, and report missing images and the layout.

    Args:
        listed: the list's paths, (n,) bytes.

    Returns:
        The path of each image on disk, and a hash of its pixels, or b"" if it is unreadable or not decoded.
    """
    if not root.is_dir():
        findings.bad(f"{name}: no such folder, expected the root of {spec.source}")
        return []
    paths, layout = adapt_paths(root, listed, spec.flat_folder)
    names = [path.decode() for path in paths.tolist()]
    problems: dict[str, list[str]] = {}  # kind of problem -> images
    kind_counts = Counter()
    checks = [*_map_in_threads(lambda path: _check_image(root, path, decode, spec.as_shown), names, name)]
    for path, (problem, found, _) in zip(names, checks, strict=True):
        kind_counts.update(found)
        if problem:
            kind = problem.split(":")[0]
            problems.setdefault(kind, []).append(path + problem.removeprefix(kind))
    layout = f", layout {layout}" if layout else ""
    if "missing" in problems and not layout and spec.flat_folder and _has_class_folders(root / spec.flat_folder, names):
        findings.note(f"{spec.flat_folder}/ has class folders, {name} has none; use the published list")
    if not problems:
        findings.good(f"{name}: all {len(names):,} {'opened' if decode else 'found'}{layout}")
    if kind_counts:
        counted = ", ".join(f"{count:,} {kind}" for kind, count in kind_counts.most_common())
        findings.note(f"{name}: {counted}; docs/data.md describes how such images are read")
    for kind, cases in problems.items():
        findings.bad(f"{name}: {len(cases):,} of {len(names):,} images {kind}{layout}: {format_first_cases(cases)}")
    return [(path, check.digest) for path, check in zip(names, checks, strict=True)]


def _has_class_folders(folder: Path, names: list[str]) -> bool:
    flat = any(name.startswith(f"{folder.name}/") and name.count("/") == 1 for name in names)
    return flat and folder.is_dir() and any(entry.is_dir() for entry in folder.iterdir())


def _check_image(root: Path, path: str, decode: bool, as_shown: bool) -> ImageCheck:
    """Check one image. decode: whether to read all of it, once, to find its kinds, and to hash its pixels."""
    try:
        if not image_exists(root, path):
            return ImageCheck("missing")
        if idx.is_inside(path) and not decode:
            return ImageCheck()
        if not idx.is_inside(path) and (root / path).stat().st_size == 0:
            return ImageCheck("empty")
        if not decode and _seems_complete(root / path):
            return ImageCheck()
        image, kinds = open_rgb_and_kinds(root, path, as_shown)
        if not decode:
            return ImageCheck()
        digest = hashlib.blake2b(image.tobytes(), digest_size=16, key=str(image.size).encode()).digest()
        return ImageCheck("", tuple(kinds), digest)
    except (InputError, *UNREADABLE) as error:
        return ImageCheck(f"unreadable: {error}")


def _seems_complete(file: Path) -> bool:
    """Return whether the file is an image, by its first bytes, and not a truncated JPEG or PNG, by its last.

    A complete file may also end in other data, such as the video of a phone, so only decoding it gives certainty.

    Raises:
        OSError: the file is not an image, or cannot be read.
    """
    with file.open("rb") as opened:
        first = opened.read(8)
        opened.seek(max(0, opened.seek(0, SEEK_END) - 64))
        last = opened.read()
    for start, end in ENDS.items():
        if first.startswith(start):
            return end in last
    with Image.open(file):
        return True


def _map_in_threads(check: Callable[[str], ImageCheck], items: list[str], title: str) -> Iterator[ImageCheck]:
    """Yield check(item) of each item, in order, computed in many threads, with a progress bar."""
    chunks = [items[i : i + CHUNK] for i in range(0, len(items), CHUNK)]
    with (
        ThreadPoolExecutor(THREADS) as pool,
        tqdm(total=len(items), desc=title, unit="image", leave=False, disable=None) as bar,
    ):
        try:
            for results in pool.map(lambda chunk: [check(item) for item in chunk], chunks):
                bar.update(len(results))
                yield from results
        except BaseException:
            pool.shutdown(cancel_futures=True)  # so that Ctrl-C ends at once
            raise
