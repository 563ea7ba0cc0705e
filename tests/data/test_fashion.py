"""Fashion-MNIST's row: its IDX files, found, checked and cut; images of noise in their place."""

import gzip
import hashlib
import json
import struct
from argparse import Namespace
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest

import main_moco_supcon_imba as stage1
from imagenet_inat import options
from imagenet_inat.datasets import REGISTRY
from imagenet_inat.images import LongTailDataset
from imagenet_inat.lists.format import made_folders
from imagenet_inat.paths import find_lists, resolve_imbalance, resolve_largest
from imagenet_inat.sets import fashion, idx
from imagenet_inat.splits import __main__ as splits
from tests.idx_files import write_idx, write_parts
from tests.refusals import refusal
from tests.verifying import known_lists, marked, wrong_lines

SPEC = REGISTRY["fashion"]
LARGEST, RHO = 30, 10
SIZES = [30, 23, 17, 13, 10, 8, 6, 5, 3, 3]  # int(30 · 10^(−c/9))


def refuse(*_, **__):
    raise URLError("no network")


@pytest.fixture(autouse=True)
def nowhere_else(monkeypatch, tmp_path):
    """Neither Debian's files nor a download."""
    monkeypatch.setattr(fashion, "DEBIAN", tmp_path / "debian")
    monkeypatch.setattr(fashion, "FashionMNIST", refuse)
    idx._kept.cache_clear()


def lists_of(data_root: Path):
    args = Namespace(data_root=str(data_root), splits=None, train_txt=None, val_txt=None, test_txt=None)
    return find_lists(SPEC, args, RHO, LARGEST)


def images_of(data_root: Path, split: str) -> LongTailDataset:
    root, files, _ = lists_of(data_root)
    return LongTailDataset(root, files[split], 10, np.asarray)


def test_a_tail_is_cut_and_each_image_is_the_files(tmp_path):
    write_parts(tmp_path, 140, 4)
    train_labels = idx.read(tmp_path / "train-labels-idx1-ubyte.gz", 1)
    test_labels = idx.read(tmp_path / "t10k-labels-idx1-ubyte.gz", 1)
    train, val, test = (images_of(tmp_path, split) for split in ("train", "val", "test"))
    assert train.class_counts.tolist() == SIZES
    assert val.class_counts.tolist() == [100] * 10 and len(test) == 40
    assert not {*train.paths.tolist()} & {*val.paths.tolist()}
    for images, part, labels in (
        (train, "train", train_labels),
        (val, "train", train_labels),
        (test, "t10k", test_labels),
    ):
        pixels = idx.read(tmp_path / f"{part}-images-idx3-ubyte.gz", 3)
        for i in range(len(images)):
            picture, label = images[i]
            number = int(images.paths[i].decode().split("/")[1])
            assert picture.shape == (28, 28, 3) and (picture == pixels[number][..., None]).all()
            assert label == labels[number]


