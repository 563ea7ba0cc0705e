"""A new view and a new data set need one row each, and both scripts train with them."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms as T

import main_lincls_imba as stage2
import main_moco_supcon_imba as stage1
from imagenet_inat.datasets import CUSTOM, REGISTRY, DatasetSpec
from imagenet_inat.options import DataConfig
from moco.loader import View, to_pixels
from moco.views.rows import VIEWS, ViewRow
from tests.refusals import refusal
from tests.stopping import log_of

STAGE_1 = ["--moco-k", "160", "--moco-dim", "8", "--cos", "--lr", "0.1"]
PROBE = ["--lr", "1", "--pretrained"]
BOTH = ["--epochs", "1", "-b", "160", "--image-size", "8", "--seed", "1", "-j", "0", "-p", "1", "--device", "cpu"]


def run_both_stages(words: list[str], folder: Path, capsys) -> dict:
    """Run both stages for one epoch of two steps. Return the last record of the probe's log."""
    stage1.main([*words, *BOTH, *STAGE_1, "--run-dir", str(folder / "run")])
    stage2.main([*words, *BOTH, *PROBE, str(folder / "run" / "last.pth.tar"), "--run-dir", str(folder / "probe")])
    assert capsys.readouterr().out.count("1/2]") == 2  # steps
    return log_of(folder / "probe")[-1]


class UprightOrRotated:
    """Show the image upright or upside down, with equal probability."""

    def prepare(self, image: Image.Image, size: int, device_aug: bool) -> Image.Image:
        return image.resize((size, size))

    def draw(self, image: Image.Image, size: int) -> torch.Tensor:
        return to_pixels(image if torch.rand(1) < 0.5 else image.rotate(180))


def test_new_view_is_a_row_of_views(digits_root, tmp_path, capsys, monkeypatch):
    colour_calls, evaluation_sizes = [], []

    def frame(size: int) -> T.CenterCrop:
        evaluation_sizes.append(size)
        return T.CenterCrop(size)

    def negative(pixels: torch.Tensor, device_aug: bool) -> torch.Tensor:
        colour_calls.append((tuple(pixels.shape), device_aug))
        return 255 - pixels

    monkeypatch.setitem(VIEWS, "turned", ViewRow("", lambda parts: View(UprightOrRotated(), negative, frame)))
    row = dataclasses.replace(REGISTRY["digits"], name="turned", view="turned", repeat=1)
    monkeypatch.setitem(REGISTRY, row.name, row)
    record = run_both_stages(["--dataset", "turned", "--data-root", str(digits_root)], tmp_path, capsys)
    assert np.isfinite(record["test"]["loss"])
    assert evaluation_sizes == [8, 8]  # for validation and test
    assert colour_calls == [((3, 8, 8), False)] * 160 * 2 * (2 + 1)  # two views per image in stage 1, one in stage 2


def test_new_data_set_is_a_registry_row_with_lists(tmp_path, capsys, monkeypatch):
    """The data set has three colours with three training images each. An epoch repeats them 36 times."""
    statistics = {"mean": (0.4,) * 3, "std": (0.5,) * 3}
    row = DatasetSpec("flags", "Flags", 3, **statistics, source="-", arch="resnet20", view="thumbnail", repeat=36)
    monkeypatch.setitem(REGISTRY, row.name, row)
    for split, count in (("train", 3), ("val", 1), ("test", 2)):
        lines = [f"{split}_{label}_{i}.png {label}\n" for label in range(3) for i in range(count)]
        (tmp_path / row.list_name(split)).write_text("".join(lines))
        for line in lines:
            name, label = line.split()
            Image.new("RGB", (10, 8), ("red", "green", "blue")[int(label)]).save(tmp_path / name)
    words = ["--dataset", row.name, "--data-root", str(tmp_path), "--splits", str(tmp_path)]
    record = run_both_stages(words, tmp_path, capsys)
    assert np.isfinite(record["test"]["loss"])


@pytest.mark.parametrize("name", REGISTRY)
def test_data_set_row_sets_colour_jitter(name):
    transform = DataConfig(REGISTRY[name], None, 8, device_aug=False, skip_bad=False).train_view()
    assert (transform.view.colour is None) == (name in ("inat", "fashion"))


@pytest.mark.parametrize("main", [stage1.main, stage2.main])
def test_row_with_unknown_view_is_refused(main, monkeypatch, tmp_path):
    torch.save({}, tmp_path / "weights.pth")
    (folder := tmp_path / "folder").mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setitem(REGISTRY, "digits", dataclasses.replace(REGISTRY["digits"], view="digti"))
    pretrained = ["--pretrained", "../weights.pth"] if main is stage2.main else []
    refusal(lambda: main(["--dataset", "digits", *pretrained]), "digti", "photo, plain, thumbnail, simclr, ")
    assert list(folder.iterdir()) == []


def test_every_row_names_a_view():
    assert {spec.view for spec in (*REGISTRY.values(), CUSTOM)} <= VIEWS.keys()
