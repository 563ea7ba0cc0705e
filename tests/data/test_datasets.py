"""The dataset registry, split lists, images, and the included digits."""

import multiprocessing
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

import main_moco_supcon_imba as stage1
from imagenet_inat import options
from imagenet_inat.datasets import REGISTRY
from imagenet_inat.images import LongTailDataset
from imagenet_inat.lists.format import read_split
from imagenet_inat.sets import digits
from moco.loader import Normalise, TwoCropsTransform, eval_transform, train_transform
from tests import ROOT
from tests.refusals import at_line, line_with, refusal
from utils.measure.metrics import shots


def write_list(tmp_path, text: str, encoding: str = "utf-8"):
    path = tmp_path / "list.txt"
    path.write_bytes(text.encode(encoding))
    return path


def test_split_list_is_read_into_paths_and_labels(tmp_path):
    path = write_list(tmp_path, "train/n01440764/n01440764_762.JPEG 0\nval/a b/ü.jpg\t2\r\nlast.jpg 1")
    paths, labels = read_split(path, num_classes=3)
    assert [p.decode() for p in paths] == ["train/n01440764/n01440764_762.JPEG", "val/a b/ü.jpg", "last.jpg"]
    assert labels.tolist() == [0, 2, 1]


def test_last_blank_separates_path_and_label(tmp_path):
    """Names may contain blanks of every kind, two dots and digits. Only a newline ends a line."""
    names = ["a b  c.jpg", "tab\there.jpg", "two..dots/…5 1.jpg", "ideographic\u3000blank\u2028line\x85end.jpg"]
    paths, labels = read_split(write_list(tmp_path, "".join(f"{name} {i}\n" for i, name in enumerate(names))), None)
    assert [path.decode() for path in paths] == names and labels.tolist() == [0, 1, 2, 3]


def test_dataset_stores_list_as_two_arrays(tmp_path):
    """A Python object per image would be copied in every loader process."""
    (tmp_path / "a.jpg").touch()
    data = LongTailDataset(tmp_path, write_list(tmp_path, "a.jpg 0\n" * 1000), 1, None)
    assert data.paths.dtype == "S5" and data.labels.dtype == np.int64
    assert len(pickle.dumps(data)) < 1000 * (5 + 8) + 2000


def test_byte_order_mark_is_not_part_of_first_path(tmp_path):
    paths, _ = read_split(write_list(tmp_path, "a.jpg 0\n", "utf-8-sig"), 1)
    assert paths[0] == b"a.jpg"


@pytest.mark.parametrize(
    ("text", "number", "fact"),
    [
        ("a.jpg 0\nb.jpg\n", 2, "b.jpg"),
        ("a.jpg 0\n\nb.jpg 1\n", 2, ""),
        ("a.jpg zero\n", 1, "zero"),
        ("a.jpg 1.0\n", 1, "1.0"),
        ("a.jpg 0\nb.jpg 3\n", 2, "label 3"),
        ("a.jpg -1\n", 1, "label -1"),
        ("a.jpg 1_0\n", 1, "1_0"),
        ("a.jpg +1\n", 1, "+1"),
        ("a.jpg ١\n", 1, "١"),  # a digit, but not an ASCII digit
        ("a.jpg 0\rb.jpg 1\r", 1, r"b'\r'"),
        ("a.jpg 0\na\0.jpg 0\n", 2, r"b'\x00'"),
        ("a.jpg 0\n/etc/a.jpg 0\n", 2, "/etc/a.jpg"),
        ("a/../../b.jpg 0\n", 1, "a/../../b.jpg"),
    ],
)
def test_bad_line_is_named(tmp_path, text, number, fact):
    file = write_list(tmp_path, text)
    refusal(lambda: read_split(file, num_classes=3), at_line("list.txt", number), fact)


def test_empty_list_is_refused(tmp_path):
    file = write_list(tmp_path, "")
    refusal(lambda: read_split(file, num_classes=3), file)


def test_missing_list_and_list_that_is_not_utf8_are_refused(tmp_path):
    (tmp_path / "list.txt").write_bytes(b"\xff\xfe\x00a")
    refusal(lambda: read_split(tmp_path / "list.txt", 3), "list.txt", "UTF-8")
    refusal(lambda: read_split(tmp_path / "absent.txt", 3), "absent.txt")


def test_shots_have_limits_of_paper():
    groups = shots(np.array([101, 100, 20, 19, 0]))
    assert {name: mask.nonzero()[0].tolist() for name, mask in groups.items()} == {
        "many": [0],
        "medium": [1, 2],
        "few": [3, 4],
    }


@pytest.fixture
def two_images(tmp_path):
    Image.new("L", (30, 20), 255).save(tmp_path / "white.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n but no more")
    return tmp_path, write_list(tmp_path, "white.png 0\nbroken.png 1\nabsent.png 1\n")


def test_images_are_rgb_with_label(two_images):
    image, label = LongTailDataset(*two_images, 2, transform=lambda image: image)[0]
    assert (image.mode, image.size, label) == ("RGB", (30, 20), 0)


@pytest.mark.parametrize(("index", "name"), [(1, "broken.png"), (2, "absent.png")])
def test_unreadable_image_is_named_with_line(two_images, index, name):
    dataset = LongTailDataset(*two_images, 2, transform=lambda image: image)
    refusal(lambda: dataset[index], name, at_line("list.txt", index + 1))


