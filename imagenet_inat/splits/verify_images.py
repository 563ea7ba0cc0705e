"""Check that every listed image exists and can be opened, in many threads because most of the time is disk latency."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from imagenet_inat.datasets import DatasetSpec
from imagenet_inat.decoding import UNREADABLE, open_rgb
from imagenet_inat.images import adapt_paths, image_exists
from imagenet_inat.sets import idx
from imagenet_inat.splits.findings import Findings, format_first_cases
from utils.errors import InputError

THREADS, CHUNK = 32, 256  # CHUNK: images per task


def check_images(
    spec: DatasetSpec, name: str, listed: np.ndarray, root: Path, decode: bool, findings: Findings
) -> None:
    """Look for every image of a list, and report missing images and the layout.

    listed: the list's paths, (n,) bytes.
    """
    if not root.is_dir():
        findings.bad(f"{name}: no such folder, expected the root of {spec.source}")
        return
    paths, layout = adapt_paths(root, listed, spec.flat_folder)
    names = [path.decode() for path in paths.tolist()]
    problems: dict[str, list[str]] = {}  # kind of problem -> images
    checks = _map_in_threads(lambda path: _image_problem(root, path, decode, spec.as_shown), names, name)
    for path, problem in zip(names, checks, strict=True):
        if problem:
            kind = problem.split(":")[0]
            problems.setdefault(kind, []).append(path + problem.removeprefix(kind))
    layout = f", layout {layout}" if layout else ""
    if "missing" in problems and not layout and spec.flat_folder and _has_class_folders(root / spec.flat_folder, names):
        findings.note(f"{spec.flat_folder}/ has class folders, {name} has none; use the published list")
    if not problems:
        findings.good(f"{name}: all {len(names):,} {'opened' if decode else 'found'}{layout}")
    for kind, cases in problems.items():
        findings.bad(f"{name}: {len(cases):,} of {len(names):,} images {kind}{layout}: {format_first_cases(cases)}")


def _has_class_folders(folder: Path, names: list[str]) -> bool:
    flat = any(name.startswith(f"{folder.name}/") and name.count("/") == 1 for name in names)
    return flat and folder.is_dir() and any(entry.is_dir() for entry in folder.iterdir())


def _image_problem(root: Path, path: str, decode: bool, as_shown: bool) -> str:
    """Return the problem with an image, or ""."""
    try:
        if not image_exists(root, path):
            return "missing"
        if not idx.is_inside(path) and (root / path).stat().st_size == 0:
            return "empty"
        if decode:
            open_rgb(root, path, as_shown)
    except (InputError, *UNREADABLE) as error:
        return f"unreadable: {error}"
    return ""


def _map_in_threads(check: Callable[[str], str], items: list[str], title: str) -> Iterator[str]:
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
