"""examples/figure1.py on a handful of images: lists, angles, and that a second call trains nothing again."""

import math

import pytest
import torch
from matplotlib.image import imread

from examples import figure1
from imagenet_inat.datasets import REGISTRY
from imagenet_inat.lists.format import read_split
from imagenet_inat.sets import digits


@pytest.fixture
def made(tmp_path, monkeypatch):
    """The command's output with nine training images a run, one step an epoch."""
    monkeypatch.setattr(figure1, "COUNTS", {"1:1:1": (3, 3, 3), "50:1:1": (7, 1, 1)})
    words = ["--epochs", "2", "--folder", str(tmp_path / "runs"), "--output", str(tmp_path / "docs")]
    figure1.main(words)
    yield tmp_path, words
    del REGISTRY[figure1.SET]


def test_a_figure_and_its_angles(made, capsys):
    folder, words = made
    capsys.readouterr()
    figure = imread(folder / "docs" / "figure1.png")
    text = (folder / "docs" / "figure1.md").read_text()
    assert figure.shape[0] > 700 and figure.std() > 0.05
    assert len([line for line in text.splitlines() if line.startswith(("| KCL", "| TSC"))]) == 4

    figure1.main(words)  # all four runs are done: nothing is trained again
    assert "Epoch:" not in capsys.readouterr().out
    assert (folder / "docs" / "figure1.md").read_text() == text


def test_the_lists_have_the_counts_and_the_whole_test_split(tmp_path):
    _, whole = digits.prepare(tmp_path / "data", 1)
    folder = figure1.write_lists(tmp_path / "lists", whole, (100, 2, 2))
    _, train = read_split(folder / "three_digits_train.txt", 3)
    _, test = read_split(folder / "three_digits_test.txt", 3)
    assert torch.bincount(torch.tensor(train)).tolist() == [100, 2, 2]
    assert torch.bincount(torch.tensor(test)).tolist() == [digits.TEST_PER_CLASS] * 3


def test_angles_in_degrees():
    a = math.radians(30)
    centres = torch.tensor([[1.0, 0.0], [math.cos(a), math.sin(a)], [-1.0, 0.0]])
    assert figure1.angles(centres) == pytest.approx([30, 180, 150], abs=1e-3)
