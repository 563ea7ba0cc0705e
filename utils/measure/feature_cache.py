"""Cache the features of a frozen encoder in a safetensors file.

The file's metadata describes what the features were computed from. A cached file that does not match, is damaged or
cannot be read is reported and recomputed.
"""

import hashlib
import json
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from utils.distributed import log
from utils.errors import InputError
from utils.files import write_atomically

CHECKSUM = "crc32"  # metadata entry with the checksum of the numbers


class Features(NamedTuple):
    """Features, (n, d) float32, and labels, (n,) int64, of a split in its order, on the CPU."""

    features: Tensor
    labels: Tensor


def cached_features(paths: list[Path], metadata: dict[str, object], compute: Callable[[], Features]) -> Features:
    """Return compute(), or its cached result.

    Args:
        paths: places for the cache file, the best first. The features are read from the first file that is valid, and
            written to the first place that is writable.
        metadata: plain data that determines the result. If a file has other metadata, the features are recomputed.

    Raises:
        InputError: no place is writable. This is checked before the features are computed.
    """
    encoded = {name: json.dumps(value) for name, value in metadata.items()}
    for path in filter(Path.exists, paths):
        cached, problem = _read(path, encoded)
        if cached:
            log(f"features: {path}, {len(cached.labels)} images, cached")
            return cached
        log(f"note: {path}: {problem}; recomputed")
    path = _first_writable(paths)
    features = compute()
    cpu_features = Features(*(tensor.cpu().contiguous() for tensor in features))
    data = safetensors.torch.save(cpu_features._asdict(), metadata=encoded | {CHECKSUM: _checksum(cpu_features)})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: file.write(data))
    log(f"features: wrote {path}, {len(features.labels)} images")
    return features


def _first_writable(paths: list[Path]) -> Path:
    for path in paths:
        existing = next(folder for folder in path.absolute().parents if folder.exists())
        try:
            with tempfile.TemporaryFile(dir=existing):
                return path
        except OSError as error:
            log(f"note: {path.parent}: features cannot be stored here ({error.strerror})")
    raise InputError(f"{paths[-1].parent}: features cannot be stored here; choose another --run-dir")


def _read(path: Path, encoded: dict[str, str]) -> tuple[Features | None, str]:
    """Return the features, or None and the reason why the file cannot be used."""
    if not path.is_file():  # reading a pipe would never end
        return None, "is not a regular file"
    try:
        with safe_open(path, framework="pt") as file:
            stored_metadata = file.metadata() or {}
            if differing := [name for name in encoded if stored_metadata.get(name) != encoded[name]]:
                return None, f"was computed with another {', '.join(differing)}"
            # Copied, because the memory alignment of a tensor affects how its sums are rounded.
            cached = Features(*(file.get_tensor(name).clone() for name in Features._fields))
    except (OSError, SafetensorError) as error:
        return None, f"cannot be read ({error})"
    valid = cached.features.ndim == 2 and cached.features.dtype == torch.float32 and cached.labels.dtype == torch.int64
    if not valid or len(cached.features) != len(cached.labels) or not cached.features.isfinite().all():
        return None, "does not contain features and their labels"
    if CHECKSUM not in stored_metadata:
        return None, f"has no {CHECKSUM}, because an old version wrote it"
    if stored_metadata[CHECKSUM] != _checksum(cached):
        return None, f"is damaged ({CHECKSUM} differs)"
    return cached, ""


def _checksum(features: Features) -> str:
    """Return a checksum of the numbers, which detects flipped bits that still give valid numbers."""
    crc = 0
    for tensor in features:
        crc = zlib.crc32(tensor.numpy(), crc)
    return f"{crc:08x}"


def weights_digest(network: nn.Module) -> str:
    """Return 16 hex digits of the SHA-256 of a network's weights and buffers, with their names and shapes."""
    sha = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        sha.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return sha.hexdigest()[:16]