def test_wrong_data_root_is_found_before_training(two_images):
    root, file = two_images
    refusal(lambda: LongTailDataset(root / "elsewhere", file, 2, None), root / "elsewhere", "list.txt", "--data-root")


def test_view_is_a_function_of_seed_and_draw_number(tmp_path):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(tmp_path / "noise.png")
    path = write_list(tmp_path, "noise.png 0\n")

    def views(seed: int, draw: int):
        transform = TwoCropsTransform(train_transform("photo", 16))
        return torch.stack(LongTailDataset(tmp_path, path, 1, transform, seed)[(0, draw)][0])

    first = views(0, 7)
    torch.rand(100)  # other random numbers in between have no effect
    assert torch.equal(first, views(0, 7))
    assert not torch.equal(first, views(0, 8))
    assert not torch.equal(first, views(1, 7))
    assert not torch.equal(first[0], first[1])  # the two views differ


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_views_of_every_dataset_have_input_size_of_network(name):
    spec = REGISTRY[name]
    image = Image.new("RGB", (250, 190), (255, 0, 0))
    for transform in (train_transform(spec.view, spec.image_size), eval_transform(spec.view, spec.image_size)):
        size = spec.image_size
        # a photograph may have any shape; the digits are square
        assert transform(image if spec.view == "photo" else image.resize((8, 8))).shape == (3, size, size)


def test_white_is_normalised_with_statistics_of_dataset():
    for spec in REGISTRY.values():
        white = eval_transform(spec.view, 16)(Image.new("RGB", (16, 16), (255, 255, 255)))
        white = Normalise(spec.mean, spec.std, torch.device("cpu"))(white)
        expected = [(1 - mean) / std for mean, std in zip(spec.mean, spec.std, strict=True)]
        assert white.mean(dim=(1, 2)).tolist() == pytest.approx(expected, rel=1e-4)


def test_documentation_table_matches_registry():
    listed = {}
    for line in (ROOT / "docs" / "data.md").read_text().splitlines():
        if line.startswith("| `") and "classes" not in line:
            names, classes = line.split("|")[1:3]
            names, classes = names.replace("`", "").strip().split(", "), classes.strip().split(", ")
            listed |= dict(zip(names, classes * (len(names) if len(classes) == 1 else 1), strict=True))
    assert listed == {name: str(spec.num_classes) for name, spec in REGISTRY.items()} | {"custom": "from your list"}


def test_digits_have_documented_split(digits_root):
    root, splits = digits.prepare(digits_root, imbalance=50)
    counts, seen = {}, []
    for split in ("train", "val", "test"):
        data = LongTailDataset(root, splits / f"digits_LT_{split}.txt", 10, None)
        counts[split] = data.class_counts.tolist()
        seen += data.paths.tolist()
    assert counts["train"] == [int(120 * 50 ** (-c / 9) + 1e-9) for c in range(10)] == digits.train_counts(50)
    assert counts["train"][0] == 120 and counts["train"][9] == 2
    assert counts["val"] == [14] * 10 and counts["test"] == [40] * 10
    assert len(set(seen)) == len(seen), "an image in two splits"


def test_digits_equal_images_of_scikit_learn(digits_root):
    root, _ = digits.prepare(digits_root, imbalance=50)
    files = sorted((root / "images").glob("*/*.png"), key=lambda path: path.stem)
    pixels = np.stack([np.asarray(Image.open(path)) for path in files])
    assert np.array_equal(np.round(pixels / 255 * 16), digits.load_digits().images)
    assert [int(path.parent.name) for path in files] == digits.load_digits().target.tolist()


def test_imbalances_have_own_lists_and_same_test_set(digits_root):
    _, fifty = digits.prepare(digits_root, imbalance=50)
    _, ten = digits.prepare(digits_root, imbalance=10)
    assert fifty != ten
    name = "digits_LT_test.txt"
    assert (fifty / name).read_text() == (ten / name).read_text()
    assert digits.train_counts(1) == [120] * 10


def _prepare(root):
    return [str(path) for path in digits.prepare(root, 50)]


def test_two_processes_can_write_digits_at_once(tmp_path):
    with multiprocessing.get_context("fork").Pool(2) as pool:
        results = pool.map(_prepare, [tmp_path] * 2, chunksize=1)
    assert all(result == results[0] for result in results)
    assert sorted(path.name for path in (tmp_path / "digits_LT").iterdir()) == ["images", "imbalance_50"]
    assert len(list((tmp_path / "digits_LT" / "images").glob("*/*.png"))) == 1797


@pytest.mark.parametrize("flag", ["--imbalance", "--split-seed"])
def test_note_reports_flag_that_named_lists_ignore(flag, capsys):
    args = stage1.get_args_parser().parse_args(["--dataset", "digits", "--splits", "LISTS", flag, "20"])
    options.DataFlags.from_args(args).resolved()
    line_with(capsys.readouterr().out, "note", flag)


def test_refused_imbalance_is_not_called_ignored(capsys):
    args = stage1.get_args_parser().parse_args(["--dataset", "custom", "--splits", "LISTS", "--imbalance", "20"])
    refusal(lambda: options.DataFlags.from_args(args).resolved(), "--imbalance 20", "custom")
    assert not capsys.readouterr().out
