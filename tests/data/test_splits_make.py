"""`make` cuts long-tailed splits from any images."""

import hashlib
import json
import os
import shlex
from pathlib import Path

import numpy as np
import pytest

from imagenet_inat.lists.format import read_split
from imagenet_inat.lists.plan import SplitPlan, plan_sizes
from imagenet_inat.lists.profiles import PROFILES, class_sizes
from imagenet_inat.splits import __main__ as splits
from tests.refusals import refusal
from tests.verifying import wrong_lines

NAMES = {"ant": 30, "bee": 50, "cat": 40, "dog": 30}


def test_profiles_have_expected_class_sizes():
    assert class_sizes("exp", 3, 100, 1000) == [1000, 100, 10]
    assert class_sizes("exp", 6, 32, 1000) == [1000, 500, 250, 125, 62, 31]
    assert class_sizes("step", 5, 10, 50) == [50, 50, 50, 5, 5]
    assert class_sizes("pareto", 4, 16, 160) == [160, 40, 17, 10]  # (c+1)^-2
    assert class_sizes("pareto", 3, 10, 100)[-1] == 10
    for profile in PROFILES:
        sizes = class_sizes(profile, 7, 20, 200)
        assert (sizes[0], sizes[-1]) == (200, 10) and sizes == sorted(sizes, reverse=True)


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Write a folder of class folders. `dog` also contains a subfolder and a file that is not an image."""
    folder = tmp_path_factory.mktemp("images")
    for name, count in NAMES.items():
        for i in range(count):
            file = folder / name / ("puppies" if name == "dog" and i % 2 else "") / f"{i}.JPG"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
    (folder / "dog" / "notes.txt").touch()
    return folder


def make(source, output: Path, flags: str = "") -> dict[str, tuple[np.ndarray, np.ndarray]]:
    splits.main(["make", str(source), "--output", str(output), *flags.split()])
    return {split: read_split(output / f"custom_{split}.txt", None) for split in ("train", "val", "test")}


def test_folder_becomes_three_lists_and_a_record(images, tmp_path, capsys):
    lists = make(images, tmp_path / "lists", "--imbalance 4 --val 3 --test 5")
    counts = {split: np.bincount(labels).tolist() for split, (_, labels) in lists.items()}
    # bee has the most remaining images, 42, and becomes the head; then cat, then ant and dog, which tie
    assert counts == {"train": [16, 42, 26, 10], "val": [3] * 4, "test": [5] * 4}
    paths = np.concatenate([paths for paths, _ in lists.values()]).tolist()
    assert len(set(paths)) == len(paths) and all((images / path.decode()).is_file() for path in paths)
    folders = [path.decode().split("/")[0] for path in lists["train"][0].tolist()]
    assert [sorted(NAMES).index(folder) for folder in folders] == lists["train"][1].tolist()
    record = json.loads((tmp_path / "lists" / "made.json").read_text())
    assert record["classes"] == sorted(NAMES) and record["train_counts"] == counts["train"]
    assert (record["profile"], record["imbalance"], record["seed"]) == ("exp", 4.0, 0)
    data = (tmp_path / "lists" / "custom_val.txt").read_bytes()
    assert record["files"]["custom_val.txt"]["sha256"] == hashlib.sha256(data).hexdigest()
    flags = f"--splits {tmp_path}/lists --data-root {images}"
    assert f"main_moco_supcon_imba.py --dataset custom {flags}" in capsys.readouterr().out


def test_next_command_is_quoted_and_control_characters_are_escaped(images, tmp_path, capsys):
    make(images, tmp_path / "my lists", "--imbalance 2 --test 5")
    check, train = (shlex.split(line) for line in capsys.readouterr().out.splitlines()[-2:])
    for command in (check, train):
        assert command[-4:] == ["--splits", str(tmp_path / "my lists"), "--data-root", str(images)]
    splits.main(check[check.index("verify") : -2])  # the images of this folder are empty files
    make(images, tmp_path / "\x1b[2J", "--imbalance 2 --test 5")
    out = capsys.readouterr().out
    assert not wrong_lines(out) and "\x1b" not in out and r"/\x1b[2J" in out


def test_seed_decides_which_images_are_selected(images, tmp_path):
    first, again, other = (
        make(images, tmp_path / name, f"--imbalance 2 --test 5 --seed {seed}")
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert all(np.array_equal(first[split][0], again[split][0]) for split in first)
    assert all(not np.array_equal(first[split][0], other[split][0]) for split in first)
    assert np.array_equal(first["train"][1], other["train"][1])


def test_list_is_split_like_a_folder(tmp_path):
    (tmp_path / "all.txt").write_text("".join(f"x/{i} {c}.jpg {c}\n" for c in range(2) for i in range(50)))
    lists = make(tmp_path / "all.txt", tmp_path / "lists", "--profile step --imbalance 5 --largest 20")
    assert np.bincount(lists["train"][1]).tolist() == [20, 4]
    assert all(path.endswith(f" {label}.jpg".encode()) for path, label in zip(*lists["train"], strict=True))


def test_existing_list_is_not_overwritten(images, tmp_path):
    make(images, tmp_path, "--imbalance 2 --test 5")
    before = (tmp_path / "custom_train.txt").read_bytes()
    make(images, tmp_path, "--imbalance 2 --test 5")  # writing the same split again is accepted
    refusal(lambda: make(images, tmp_path, "--imbalance 3 --test 5"), "custom_train.txt", "--output")
    assert (tmp_path / "custom_train.txt").read_bytes() == before


@pytest.mark.parametrize(
    ("flags", "facts"),
    [
        ("--profile exp --val 20 --test 10", "ant 30 --val 20 --test 10"),
        ("--imbalance 2 --test 5 --largest 50", "--largest 50 23"),
        ("--imbalance 100 --test 5", "--imbalance 100 35"),
        ("--imbalance 0.5", "--imbalance 0.5"),
        ("--json a b", "--json make"),
    ],
)
def test_impossible_split_is_refused_and_nothing_written(flags, facts, images, tmp_path):
    refusal(lambda: make(images, tmp_path / "lists", flags), *facts.split())
    assert not (tmp_path / "lists").exists()


def test_invalid_sources_are_refused(images, tmp_path):
    (tmp_path / "one" / "class").mkdir(parents=True)
    cases = {tmp_path / "nowhere": "nowhere", tmp_path / "one": "class", images / "ant": "0"}
    for source, fact in cases.items():
        refusal(lambda source=source: make(source, tmp_path / "lists"), source, fact)
    refusal(lambda: splits.main(["make", str(images)]), "--output")
    with pytest.raises(SystemExit):
        make(images, tmp_path / "lists", f"--seed {2**32}")


@pytest.mark.parametrize("name", [b"a\nb.png", b"\xff.png"])
def test_file_name_that_lists_cannot_contain_is_refused(name, tmp_path):
    for path in (b"0/1.png", b"0/2.png", b"0/" + name, b"1/1.png", b"1/2.png", b"1/3.png"):
        file = tmp_path / "images" / os.fsdecode(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    refusal(lambda: make(tmp_path / "images", tmp_path / "lists", "--imbalance 1 --val 1 --test 1"), "png")
    assert not (tmp_path / "lists").exists()


def test_class_with_most_images_becomes_head():
    plan = SplitPlan("exp", val=1, test=1, imbalance=10)
    assert plan_sizes([12, 102, 52], plan, ["a", "b", "c"]).train.tolist() == [10, 100, 31]
