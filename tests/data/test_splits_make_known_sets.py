"""`make` for published data sets: CIFAR from torchvision, and iNaturalist's annotations."""

import hashlib
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import CIFAR10

from imagenet_inat.datasets import REGISTRY
from imagenet_inat.images import LongTailDataset
from imagenet_inat.lists.format import read_split
from imagenet_inat.lists.profiles import class_sizes
from imagenet_inat.paths import ListFlags, find_lists
from imagenet_inat.splits import __main__ as splits
from imagenet_inat.splits import torchvision_sets
from tests.refusals import refusal
from tests.verifying import known_lists, run_splits, wrong_lines


@pytest.mark.parametrize(
    ("name", "imbalance", "total"),
    [("cifar10", 10, 20431), ("cifar10", 50, 13996), ("cifar10", 100, 12406), ("cifar100", 100, 10847)],
)
def test_cifar_lt_has_commonly_used_number_of_images(name, imbalance, total):
    spec = REGISTRY[name]
    assert sum(class_sizes("exp", spec.num_classes, imbalance, spec.largest_class)) == total


def ldam_split_images(labels: np.ndarray, imbalance: float) -> list[int]:
    """Return which of labels (n,) LDAM's published split keeps, in its order: NumPy's global generator with seed 0."""
    np.random.seed(0)
    kept, classes = [], np.unique(labels)
    for c in classes:
        indices = np.where(labels == c)[0]
        np.random.shuffle(indices)
        largest = len(labels) / len(classes)
        kept.extend(indices[: int(largest * (1 / imbalance) ** (c / (len(classes) - 1.0)))].tolist())
    return kept


LDAM_SPLIT_HASHES = {
    ("cifar10", 100): "c61d148501864ceb",
    ("cifar10", 50): "6abc8a667776a07c",
    ("cifar10", 10): "3abe1754fa7273bd",
    ("cifar100", 100): "55cd0edbe469e15a",
    ("cifar100", 50): "59a645e7d9325bb4",
    ("cifar100", 10): "3b3a47c649bb9fdc",
}


@pytest.mark.parametrize(("name", "imbalance"), LDAM_SPLIT_HASHES, ids=str)
def test_cifar_split_matches_ldam_split_image_for_image(name, imbalance):
    """Uses 50,000 labels in a synthetic order. The hashes detect changes of the split in NumPy or in this project."""
    classes = REGISTRY[name].num_classes
    labels = np.arange(50_000) * 7919 % classes
    lines = torchvision_sets.format_splits(labels, np.arange(classes), imbalance, 0)["train"].splitlines()
    kept = [int(line.split()[0].rsplit("/", 1)[1].removesuffix(".png")) for line in lines]
    assert kept == ldam_split_images(labels, imbalance)
    assert hashlib.sha256(str(kept).encode()).hexdigest()[:16] == LDAM_SPLIT_HASHES[name, imbalance]


@pytest.fixture
def cifar_files(tmp_path, monkeypatch) -> Path:
    """Write CIFAR-10's files as torchvision expects them, with 40 training and 10 test images of noise."""
    folder, rng = tmp_path / "data" / "cifar-10-batches-py", np.random.default_rng(0)
    folder.mkdir(parents=True)

    def write(name: str, content) -> tuple[str, str]:
        (folder / name).write_bytes(pickle.dumps(content))
        return name, hashlib.md5((folder / name).read_bytes()).hexdigest()

    def batch(count: int) -> dict:
        return {"data": rng.integers(0, 255, (count, 3072), dtype=np.uint8), "labels": [i % 10 for i in range(count)]}

    monkeypatch.setattr(CIFAR10, "train_list", [write(f"data_batch_{i}", batch(20)) for i in (1, 2)])
    monkeypatch.setattr(CIFAR10, "test_list", [write("test_batch", batch(10))])
    name, digest = write("batches.meta", {"label_names": [f"class {c}" for c in range(10)]})
    monkeypatch.setattr(CIFAR10, "meta", {"filename": name, "key": "label_names", "md5": digest})
    return tmp_path / "data"


def test_cifar_images_are_written_and_found_by_dataset_name(cifar_files, capsys):
    splits.main(["make", "cifar10", "--output", str(cifar_files), "--imbalance", "4"])
    assert f"--dataset cifar10 --data-root {cifar_files} --imbalance 4" in capsys.readouterr().out
    root, files, _ = find_lists(REGISTRY["cifar10"], ListFlags(data_root=str(cifar_files), imbalance=4))
    train = LongTailDataset(root, files["train"], 10, np.asarray)
    test = LongTailDataset(root, files["val"], 10, np.asarray)
    assert train.class_counts.tolist() == class_sizes("exp", 10, 4, 4) and test.class_counts.tolist() == [1] * 10
    original = CIFAR10(str(cifar_files), train=True)
    for i in range(len(train)):
        pixels, label = train[i]
        number = int(train.paths[i].decode().split("/")[-1].removesuffix(".png"))
        assert np.array_equal(pixels, original.data[number]) and label == original.targets[number]
    assert np.array_equal(np.stack([test[i][0] for i in range(10)]), CIFAR10(str(cifar_files), train=False).data)


