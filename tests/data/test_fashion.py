"""Fashion-MNIST: its IDX files are found, checked and split. The tests use files of noise."""

import gzip
import hashlib
import json
import struct
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch

import main_lincls_imba as stage2
import main_moco_supcon_imba as stage1
from imagenet_inat import options, stored_flags
from imagenet_inat.datasets import REGISTRY
from imagenet_inat.images import LongTailDataset
from imagenet_inat.lists.format import generated_folders
from imagenet_inat.paths import ListFlags, find_lists, resolve_imbalance, resolve_largest
from imagenet_inat.sets import fashion, idx
from imagenet_inat.splits import __main__ as splits
from tests.idx_files import write_fashion_mnist, write_idx
from tests.refusals import refusal
from tests.verifying import known_lists, lines_marked, wrong_lines
from utils.cli.flags import describe_arguments

SPEC = REGISTRY["fashion"]
LARGEST, RHO = 30, 10
SIZES = [30, 23, 17, 13, 10, 8, 6, 5, 3, 3]  # int(30 · 10^(−c/9))


def fail_to_download(*_, **__):
    raise URLError("no network")


@pytest.fixture(autouse=True)
def no_other_source(monkeypatch, tmp_path):
    """Hide Debian's files and make the download fail."""
    monkeypatch.setattr(fashion, "DEBIAN", tmp_path / "debian")
    monkeypatch.setattr("torchvision.datasets.FashionMNIST", fail_to_download)
    idx._read_images.cache_clear()


def lists_of(data_root: Path):
    return find_lists(SPEC, ListFlags(data_root=str(data_root), imbalance=RHO, largest=LARGEST))


def images_of(data_root: Path, split: str) -> LongTailDataset:
    root, files, _ = lists_of(data_root)
    return LongTailDataset(root, files[split], 10, np.asarray)


def test_long_tail_is_cut_and_images_match_files(tmp_path):
    write_fashion_mnist(tmp_path, 140, 4)
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
            image, label = images[i]
            number = int(images.paths[i].decode().split("/")[1])
            assert image.shape == (28, 28, 3) and (image == pixels[number][..., None]).all()
            assert label == labels[number]


