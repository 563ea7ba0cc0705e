"""examples/figure1.py on a few images: lists, angles, and that a second call trains nothing."""

import math

import pytest
import torch
from matplotlib.image import imread

from examples import figure1
from imagenet_inat.datasets import REGISTRY
from imagenet_inat.lists.format import read_split
from imagenet_inat.sets import digits


@pytest.fixture
def figure_run(tmp_path, monkeypatch):
    """Run the command with nine training images per run and one step per epoch; return its folder and its flags."""
    monkeypatch.setattr(figure1, "COUNTS", {"1:1:1": (3, 3, 3), "50:1:1": (7, 1, 1)})
    words = ["--epochs", "2", "--folder", str(tmp_path / "runs"), "--output", str(tmp_path / "docs")]
    figure1.main(words)
    yield tmp_path, words
    del REGISTRY[figure1.DATASET]


def test_figure_and_angles_are_written(figure_run, capsys):
    folder, words = figure_run
    capsys.readouterr()
    figure = imread(folder / "docs" / "figure1.png")
    text = (folder / "docs" / "figure1.md").read_text()
    assert figure.shape[0] > 700 and figure.std() > 0.05
    assert len([line for line in text.splitlines() if line.startswith(("| KCL", "| TSC"))]) == 4

    figure1.main(words)  # all four runs have finished, so nothing is trained
    assert "Epoch:" not in capsys.readouterr().out
    assert (folder / "docs" / "figure1.md").read_text() == text


def test_lists_have_requested_counts_and_whole_test_split(tmp_path):
    _, whole = digits.prepare(tmp_path / "data", 1)
    folder = figure1.write_lists(tmp_path / "lists", whole, (100, 2, 2))
    _, train = read_split(folder / "three_digits_train.txt", 3)
    _, test = read_split(folder / "three_digits_test.txt", 3)
    assert torch.bincount(torch.tensor(train)).tolist() == [100, 2, 2]
    assert torch.bincount(torch.tensor(test)).tolist() == [digits.TEST_PER_CLASS] * 3


def test_angles_are_in_degrees():
    a = math.radians(30)
    centres = torch.tensor([[1.0, 0.0], [math.cos(a), math.sin(a)], [-1.0, 0.0]])
    assert figure1.angles(centres) == pytest.approx([30, 180, 150], abs=1e-3)
