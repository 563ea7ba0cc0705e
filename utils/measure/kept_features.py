"""Cache the features of a frozen encoder in a safetensors file beside the checkpoint.

The file's metadata describes what the features were computed from. A cached file that does not match, is damaged or
cannot be read is reported and recomputed.
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

CHECKSUM = "crc32"  # metadata entry with the checksum of the numbers


class Features(NamedTuple):
    """Features, (n, d) float32, and labels, (n,) int64, of a split in its order, on the CPU."""

    features: Tensor
    labels: Tensor


def kept_features(path: Path, about: dict[str, object], make: Callable[[], Features]) -> Features:
    """Return make(), or its cached result.

    Args:
        path: the cache file. about: plain data that determines the result; a file with another `about` is recomputed.
    """
    words = {name: json.dumps(value) for name, value in about.items()}
    if path.exists():
        found, why = _read(path, words)
        if found:
            say(f"features: {path}, {len(found.labels)} images, cached")
            return found
        say(f"note: {path}: {why}; recomputed")
    made = make()
    whole = Features(*(tensor.cpu().contiguous() for tensor in made))
    data = safetensors.torch.save(whole._asdict(), metadata=words | {CHECKSUM: _checksum(whole)})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda file: file.write(data))
    say(f"features: wrote {path}, {len(made.labels)} images")
    return made


def _read(path: Path, words: dict[str, str]) -> tuple[Features | None, str]:
    """Return the features, or None and the reason why the file cannot be used."""
    try:
        with safe_open(path, framework="pt") as file:
            its = file.metadata() or {}
            if other := [name for name in words if its.get(name) != words[name]]:
                return None, f"was computed with another {', '.join(other)}"
            # Copied, because the memory alignment of a tensor affects how its sums are rounded.
            found = Features(*(file.get_tensor(name).clone() for name in Features._fields))
    except (OSError, SafetensorError) as error:
        return None, f"cannot be read ({error})"
    good = found.features.ndim == 2 and found.features.dtype == torch.float32 and found.labels.dtype == torch.int64
    if not good or len(found.features) != len(found.labels) or not found.features.isfinite().all():
        return None, "does not contain features and their labels"
    if CHECKSUM not in its:
        return None, f"has no {CHECKSUM}, because an old version wrote it"
    if its[CHECKSUM] != _checksum(found):
        return None, f"is damaged ({CHECKSUM} differs)"
    return found, ""


def _checksum(found: Features) -> str:
    """Return a checksum of the numbers, which detects flipped bits that still give valid numbers."""
    crc = 0
    for tensor in found:
        crc = zlib.crc32(tensor.numpy(), crc)
    return f"{crc:08x}"


def digest(path: str | Path) -> str:
    """Return 16 hex digits of the SHA-256 of a file."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
