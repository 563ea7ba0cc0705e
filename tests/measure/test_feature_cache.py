"""Cached features are bit-identical to the written ones, or they are computed again."""

import pytest
import torch
from safetensors.torch import save_file

from tests.refusals import line_with
from utils.measure.feature_cache import Features, cached_features


@pytest.fixture
def cache(tmp_path):
    """Return a cache file and a function that requests the features and returns whether they were recomputed."""
    path, computed = tmp_path / "train.safetensors", Features(torch.randn(6, 4), torch.arange(6))

    def request() -> bool:
        computations = []
        cached = cached_features(path, {"views": 1}, lambda: computations.append(1) or computed)
        assert torch.equal(cached.features, computed.features) and torch.equal(cached.labels, computed.labels)
        return bool(computations)

    assert request() and not request()
    return path, request


def test_flipped_bit_invalidates_the_cache(cache, capsys):
    """Flip one bit in each byte of the numbers, which are at the end of the file. A label can become 2^42."""
    path, request = cache
    content, size = path.read_bytes(), 6 * 4 * 4 + 6 * 8
    for position in range(len(content) - size, len(content)):
        path.write_bytes(content[:position] + bytes([content[position] ^ 4]) + content[position + 1 :])
        assert request()
    assert capsys.readouterr().out.count(str(path)) >= 2 * size  # one line for the damage, one for the new file


def test_cache_without_checksum_is_recomputed(cache, capsys):
    path, request = cache
    save_file({"features": torch.zeros(6, 4), "labels": torch.arange(6)}, path, {"views": "1"})
    assert request() and not request()
    line_with(capsys.readouterr().out, path, "crc32")