@pytest.mark.parametrize("place", [".", "FashionMNIST/raw", "debian"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_the_files_are_found_where_they_lie(place, suffix, tmp_path):
    write_parts(tmp_path / place, 140, 1, suffix)
    assert lists_of(tmp_path).root == tmp_path / place
    assert images_of(tmp_path, "train")[0][0].shape == (28, 28, 3)


def test_a_download_is_the_last_resort(tmp_path, monkeypatch):
    monkeypatch.setattr(
        fashion, "FashionMNIST", lambda root, download: write_parts(Path(root) / "FashionMNIST/raw", 140, 1)
    )
    assert lists_of(tmp_path).root == tmp_path / "FashionMNIST" / "raw"


def test_nowhere_is_said_with_what_to_do(tmp_path):
    refusal(lambda: lists_of(tmp_path), tmp_path / "debian", "apt-get install dataset-fashion")
    assert not (tmp_path / SPEC.set_name).exists()


def test_other_files_of_the_kind_are_taken_with_a_line(tmp_path, capsys):
    """As of MNIST; said once, when the lists are cut."""
    write_parts(tmp_path, 140, 1)
    lists_of(tmp_path)
    assert capsys.readouterr().out.count("SHA-256") == 4
    lists_of(tmp_path)
    assert not capsys.readouterr().out


def test_lists_are_not_used_with_other_labels_than_those_they_were_cut_from(tmp_path):
    write_parts(tmp_path, 140, 1)
    lists_of(tmp_path)
    write_idx(tmp_path / "train-labels-idx1-ubyte.gz", np.arange(1400, dtype=np.uint8) % 10)
    refusal(lambda: lists_of(tmp_path), "imbalance", tmp_path)


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def rewrite(file: Path, change) -> None:
    """Change what is in it."""
    data = change(idx.content(file))
    file.write_bytes(gzip.compress(data) if file.suffix == ".gz" else data)


def say_too_much(file: Path) -> None:
    """A size that is 0 in 64 bits."""
    rewrite(file, lambda data: data[:4] + struct.pack(">3I", 2**31, 2**31, 4) + data[16:])


def add_a_byte(file: Path) -> None:
    rewrite(file, lambda data: data + b"x")


def add_an_image(file: Path) -> None:
    write_idx(file, np.zeros((1401, 28, 28), np.uint8))


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(
    ("name", "damage", "facts"),
    [
        ("train-images-idx3-ubyte", Path.unlink, [".gz"]),
        ("t10k-labels-idx1-ubyte", Path.unlink, []),
        ("train-images-idx3-ubyte", cut_short, []),
        ("train-labels-idx1-ubyte", lambda file: file.write_bytes(b""), []),
        ("train-images-idx3-ubyte", lambda file: write_idx(file, np.zeros(5, np.uint8)), ["00000801"]),
        ("train-images-idx3-ubyte", add_an_image, [1401, 1400]),
        ("train-images-idx3-ubyte", say_too_much, ["2147483648 × 2147483648 × 4"]),
        ("train-images-idx3-ubyte", lambda file: write_idx(file, np.zeros((9, 0, 28), np.uint8)), ["9 × 0 × 28"]),
        ("train-images-idx3-ubyte", add_a_byte, []),
        ("train-labels-idx1-ubyte", lambda file: write_idx(file, np.full(1400, 11, np.uint8)), [11]),
        ("train-labels-idx1-ubyte", lambda file: write_idx(file, np.zeros(1400, np.uint8)), ["class 1", 0]),
    ],
)
def test_damaged_files_are_named_and_no_list_is_written(name, damage, facts, suffix, tmp_path):
    write_parts(tmp_path, 140, 1, suffix)
    damage(tmp_path / f"{name}{suffix}")
    refusal(lambda: lists_of(tmp_path), name.split("-")[0], *facts)
    assert not any(tmp_path.glob(f"{SPEC.set_name}/imbalance*"))


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_a_record_that_cannot_be_read_is_named(text, tmp_path):
    write_parts(tmp_path, 140, 1)
    lists_of(tmp_path)
    record = made_folders(SPEC.set_name, tmp_path, RHO, LARGEST)[1] / "made.json"
    record.write_text(text)
    refusal(lambda: lists_of(tmp_path), record)


def test_an_image_that_the_file_does_not_hold(tmp_path):
    write_parts(tmp_path, 140, 1)
    refusal(lambda: idx.image(tmp_path, "train-images-idx3-ubyte/01400"), "01400", " 1400")


def test_verify_knows_the_lists_and_opens_the_images(tmp_path, capsys):
    write_parts(tmp_path, 140, 2)
    flags = f"--data-root {tmp_path} --imbalance {RHO} --largest {LARGEST} --decode"
    splits.main(["verify", "fashion", *flags.split()])
    out = capsys.readouterr().out
    assert not wrong_lines(out) and len(known_lists(out)) == 3
    assert [line for line in marked(out, "ok") if "1,000" in line and "Fashion_MNIST_LT_val.txt" in line]


def test_verify_names_a_file_that_is_gone(tmp_path):
    write_parts(tmp_path, 140, 2)
    lists_of(tmp_path)
    (tmp_path / "t10k-images-idx3-ubyte.gz").unlink()
    flags = f"--data-root {tmp_path} --imbalance {RHO} --largest {LARGEST}"
    words = ["verify", "fashion", *flags.split()]
    refusal(lambda: splits.main(words), "t10k-images-idx3-ubyte", "train-images")


def test_how_large_the_largest_class_may_be():
    assert resolve_largest(SPEC, None) == 1000 and resolve_largest(SPEC, 5900) == 5900
    refusal(lambda: resolve_largest(SPEC, 6000), "--largest", 6000, 5900)
    refusal(lambda: resolve_largest(REGISTRY["digits"], 50), "--largest", 50, "digits", "fashion")
    assert resolve_imbalance(SPEC, 50, 50) == 50
    refusal(lambda: resolve_imbalance(SPEC, 51, 50), "--imbalance", 51, 50)


def test_the_record_says_how_it_was_cut(tmp_path):
    write_parts(tmp_path, 140, 1)
    lists_of(tmp_path)
    made = json.loads((made_folders(SPEC.set_name, tmp_path, RHO, LARGEST)[1] / "made.json").read_text())
    assert (made["imbalance"], made["largest"], made["source"]) == (RHO, LARGEST, str(tmp_path))


def test_a_small_archive_of_much_is_not_unpacked(tmp_path):
    """300 MB of zeros in 300 kB: what the header does not say is not read."""
    file = tmp_path / "bomb-idx3-ubyte.gz"
    file.write_bytes(gzip.compress(bytes(300 * 2**20), 1))
    refusal(lambda: idx.read(file, 3), file, "00000000")
    assert len(idx.content(file, 100)) == 100


def test_which_images_are_cut_is_pinned(tmp_path):
    """Seeds are of training: the split is one, on every machine."""
    write_parts(tmp_path, 140, 1)
    list_file = lists_of(tmp_path).files["train"]
    assert hashlib.sha256(list_file.read_bytes()).hexdigest()[:16] == "be67abd6c9a211b1"


def test_lists_that_are_named_are_taken_and_none_are_written(tmp_path):
    write_parts(tmp_path, 140, 1)
    args = Namespace(
        data_root=str(tmp_path), splits=str(tmp_path / "mine"), train_txt=None, val_txt=None, test_txt=None
    )
    found = find_lists(SPEC, args, RHO, LARGEST)
    assert found.root == tmp_path and found.files["train"] == tmp_path / "mine" / "Fashion_MNIST_LT_train.txt"
    assert not (tmp_path / SPEC.set_name).exists()


def test_the_next_command_is_of_the_same_images(tmp_path):
    """And a checkpoint of before --largest had none of it."""
    write_parts(tmp_path, 140, 1)
    flags = f"--dataset fashion --data-root {tmp_path} --largest 30 --imbalance 10"
    args = stage1.get_args_parser().parse_args(flags.split())
    options.resolve_defaults(args)
    assert (args.arch, args.image_size, args.views, args.largest) == ("lenet", 28, "grey", 30)
    assert options.before(args)["largest"] is None
    typed = options.command_line("main_lincls_imba.py", args).split()
    again = stage1.get_args_parser().parse_args(typed[2:])
    options.resolve_defaults(again)
    assert options.data_of(again).lists == options.data_of(args).lists
    assert options.data_of(args).open("train").class_counts.tolist() == SIZES
