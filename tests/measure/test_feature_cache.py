"""Cached features are bit-identical to the written ones, or they are computed again."""

import os
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from imagenet_inat.datasets import get_spec
from imagenet_inat.split_features import _images_metadata, digest_files
from tests.idx_files import write_idx
from tests.refusals import line_with, refusal
from utils.measure.feature_cache import Features, cached_features


@pytest.fixture
def cache(tmp_path):
    """Return a cache file and a function that requests the features and returns whether they were recomputed."""
    path, computed = tmp_path / "train.safetensors", Features(torch.randn(6, 4), torch.arange(6))

    def request() -> bool:
        computations = []
        cached = cached_features([path], {"views": 1}, lambda: computations.append(1) or computed)
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


def test_pipe_in_place_of_the_cache_is_not_read(cache, tmp_path):
    """Reading a pipe would never end. The features go to the next place."""
    path, _ = cache
    path.unlink()
    os.mkfifo(path)
    features, other = Features(torch.ones(1, 2), torch.zeros(1, dtype=torch.int64)), tmp_path / "run" / path.name
    cached_features([other], {}, lambda: features)
    assert torch.equal(cached_features([path, other], {}, pytest.fail).features, features.features)


def test_features_are_stored_in_the_first_writable_folder(tmp_path):
    """A folder that cannot be created is like a read-only one. Without a writable folder, nothing is computed."""
    (tmp_path / "file").touch()
    unusable, usable = tmp_path / "file" / "val.safetensors", tmp_path / "run" / "val.safetensors"
    features = Features(torch.ones(1, 2), torch.zeros(1, dtype=torch.int64))
    refusal(lambda: cached_features([unusable], {}, pytest.fail), tmp_path / "file")
    cached_features([unusable, usable], {}, lambda: features)
    assert usable.is_file()


def test_edited_image_changes_the_digest(tmp_path):
    image = tmp_path / "0.png"
    image.write_bytes(b"abc")
    digests = [digest_files(tmp_path, ["0.png"])]
    os.utime(image, ns=(0, 1))
    digests.append(digest_files(tmp_path, ["0.png"]))
    image.write_bytes(b"abcd")
    os.utime(image, ns=(0, 1))
    digests.append(digest_files(tmp_path, ["0.png"]))
    image.unlink()
    digests.append(digest_files(tmp_path, ["0.png"]))
    assert len(set(digests)) == 4


def test_edited_idx_file_changes_the_digest_even_with_the_old_time(tmp_path):
    file, digests = tmp_path / "t10k-images-idx3-ubyte", []
    for pixel in (0, 1):
        write_idx(file, np.full((2, 3, 3), pixel, np.uint8))
        os.utime(file, ns=(0, 1))
        digests.append(digest_files(tmp_path, ["t10k-images-idx3-ubyte/0", "t10k-images-idx3-ubyte/1"]))
    assert digests[0] != digests[1]


def test_key_contains_how_images_are_decoded(tmp_path):
    images = SimpleNamespace(digest="d", root=tmp_path, paths=np.array([b"a.png"]))
    specs = [replace(get_spec("digits"), as_shown=as_shown) for as_shown in (False, True)]
    plain, shown = (_images_metadata(SimpleNamespace(spec=spec, image_size=8), images, 0, 0) for spec in specs)
    assert plain != shown
