"""Features of a frozen encoder, computed once and kept: safetensors beside the checkpoint, with what they are of.

A file whose words are others', whose numbers are not those that were written, or that cannot be read, is said and
made anew; never used.
"""

import hashlib
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from utils.distributed import say
from utils.files import write_whole

CHECKSUM = "crc32"  # of the numbers, beside the words


class Features(NamedTuple):
    """features: (n, d) float32, labels: (n,) int64, of a split in its order; on the CPU."""

    features: Tensor
    labels: Tensor


def kept_features(path: Path, about: dict[str, object], make: Callable[[], Features]) -> Features:
    """What make() gives, or gave before: `about` is all that decides it.

    Args:
        path: the file. about: plain data.
    """
    words = {name: json.dumps(value) for name, value in about.items()}
    if path.exists():
        found, why = _read(path, words)
        if found:
            say(f"features: {path}, {len(found.labels)} images, kept")
            return found
        say(f"note: {path}: {why}; made anew")
    made = make()
    whole = Features(*(tensor.cpu().contiguous() for tensor in made))
    data = safetensors.torch.save(whole._asdict(), metadata=words | {CHECKSUM: _checksum(whole)})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda file: file.write(data))
    say(f"features: wrote {path}, {len(made.labels)} images")
    return made


def _read(path: Path, words: dict[str, str]) -> tuple[Features | None, str]:
    """The features, or None and why they are not those that are meant."""
    try:
        with safe_open(path, framework="pt") as file:
            its = file.metadata() or {}
            if other := [name for name in words if its.get(name) != words[name]]:
                return None, f"is of another {', '.join(other)}"
            # Copied out of the file: where numbers begin in memory decides how sums of them are rounded.
            found = Features(*(file.get_tensor(name).clone() for name in Features._fields))
    except (OSError, SafetensorError) as error:
        return None, f"cannot be read ({error})"
    good = found.features.ndim == 2 and found.features.dtype == torch.float32 and found.labels.dtype == torch.int64
    if not good or len(found.features) != len(found.labels) or not found.features.isfinite().all():
        return None, "does not hold features and their labels"
    if CHECKSUM not in its:
        return None, f"says no {CHECKSUM}, of before there was one"
    if its[CHECKSUM] != _checksum(found):
        return None, "is damaged: its numbers are not those that were written"
    return found, ""


def _checksum(found: Features) -> str:
    """A bit that has flipped on a disk may leave numbers that mean something."""
    crc = 0
    for tensor in found:
        crc = zlib.crc32(tensor.numpy(), crc)
    return f"{crc:08x}"


def digest(path: str | Path) -> str:
    """Of a file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
