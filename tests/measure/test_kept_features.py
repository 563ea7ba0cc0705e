"""Kept features are those that were written, bit for bit, or they are computed again."""

import pytest
import torch
from safetensors.torch import save_file

from tests.refusals import line_with
from utils.measure.kept_features import Features, kept_features


@pytest.fixture
def kept(tmp_path):
    """A file of features, and a function that asks for them again and returns whether they were computed again."""
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
    whole, size = path.read_bytes(), 6 * 4 * 4 + 6 * 8
    for at in range(len(whole) - size, len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        assert ask()
    assert capsys.readouterr().out.count(str(path)) >= 2 * size  # each time that it is damaged, and written again


def test_a_file_of_before_has_no_checksum(kept, capsys):
    path, ask = kept
    save_file({"features": torch.zeros(6, 4), "labels": torch.arange(6)}, path, {"views": "1"})
    assert ask() and not ask()
    line_with(capsys.readouterr().out, path, "crc32")
