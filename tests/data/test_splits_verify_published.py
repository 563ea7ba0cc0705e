"""`verify` for data sets with published lists: their known properties, and the layouts of their images."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagenet_inat import datasets
from imagenet_inat.datasets import REGISTRY
from imagenet_inat.images import LongTailDataset
from imagenet_inat.lists import known
from imagenet_inat.lists.known import fingerprint
from tests.refusals import line_with
from tests.verifying import lines_marked, run_splits, run_verify, wrong_lines
from utils.measure import metrics


def test_missing_lists_are_reported_with_download_command(tmp_path, capsys):
    (tmp_path / "lists").mkdir()
    code, out = run_verify(tmp_path, capsys, name="places")
    command = f"python -m imagenet_inat.splits download places --output {tmp_path}/lists"
    assert code == 1 and len(wrong_lines(out)) == 3 and "3" in out.splitlines()[-1]
    assert all(command in line for line in wrong_lines(out))


@pytest.mark.parametrize("flat", [False, True])
def test_both_layouts_of_imagenet_validation_folder_are_read(flat, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(REGISTRY, "imagenet", dataclasses.replace(REGISTRY["imagenet"], num_classes=2))
    text = "".join(f"val/n0000000{c}/ILSVRC2012_val_{i:08d}.JPEG {c}\n" for c in range(2) for i in range(c, 6, 2))
    (tmp_path / "lists").mkdir()
    file = tmp_path / "lists" / "ImageNet_LT_test.txt"
    file.write_text(text)
    monkeypatch.setitem(known.PUBLISHED, file.name, fingerprint(text.encode()))
    for line in text.splitlines():
        path = Path(line.split()[0])
        image_file = tmp_path / "images" / ("val" if flat else path.parent) / path.name
        image_file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (200, 0, 0)).save(image_file, "PNG")
    _, out = run_verify(tmp_path, capsys, name="imagenet")
    data = LongTailDataset(tmp_path / "images", file, 2, lambda image: image.size, flat_folder="val")
    assert [data[i] for i in range(6)] == [((4, 4), c) for c in (0, 0, 0, 1, 1, 1)]
    assert ("val/<class>/" in data.layout) != flat
    line_with("\n".join(lines_marked(out, "ok")), file.name, 6, data.layout)


def test_list_without_class_folders_is_noted_for_nested_images(tmp_path, capsys):
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "ImageNet_LT_test.txt").write_text("val/ILSVRC2012_val_00000001.JPEG 65\n")
    (tmp_path / "images" / "val" / "n01751748").mkdir(parents=True)
    _, out = run_verify(tmp_path, capsys, name="imagenet")
    line_with("\n".join(lines_marked(out, "note")), "val/", "ImageNet_LT_test.txt")


def test_published_class_counts_are_known(tmp_path, capsys):
    """There are 1000 counts from 1280 to 5. For a list with other counts, the class that differs is reported."""
    counts = published_counts()
    assert (len(counts), counts.sum(), counts.max(), counts.min()) == (1000, 115_846, 1280, 5)
    assert [int(mask.sum()) for mask in metrics.shots(counts).values()] == [385, 479, 136]
    counts[3] += 1
    (tmp_path / "lists").mkdir()
    lines = [f"train/n{c:08d}/{i}.JPEG {c}\n" for c, count in enumerate(counts) for i in range(count)]
    (tmp_path / "lists" / "ImageNet_LT_train.txt").write_text("".join(lines))
    _, out = run_splits(["verify", "imagenet", "--splits", str(tmp_path / "lists")], capsys)
    line_with(out, "385 many", "479 medium", "136 few")
    wrong = "\n".join(wrong_lines(out))
    line_with(wrong, "class 3", counts[3], counts[3] - 1)
    line_with(wrong, "SHA-256", "115,847")


def published_counts() -> np.ndarray:
    return np.array(json.loads((datasets.LISTS_ROOT / "ImageNet_LT" / "train_counts.json").read_text()))
