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
from torch import Tensor, nn

from utils.distributed import log
from utils.files import write_atomically

CHECKSUM = "crc32"  # metadata entry with the checksum of the numbers


class Features(NamedTuple):
    """Features, (n, d) float32, and labels, (n,) int64, of a split in its order, on the CPU."""

    features: Tensor
    labels: Tensor


def cached_features(path: Path, metadata: dict[str, object], compute: Callable[[], Features]) -> Features:
    """Return compute(), or its cached result.

    Args:
        path: the cache file.
        metadata: plain data that determines the result. If the file has other metadata, the features are recomputed.
    """
    encoded = {name: json.dumps(value) for name, value in metadata.items()}
    if path.exists():
        cached, problem = _read(path, encoded)
        if cached:
            log(f"features: {path}, {len(cached.labels)} images, cached")
            return cached
        log(f"note: {path}: {problem}; recomputed")
    features = compute()
    cpu_features = Features(*(tensor.cpu().contiguous() for tensor in features))
    data = safetensors.torch.save(cpu_features._asdict(), metadata=encoded | {CHECKSUM: _checksum(cpu_features)})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: file.write(data))
    log(f"features: wrote {path}, {len(features.labels)} images")
    return features


def _read(path: Path, encoded: dict[str, str]) -> tuple[Features | None, str]:
    """Return the features, or None and the reason why the file cannot be used."""
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


def digest(path: str | Path) -> str:
    """Return 16 hex digits of the SHA-256 of a file."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def weights_digest(network: nn.Module) -> str:
    """Return 16 hex digits of the SHA-256 of a network's weights and buffers, with their names and shapes."""
    sha = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        sha.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return sha.hexdigest()[:16]
