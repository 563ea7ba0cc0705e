"""Find images that are the same picture under different names, by a hash of their pixels."""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from imagenet_inat.datasets import CUSTOM, DatasetSpec
from imagenet_inat.images import adapt_paths, open_rgb
from imagenet_inat.splits.findings import MAX_CASES, Findings, format_first_cases
from imagenet_inat.splits.verify_images import CHUNK, THREADS
from imagenet_inat.splits.verify_labels import SplitList
from utils.errors import InputError


def check_duplicates(spec: DatasetSpec, lists: list[SplitList], root: Path, findings: Findings) -> None:
    """Report pictures that are in two lists or in two classes under different names.

    Published data sets contain some, so that these are notes there. Unreadable images are skipped.
    """
    names = [[path.decode() for path in adapt_paths(root, one.paths, spec.flat_folder)[0].tolist()] for one in lists]
    paths = list(dict.fromkeys(path for of_list in names for path in of_list))
    digests = dict(zip(paths, _digests(root, paths), strict=True))
    pictures: dict[bytes, dict[str, tuple[str, int]]] = {}  # digest -> path -> (list, label)
    for one, of_list in zip(lists, names, strict=True):
        for path, label in zip(of_list, one.labels.tolist(), strict=True):
            if digest := digests[path]:
                pictures.setdefault(digest, {}).setdefault(path, (one.file.name, label))
    report, found = findings.bad if spec == CUSTOM else findings.note, False
    for number, what in enumerate(("lists", "classes")):
        repeated = [copies for copies in pictures.values() if len({place[number] for place in copies.values()}) > 1]
        cases = [_describe(copies, number) for copies in repeated[:MAX_CASES]]
        if repeated:
            found = True
            report(
                f"equal pictures in two {what} under different names ({len(repeated)}): "
                f"{format_first_cases(cases, len(repeated))}"
            )
    if not found:
        findings.good("no picture is in two lists or two classes under different names")


def _describe(copies: dict[str, tuple[str, int]], number: int) -> str:
    """Return two paths of a picture whose list (number 0) or label (number 1) differs."""
    (first, place), *others = copies.items()
    second, other = next(item for item in others if item[1][number] != place[number])
    return f"{first} ({place[0]}, label {place[1]}) = {second} ({other[0]}, label {other[1]})"


def _digests(root: Path, paths: list[str]) -> Iterator[bytes]:
    """Yield the digest of each image's pixels, or b"" if it is unreadable."""
    chunks = [paths[i : i + CHUNK] for i in range(0, len(paths), CHUNK)]
    with (
        ThreadPoolExecutor(THREADS) as pool,
        tqdm(total=len(paths), desc="pixels", unit="image", leave=False, disable=None) as bar,
    ):
        try:
            for digests in pool.map(lambda chunk: [_digest(root, path) for path in chunk], chunks):
                bar.update(len(digests))
                yield from digests
        except BaseException:
            pool.shutdown(cancel_futures=True)  # so that Ctrl-C ends at once
            raise


def _digest(root: Path, path: str) -> bytes:
    try:
        image = open_rgb(root, path)
        return hashlib.blake2b(image.tobytes(), digest_size=16, key=str(image.size).encode()).digest()
    except (InputError, OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return b""
