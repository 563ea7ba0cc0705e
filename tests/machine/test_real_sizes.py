"""The synthetic data of the real-size and many-classes benchmarks have the right sizes."""

import json

import numpy as np
import pytest

from benchmarks.many_classes import real_sizes
from benchmarks.many_classes.__main__ import build as build_classes
from benchmarks.many_classes.real_sizes import build, evenly_spaced, synthetic_lines
from imagenet_inat.datasets import LISTS_ROOT, REGISTRY
from imagenet_inat.images import LongTailDataset
from imagenet_inat.lists.known import PUBLISHED
from main_moco_supcon_imba import get_args_parser
from moco.targets.files import load_targets


@pytest.mark.parametrize("name", ["imagenet", "inat"])
def test_synthetic_list_has_published_size(name):
    spec, lines = REGISTRY[name], synthetic_lines(name)
    labels = np.array([int(line.rsplit(" ", 1)[1]) for line in lines])
    published = PUBLISHED[spec.list_name("train")]
    assert len(lines) == len(set(lines)) == published.lines and labels.max() < spec.num_classes
    assert sum(map(len, lines)) + len(lines) == pytest.approx(published.bytes, rel=0.03)
    if name == "imagenet":
        counts = json.loads((LISTS_ROOT / "ImageNet_LT" / "train_counts.json").read_text())
        assert np.bincount(labels).tolist() == counts


def test_build_writes_every_listed_image(tmp_path, monkeypatch):
    monkeypatch.setattr(real_sizes, "synthetic_lines", lambda dataset: synthetic_lines(dataset)[:90])
    root, folder = build(tmp_path, "imagenet", str(tmp_path), sample=8)
    for kind, size in (("full", 90), ("sample", 8)):
        data = LongTailDataset(root, folder / kind / "ImageNet_LT_train.txt", 1000, lambda image: image.size)
        assert len(data) == size and {data[i][0] for i in range(size)} == {(500, 375)}
    assert len(evenly_spaced(list("abcdefgh"), 3)) == 3


def test_many_classes_benchmark_has_requested_classes(tmp_path):
    parsed = get_args_parser().parse_args([*build_classes(tmp_path, 1500).split(), "--epochs", "1"])
    data = LongTailDataset(parsed.data_root, parsed.train_txt, 1500, lambda image: image.size)
    assert np.bincount(data.labels).tolist() == [2] * 1500 and data[2999] == ((64, 64), 1499)
    assert load_targets(tmp_path / "targets.npy", 1500, 128).shape == (1500, 128)
