"""The rehearsals of real sizes, and of many classes, stand in for what they say."""

import json

import numpy as np
import pytest

from benchmarks.many_classes import real_sizes
from benchmarks.many_classes.__main__ import build as build_classes
from benchmarks.many_classes.real_sizes import build, spaced, stand_in_lines
from imagenet_inat.datasets import LISTS_ROOT, REGISTRY
from imagenet_inat.images import LongTailDataset
from imagenet_inat.lists.known import PUBLISHED
from main_moco_supcon_imba import get_args_parser
from moco.targets.files import load_targets


@pytest.mark.parametrize("name", ["imagenet", "inat"])
def test_a_stand_in_list_has_the_real_number_of_lines(name):
    spec, lines = REGISTRY[name], stand_in_lines(name)
    labels = np.array([int(line.rsplit(" ", 1)[1]) for line in lines])
    known = PUBLISHED[spec.list_name("train")]
    assert len(lines) == len(set(lines)) == known.lines and labels.max() < spec.num_classes
    assert sum(map(len, lines)) + len(lines) == pytest.approx(known.bytes, rel=0.03)
    if name == "imagenet":
        counts = json.loads((LISTS_ROOT / "ImageNet_LT" / "train_counts.json").read_text())
        assert np.bincount(labels).tolist() == counts


def test_every_listed_image_is_built(tmp_path, monkeypatch):
    monkeypatch.setattr(real_sizes, "stand_in_lines", lambda dataset: stand_in_lines(dataset)[:90])
    root, folder = build(tmp_path, "imagenet", str(tmp_path), sample=8)
    for kind, size in (("full", 90), ("sample", 8)):
        data = LongTailDataset(root, folder / kind / "ImageNet_LT_train.txt", 1000, lambda image: image.size)
        assert len(data) == size and {data[i][0] for i in range(size)} == {(500, 375)}
    assert len(spaced(list("abcdefgh"), 3)) == 3


def test_many_classes_are_as_many_as_asked(tmp_path):
    parsed = get_args_parser().parse_args([*build_classes(tmp_path, 1500).split(), "--epochs", "1"])
    data = LongTailDataset(parsed.data_root, parsed.train_txt, 1500, lambda image: image.size)
    assert np.bincount(data.labels).tolist() == [2] * 1500 and data[2999] == ((64, 64), 1499)
    assert load_targets(tmp_path / "targets.npy", 1500, 128).shape == (1500, 128)
