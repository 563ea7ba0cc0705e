"""Download the published split lists. Downloads can be resumed; a file is renamed only after its hash is verified."""

import os
import shutil
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import BinaryIO

import numpy as np
from tqdm import tqdm

from imagenet_inat.datasets import DatasetSpec
from imagenet_inat.lists.format import read_split
from imagenet_inat.lists.known import COUNTS, PUBLISHED, counts_problem, fingerprint, published_url
from utils.distributed import log
from utils.errors import InputError
from utils.files import file_problem

CHUNK, TIMEOUT_S = 1 << 16, 30


def download(spec: DatasetSpec, output: Path, source: str | None) -> None:
    """Download or copy the lists of a data set into `output`.

    Args:
        source: folder or http(s) address of the files; None: the public repository.

    Raises:
        InputError: the source cannot be read or ends early (the received bytes are kept as .part, and
            the next call continues), or the content differs from the published lists.
    """
    output.mkdir(parents=True, exist_ok=True)
    for name in spec.list_names:
        fetch(published_url(name, spec.eval_set or spec.set_name) if source is None else source, name, output, spec)


def fetch(source: str, name: str, output: Path, spec: DatasetSpec) -> None:
    """Download or copy one list; see `download`."""
    path, part = output / name, output / f"{name}.part"
    if path.exists():
        log(f"{path}: already exists, {_check_and_describe(path, name, spec, 'delete it to download it again')}")
        return
    if source.startswith(("http://", "https://")):
        _transfer(f"{source.rstrip('/')}/{name}", part)
    else:
        original = Path(source) / name
        if not original.is_file():
            raise InputError(
                f"{original}: {file_problem(original)}; set --from to the folder or http(s) address of the lists"
            )
        shutil.copyfile(original, part)
    try:
        description = _check_and_describe(part, name, spec, f"the file from {source} was deleted")
    except InputError:
        part.unlink()
        raise
    os.replace(part, path)
    log(f"{path}: {description}")


def _check_and_describe(path: Path, name: str, spec: DatasetSpec, advice: str) -> str:
    """Check a file and return its description. If it is not valid, raise an InputError that ends in `advice`."""
    actual, known = fingerprint(path.read_bytes()), PUBLISHED.get(name)
    if known is None:
        counts = np.bincount(read_split(path, spec.num_classes, spec.wnid_folder)[1], minlength=spec.num_classes)
        if problem := counts_problem(name, counts):
            raise InputError(f"{path}: not the published {name}: {problem}; {advice}")
        checked = "format and class counts were checked" if name in COUNTS else "only the format was checked"
        return f"{actual.lines:,} lines; the published SHA-256 is unknown, {checked} ({actual.sha256})"
    if actual != known:
        raise InputError(
            f"{path}: not the published {name}: {actual.bytes:,} bytes with SHA-256 {actual.sha256}, "
            f"expected {known.bytes:,} with {known.sha256}; {advice}"
        )
    return f"{actual.lines:,} lines, the published list (SHA-256 verified)"


def _transfer(url: str, part: Path) -> None:
    """Download `url` to `part`, after the bytes that it already holds if the server supports this."""
    done = part.stat().st_size if part.exists() else 0
    try:
        request = urllib.request.Request(url, headers={"Range": f"bytes={done}-"} if done else {})
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
            if response.status != 206:  # the server sends the whole file
                done = 0
            total = done + int(response.headers["Content-Length"]) if "Content-Length" in response.headers else None
            with part.open("ab" if done else "wb") as file:
                _receive(response, file, part.name.removesuffix(".part"), done, total)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:  # the file is already complete
            return
        raise InputError(
            f"{url}: {error.code} {error.reason}; set --from to a folder or mirror that has the lists"
        ) from None
    except (OSError, HTTPException, ValueError) as error:  # ValueError: invalid address
        reason = getattr(error, "reason", None) or error
        advice = "run the same command again to continue" if part.exists() else "check the connection"
        raise InputError(f"{url}: {reason}; {advice}, or set --from to a folder or mirror that has the lists") from None


def _receive(response: BinaryIO, file: BinaryIO, title: str, done: int, total: int | None) -> None:
    with tqdm(total=total, initial=done, unit="B", unit_scale=True, desc=title, leave=False, disable=None) as bar:
        while chunk := response.read(CHUNK):
            file.write(chunk)
            bar.update(len(chunk))
            done += len(chunk)
    if total is not None and done < total:
        raise ConnectionError(f"the connection ended after {done:,} of {total:,} bytes")
