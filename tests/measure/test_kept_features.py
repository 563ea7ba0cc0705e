"""Kept features are those that were written, to the bit, or they are made anew."""

import pytest
import torch
from safetensors.torch import save_file

from utils.measure.kept_features import Features, kept_features


@pytest.fixture
def kept(tmp_path):
    """A file of features, and a function that asks for them again and says whether they were made anew."""
    path, made = tmp_path / "train.safetensors", Features(torch.randn(6, 4), torch.arange(6))

    def ask() -> bool:
        anew = []
        found = kept_features(path, {"views": 1}, lambda: anew.append(1) or made)
        assert torch.equal(found.features, made.features) and torch.equal(found.labels, made.labels)
        return bool(anew)

    assert ask() and not ask()
    return path, ask


def test_no_flipped_bit_is_used(kept, capsys):
    """Of the numbers, which lie at the end: one that is another number, and a label that would be class 2^42."""
    path, ask = kept
    whole = path.read_bytes()
    for at in range(len(whole) - 6 * 4 * 4 - 6 * 8, len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        assert ask()
    said = capsys.readouterr().out
    assert said.count("train.safetensors: is damaged: its numbers are not those that were written; made anew") > 100


def test_a_file_of_before_has_no_checksum(kept, capsys):
    path, ask = kept
    save_file({"features": torch.zeros(6, 4), "labels": torch.arange(6)}, path, {"views": "1"})
    assert ask() and not ask()
    assert "train.safetensors: says no crc32, of before there was one; made anew" in capsys.readouterr().out
