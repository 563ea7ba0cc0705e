"""ImageNet-LT0 to LT8 of the KCL authors: their lists are read, downloaded from a folder, and checked by counts."""

from pathlib import Path

import pytest
from PIL import Image

import main_moco_supcon_imba as stage1
from imagenet_inat import options
from imagenet_inat.datasets import REGISTRY
from imagenet_inat.lists import known
from imagenet_inat.lists.format import read_split
from imagenet_inat.splits import __main__ as splits
from tests.refusals import at_line, line_with, refusal


def test_class_folder_paths_are_mapped_into_train(tmp_path):
    (tmp_path / "list.txt").write_text("/n01440764/a.JPEG 0\nn01440764/b.JPEG 0\nval/c.JPEG 1\n")
    paths, _ = read_split(tmp_path / "list.txt", 2, wnid_folder="train")
    assert paths.tolist() == [b"train/n01440764/a.JPEG", b"train/n01440764/b.JPEG", b"val/c.JPEG"]


@pytest.mark.parametrize("path", ["/etc/passwd", "//n01440764/a.JPEG", "/n01440764/../../a.JPEG"])
def test_paths_outside_the_data_root_are_still_refused(path, tmp_path):
    (tmp_path / "list.txt").write_text(f"{path} 0\n")
    refusal(lambda: read_split(tmp_path / "list.txt", 1, wnid_folder="train"), at_line("list.txt", 1), path)


def test_run_opens_the_images_of_such_a_list(tmp_path):
    (folder := tmp_path / "train" / "n01440764").mkdir(parents=True)
    Image.new("RGB", (9, 7)).save(folder / "a.JPEG")
    (tmp_path / "list.txt").write_text("/n01440764/a.JPEG 3\n")
    lists = [word for split in ("train", "val", "test") for word in (f"--{split}-txt", str(tmp_path / "list.txt"))]
    args = stage1.get_args_parser().parse_args(["--dataset", "imagenet_lt4", "--data-root", str(tmp_path), *lists])
    (item,) = options.build_data_config(options.DataFlags.from_args(args).resolved()).open(
        "train", lambda image: image.size
    )
    assert item == ((9, 7), 3)


def test_lists_are_those_of_the_authors_and_of_imagenet_lt():
    names = REGISTRY["imagenet_lt0"].list_names
    assert names == ["imagenet_100k_train.txt", "ImageNet_LT_val.txt", "ImageNet_LT_test.txt"]
    train, val = (known.published_url(name, "ImageNet_LT") for name in names[:2])
    assert "BalFeat" in train and val.endswith("/ImageNet_LT")


def write_lt0(folder: Path) -> list[str]:
    """Write lists in the form of LT0's, 115 images in each class. Return the lines of the training list."""
    lines = [f"/n{c:08}/n{c:08}_{i}.JPEG {c}\n" for c in range(1000) for i in range(115)]
    folder.mkdir()
    (folder / "imagenet_100k_train.txt").write_text("".join(lines))
    for split in ("val", "test"):
        (folder / f"ImageNet_LT_{split}.txt").write_text("".join(f"{split}/{c}.JPEG {c}\n" for c in range(1000)))
    return lines


def test_download_and_verify_compare_counts(tmp_path, capsys, monkeypatch):
    for split in ("val", "test"):
        monkeypatch.delitem(known.PUBLISHED, f"ImageNet_LT_{split}.txt")
    source, output = tmp_path / "source", tmp_path / "lists"
    lines = write_lt0(source)
    download = ["download", "imagenet_lt0", "--from", str(source), "--output", str(output)]
    verify = ["verify", "imagenet_lt0", "--splits", str(output)]
    splits.main(download)
    splits.main(verify)
    assert "no problems found" in capsys.readouterr().out
    (output / "imagenet_100k_train.txt").write_text("".join(lines[1:]))
    with pytest.raises(SystemExit):
        splits.main(verify)
    line_with(capsys.readouterr().out, "114,999", "115,000")
    refusal(lambda: splits.main(download), "imagenet_100k_train.txt", "114,999", "115,000")