@pytest.mark.parametrize("subfolder", [".", "FashionMNIST/raw", "debian"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_files_are_found_in_each_supported_folder(subfolder, suffix, tmp_path):
    write_fashion_mnist(tmp_path / subfolder, 140, 1, suffix)
    assert lists_of(tmp_path).root == tmp_path / subfolder
    assert images_of(tmp_path, "train")[0][0].shape == (28, 28, 3)


def test_download_is_last_resort(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "torchvision.datasets.FashionMNIST",
        lambda root, download: write_fashion_mnist(Path(root) / "FashionMNIST/raw", 140, 1),
    )
    assert lists_of(tmp_path).root == tmp_path / "FashionMNIST" / "raw"


def test_missing_files_are_reported_with_install_command(tmp_path):
    refusal(lambda: lists_of(tmp_path), tmp_path / "debian", "apt-get install dataset-fashion")
    assert not (tmp_path / SPEC.set_name).exists()


def test_other_idx_files_are_accepted_with_warning(tmp_path, capsys):
    """For example files of MNIST. The warning is printed once, when the lists are written."""
    write_fashion_mnist(tmp_path, 140, 1)
    lists_of(tmp_path)
    assert capsys.readouterr().out.count("SHA-256") == 4
    lists_of(tmp_path)
    assert not capsys.readouterr().out


def test_lists_are_refused_with_other_label_files(tmp_path):
    write_fashion_mnist(tmp_path, 140, 1)
    lists_of(tmp_path)
    write_idx(tmp_path / "train-labels-idx1-ubyte.gz", np.arange(1400, dtype=np.uint8) % 10)
    refusal(lambda: lists_of(tmp_path), "imbalance", tmp_path)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def rewrite(file: Path, change) -> None:
    """Change the decompressed content of a file."""
    data = change(idx.content(file))
    file.write_bytes(gzip.compress(data) if file.suffix == ".gz" else data)


def overflow_header(file: Path) -> None:
    """Write a header whose size is 0 modulo 2**64."""
    rewrite(file, lambda data: data[:4] + struct.pack(">3I", 2**31, 2**31, 4) + data[16:])


def append_byte(file: Path) -> None:
    rewrite(file, lambda data: data + b"x")


def write_one_image_too_many(file: Path) -> None:
    write_idx(file, np.zeros((1401, 28, 28), np.uint8))


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(
    ("name", "damage", "facts"),
    [
        ("train-images-idx3-ubyte", Path.unlink, [".gz"]),
        ("t10k-labels-idx1-ubyte", Path.unlink, []),
        ("train-images-idx3-ubyte", truncate, []),
        ("train-labels-idx1-ubyte", lambda file: file.write_bytes(b""), []),
        ("train-images-idx3-ubyte", lambda file: write_idx(file, np.zeros(5, np.uint8)), ["00000801"]),
        ("train-images-idx3-ubyte", write_one_image_too_many, [1401, 1400]),
        ("train-images-idx3-ubyte", overflow_header, ["2147483648 × 2147483648 × 4"]),
        ("train-images-idx3-ubyte", lambda file: write_idx(file, np.zeros((9, 0, 28), np.uint8)), ["9 × 0 × 28"]),
        ("train-images-idx3-ubyte", append_byte, []),
        ("train-labels-idx1-ubyte", lambda file: write_idx(file, np.full(1400, 11, np.uint8)), [11]),
        ("train-labels-idx1-ubyte", lambda file: write_idx(file, np.zeros(1400, np.uint8)), ["class 1", 0]),
    ],
)
def test_damaged_files_are_named_and_no_list_is_written(name, damage, facts, suffix, tmp_path):
    write_fashion_mnist(tmp_path, 140, 1, suffix)
    damage(tmp_path / f"{name}{suffix}")
    refusal(lambda: lists_of(tmp_path), name.split("-")[0], *facts)
    assert not any(tmp_path.glob(f"{SPEC.set_name}/imbalance*"))


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_damaged_record_is_named(text, tmp_path):
    write_fashion_mnist(tmp_path, 140, 1)
    lists_of(tmp_path)
    record = generated_folders(SPEC.set_name, tmp_path, RHO, LARGEST)[1] / "made.json"
    record.write_text(text)
    refusal(lambda: lists_of(tmp_path), record)


def test_image_number_beyond_file_is_refused(tmp_path):
    write_fashion_mnist(tmp_path, 140, 1)
    refusal(lambda: idx.image(tmp_path, "train-images-idx3-ubyte/01400"), "01400", " 1400")


def test_verify_recognises_lists_and_decodes_images(tmp_path, capsys):
    write_fashion_mnist(tmp_path, 140, 2)
    flags = f"--data-root {tmp_path} --imbalance {RHO} --largest {LARGEST} --decode"
    splits.main(["verify", "fashion", *flags.split()])
    out = capsys.readouterr().out
    assert not wrong_lines(out) and len(known_lists(out)) == 3
    assert [line for line in lines_marked(out, "ok") if "1,000" in line and "Fashion_MNIST_LT_val.txt" in line]


def test_verify_names_missing_file(tmp_path):
    write_fashion_mnist(tmp_path, 140, 2)
    lists_of(tmp_path)
    (tmp_path / "t10k-images-idx3-ubyte.gz").unlink()
    flags = f"--data-root {tmp_path} --imbalance {RHO} --largest {LARGEST}"
    words = ["verify", "fashion", *flags.split()]
    refusal(lambda: splits.main(words), "t10k-images-idx3-ubyte", "train-images")


def test_largest_and_imbalance_are_limited():
    assert resolve_largest(SPEC, None) == 1000 and resolve_largest(SPEC, 5900) == 5900
    refusal(lambda: resolve_largest(SPEC, 6000), "--largest", 6000, 5900)
    refusal(lambda: resolve_largest(REGISTRY["digits"], 50), "--largest", 50, "digits", "fashion")
    assert resolve_imbalance(SPEC, 50, 50) == 50
    refusal(lambda: resolve_imbalance(SPEC, 51, 50), "--imbalance", 51, 50)


def test_record_contains_parameters_of_split(tmp_path):
    write_fashion_mnist(tmp_path, 140, 1)
    lists_of(tmp_path)
    made = json.loads((generated_folders(SPEC.set_name, tmp_path, RHO, LARGEST)[1] / "made.json").read_text())
    assert (made["imbalance"], made["largest"], made["source"]) == (RHO, LARGEST, str(tmp_path))


def test_decompression_bomb_is_not_unpacked(tmp_path):
    """The file holds 300 MB of zeros in 300 kB. Only the size that the header states is read."""
    file = tmp_path / "bomb-idx3-ubyte.gz"
    file.write_bytes(gzip.compress(bytes(300 * 2**20), 1))
    refusal(lambda: idx.read(file, 3), file, "00000000")
    assert len(idx.content(file, 100)) == 100


def test_selected_images_are_pinned(tmp_path):
    """The split depends neither on the training seed nor on the machine."""
    write_fashion_mnist(tmp_path, 140, 1)
    list_file = lists_of(tmp_path).files["train"]
    assert hashlib.sha256(list_file.read_bytes()).hexdigest()[:16] == "be67abd6c9a211b1"


def test_given_lists_are_used_and_none_are_written(tmp_path):
    write_fashion_mnist(tmp_path, 140, 1)
    flags = ListFlags(data_root=str(tmp_path), splits=str(tmp_path / "mine"))
    found = find_lists(SPEC, flags.with_class_sizes(SPEC))
    assert found.root == tmp_path and found.files["train"] == tmp_path / "mine" / "Fashion_MNIST_LT_train.txt"
    assert not (tmp_path / SPEC.set_name).exists()


def test_stage_2_takes_the_lists_from_the_checkpoint(tmp_path):
    """A checkpoint from before --largest existed has no value for it. Its images are those of --split-seed 0."""
    write_fashion_mnist(tmp_path, 140, 1)
    flags = f"--dataset fashion --data-root {tmp_path} --largest 30 --imbalance 10 --split-seed 3"
    parser = stage1.get_args_parser()
    args = parser.parse_args(flags.split())
    flags = options.DataFlags.from_args(args).resolved()
    assert (flags.arch, flags.image_size, flags.views, flags.largest) == ("lenet", 28, "grey", 30)
    legacy = describe_arguments(parser, args).legacy
    assert (legacy["largest"], legacy["split_seed"]) == (None, 0)
    torch.save({"args": describe_arguments(parser, args).values}, tmp_path / "run.pth")
    again, _ = stored_flags.parse(stage2.get_args_parser(), ["--pretrained", str(tmp_path / "run.pth")])
    data = options.build_data_config(flags)
    assert options.build_data_config(options.DataFlags.from_args(again).resolved()).lists == data.lists
    assert data.lists.files["train"].parent.name.endswith("_split_3")
    assert data.open("train").class_counts.tolist() == SIZES
