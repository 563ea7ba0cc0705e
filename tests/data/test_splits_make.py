"""`make`: long tails of any images."""

import hashlib
import json
import os
import shlex
from pathlib import Path

import numpy as np
import pytest

from imagenet_inat.lists.format import read_split
from imagenet_inat.lists.profiles import PROFILES, class_sizes
from imagenet_inat.splits import __main__ as splits
from imagenet_inat.splits.make import Plan, train_sizes
from tests.refusals import refusal
from tests.verifying import wrong_lines

NAMES = {"ant": 30, "bee": 50, "cat": 40, "dog": 30}


def test_profiles_have_their_shapes():
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
    """A folder of class folders; `dog` has a folder of its own inside, and a file that is no image."""
    folder = tmp_path_factory.mktemp("images")
    for name, count in NAMES.items():
        for i in range(count):
            place = folder / name / ("puppies" if name == "dog" and i % 2 else "") / f"{i}.JPG"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.touch()
    (folder / "dog" / "notes.txt").touch()
    return folder


def make(source, output: Path, flags: str = "") -> dict[str, tuple[np.ndarray, np.ndarray]]:
    splits.main(["make", str(source), "--output", str(output), *flags.split()])
    return {split: read_split(output / f"custom_{split}.txt", None) for split in ("train", "val", "test")}


def test_a_folder_becomes_three_lists_and_a_record(images, tmp_path, capsys):
    lists = make(images, tmp_path / "lists", "--imbalance 4 --val 3 --test 5")
    counts = {split: np.bincount(labels).tolist() for split, (_, labels) in lists.items()}
    # bee has most images left, 42, so it is the head; then cat, and ant before dog, who have as many
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


def test_the_next_command_can_be_typed_and_names_in_it_act_on_no_terminal(images, tmp_path, capsys):
    make(images, tmp_path / "my lists", "--imbalance 2 --test 5")
    check, train = (shlex.split(line) for line in capsys.readouterr().out.splitlines()[-2:])
    for command in (check, train):
        assert command[-4:] == ["--splits", str(tmp_path / "my lists"), "--data-root", str(images)]
    splits.main(check[check.index("verify") : -2])  # the images of this folder are empty files
    make(images, tmp_path / "\x1b[2J", "--imbalance 2 --test 5")
    said = capsys.readouterr().out
    assert not wrong_lines(said) and "\x1b" not in said and r"/\x1b[2J" in said


def test_the_seed_decides_which_images(images, tmp_path):
    first, again, other = (
        make(images, tmp_path / name, f"--imbalance 2 --test 5 --seed {seed}")
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert all(np.array_equal(first[split][0], again[split][0]) for split in first)
    assert all(not np.array_equal(first[split][0], other[split][0]) for split in first)
    assert np.array_equal(first["train"][1], other["train"][1])


def test_a_list_is_cut_like_a_folder(tmp_path):
    (tmp_path / "all.txt").write_text("".join(f"x/{i} {c}.jpg {c}\n" for c in range(2) for i in range(50)))
    lists = make(tmp_path / "all.txt", tmp_path / "lists", "--profile step --imbalance 5 --largest 20")
    assert np.bincount(lists["train"][1]).tolist() == [20, 4]
    assert all(path.endswith(f" {label}.jpg".encode()) for path, label in zip(*lists["train"], strict=True))


def test_a_made_list_is_not_written_over(images, tmp_path):
    make(images, tmp_path, "--imbalance 2 --test 5")
    before = (tmp_path / "custom_train.txt").read_bytes()
    make(images, tmp_path, "--imbalance 2 --test 5")  # the same again is no loss
    refusal(lambda: make(images, tmp_path, "--imbalance 3 --test 5"), "custom_train.txt", "--output")
    assert (tmp_path / "custom_train.txt").read_bytes() == before


@pytest.mark.parametrize(
    ("flags", "facts"),
    [
        ("--val 20 --test 10", "ant 30 --val 20 --test 10"),
        ("--imbalance 2 --test 5 --largest 50", "--largest 50 23"),
        ("--imbalance 100 --test 5", "--imbalance 100 35"),
        ("--imbalance 0.5", "--imbalance 0.5"),
        ("--json a b", "--json make"),
    ],
)
def test_a_split_that_cannot_be_made_is_refused_and_nothing_written(flags, facts, images, tmp_path):
    refusal(lambda: make(images, tmp_path / "lists", flags), *facts.split())
    assert not (tmp_path / "lists").exists()


def test_sources_that_are_none_are_refused(images, tmp_path):
    (tmp_path / "one" / "class").mkdir(parents=True)
    cases = {tmp_path / "nowhere": "nowhere", tmp_path / "one": "class", images / "ant": "0"}
    for source, fact in cases.items():
        refusal(lambda source=source: make(source, tmp_path / "lists"), source, fact)
    refusal(lambda: splits.main(["make", str(images)]), "--output")
    with pytest.raises(SystemExit):
        make(images, tmp_path / "lists", f"--seed {2**32}")


@pytest.mark.parametrize("name", [b"a\nb.png", b"\xff.png"])
def test_a_file_name_that_no_list_can_hold_is_refused(name, tmp_path):
    for path in (b"0/1.png", b"0/2.png", b"0/" + name, b"1/1.png", b"1/2.png", b"1/3.png"):
        place = tmp_path / "images" / os.fsdecode(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
    refusal(lambda: make(tmp_path / "images", tmp_path / "lists", "--imbalance 1 --val 1 --test 1"), "png")
    assert not (tmp_path / "lists").exists()


def test_the_head_is_where_the_images_are():
    plan = Plan("exp", 10, 0, 1, 1)
    assert train_sizes([12, 102, 52], plan, ["a", "b", "c"]) == [10, 100, 31]