def test_other_imbalance_or_seed_reuses_written_images(cifar_files, capsys):
    commands = ("--imbalance 4", "--imbalance 2", "--imbalance 4 --seed 7")
    for flags in commands:
        splits.main(["make", "cifar10", "--output", str(cifar_files), *flags.split()])
    root = cifar_files / "CIFAR10_LT"
    assert sorted(path.name for path in root.iterdir()) == [
        "images",
        "imbalance_2",
        "imbalance_4",
        "imbalance_4_seed_7",
    ]
    assert f"--splits {root}/imbalance_4_seed_7" in capsys.readouterr().out
    texts = [(root / name / "CIFAR10_LT_train.txt").read_text() for name in ("imbalance_4", "imbalance_4_seed_7")]
    assert texts[0] != texts[1]
    code, out = run_splits(
        ["verify", "cifar10", "--data-root", str(cifar_files), "--imbalance", "4", "--decode"], capsys
    )
    assert code == 0 and not wrong_lines(out)


def test_failed_cifar_download_is_reported_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    words = ["make", "cifar10", "--output", str(tmp_path)]
    refusal(lambda: splits.main(words), "cifar10", "cifar-10-python.tar.gz")
    labels, classes = np.arange(40) % 10, np.arange(10)
    refusal(lambda: torchvision_sets.format_splits(labels, classes, 5, 0), "--imbalance", 5, 4)


def inat_json(path: Path, count: int, **change) -> Path:
    """Write an annotation file in the competition's format, with annotations in another order than the images."""
    images = [
        {"id": 100 + i, "file_name": f"train_val2018/Aves/{i % 3}/{i:032x}.jpg", "width": 8} for i in range(count)
    ]
    annotations = [{"id": i, "image_id": 100 + i, "category_id": i % 3} for i in reversed(range(count))]
    path.write_text(json.dumps({"info": {}, "images": images, "annotations": annotations} | change))
    return path


def test_inaturalist_annotations_become_lists(tmp_path, capsys):
    files = [str(inat_json(tmp_path / f"{split}2018.json", count)) for split, count in (("train", 9), ("val", 3))]
    splits.main(["make", "inat", "--json", *files, "--output", str(tmp_path / "lists")])
    text = (tmp_path / "lists" / "iNaturalist18_train.txt").read_text()
    assert text == "".join(f"train_val2018/Aves/{i % 3}/{i:032x}.jpg {i % 3}\n" for i in range(9))
    assert len(read_split(tmp_path / "lists" / "iNaturalist18_val.txt", 8142)[1]) == 3
    code, out = run_splits(["verify", "inat", "--splits", str(tmp_path / "lists")], capsys)
    assert code == 1  # most classes have no image
    assert len(known_lists(out)) == 2 and not any("SHA-256" in line for line in wrong_lines(out))


def one_image(name, category) -> dict:
    return {"images": [{"id": 1, "file_name": name}], "annotations": [{"image_id": 1, "category_id": category}]}


@pytest.mark.parametrize(
    "change",
    [
        *({"annotations": []}, {"images": [{"id": 1}]}, {"images": 3}, {"images": []}),
        *(one_image(3, 0), one_image("a.jpg", "x"), one_image("a.jpg", -1), one_image("a.jpg", 1.5)),
        *(one_image("../a.jpg", 0), one_image("/a.jpg", 0)),
    ],
)
def test_file_without_annotations_is_refused(change, tmp_path):
    bad = str(inat_json(tmp_path / "bad.json", 3, **change))
    words = ["make", "inat", "--json", bad, bad, "--output", str(tmp_path / "lists")]
    refusal(lambda: splits.main(words), "bad.json")
    assert not (tmp_path / "lists").exists()
    refusal(lambda: splits.main(["make", "inat"]), "--json")


def test_deeply_nested_annotations_are_refused(tmp_path):
    bad = tmp_path / "bad.json"
    bad.write_text("[" * 100_000)
    words = ["make", "inat", "--json", str(bad), str(bad), "--output", str(tmp_path / "lists")]
    refusal(lambda: splits.main(words), "bad.json")
