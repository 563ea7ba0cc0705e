"""The images of python -m imagenet_inat.predict: folders, unreadable files, and refused command lines."""

import csv
import io

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from imagenet_inat.predict import __main__ as predict
from imagenet_inat.predict.image_files import find_images
from tests.refusals import assert_names, line_with, refusal
from utils.run import checkpoint


@pytest.fixture
def folder(tmp_path):
    """Return a folder with an image, a subfolder with another, a truncated image and a text file."""
    root = tmp_path / "images"
    (root / "inner" / "most").mkdir(parents=True)
    Image.new("L", (16, 16), 90).save(root / "b.png")
    Image.new("RGB", (40, 20), "red").save(root / "inner" / "most" / "a.JPG")
    (root / "inner" / "broken.png").write_bytes((root / "b.png").read_bytes()[:40])
    (root / "notes.txt").write_text("no image")
    return root


def rows(text: str) -> dict[str, dict[str, str]]:
    return {row["path"]: row for row in csv.DictReader(io.StringIO(text))}


def test_folder_is_searched_and_unreadable_file_has_a_row(folder, classifiers, capsys):
    predict.main([str(classifiers["linear"]), str(folder)])
    out, err = capsys.readouterr()
    found = rows(out)
    names = ["b.png", "inner/broken.png", "inner/most/a.JPG"]
    assert list(found) == [str(folder / name) for name in names]
    bad = found.pop(str(folder / "inner/broken.png"))
    assert bad["error"] and bad["label"] == bad["probability_5"] == ""
    assert all(row["label"] and not row["error"] for row in found.values())
    line_with(err, "2 of 3", "1 without")
    line_with(err, "note", folder, "1 .txt")


def test_image_is_turned_upright_as_in_training(classifiers, tmp_path, capsys):
    """Phones store a turned photo with its orientation. The classifier was trained on images as viewers show them."""
    pixels = Image.fromarray((np.arange(256).reshape(16, 16) // 2).astype(np.uint8))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    pixels.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "photo.png", exif=exif)
    pixels.save(tmp_path / "upright.png")
    predict.main([str(classifiers["linear"]), str(tmp_path)])
    photo, upright = rows(capsys.readouterr().out).values()
    assert photo["probability"] == upright["probability"]


def test_missing_file_of_a_list_has_a_row(folder, classifiers, tmp_path, capsys):
    (tmp_path / "list.txt").write_text("b.png\ngone.png\n")
    predict.main([str(classifiers["linear"]), "--list", str(tmp_path / "list.txt"), "--data-root", str(folder)])
    out, err = capsys.readouterr()
    assert rows(out)["gone.png"]["error"] and rows(out)["b.png"]["label"]
    line_with(err, "1 of 2")


def test_images_that_are_all_unreadable_are_refused(folder, classifiers, tmp_path):
    output = tmp_path / "predictions.csv"
    words = [str(classifiers["linear"]), str(folder / "inner" / "broken.png"), "--output", str(output)]
    refusal(lambda: predict.main(words), "0 of 1", "broken.png")
    assert not output.exists()


def test_path_that_ends_in_a_number_is_not_a_label(folder, classifiers, tmp_path, capsys):
    (folder / "b.png").rename(folder / "scan 3")
    (tmp_path / "list.txt").write_text("scan 3\n")
    predict.main([str(classifiers["linear"]), "--list", str(tmp_path / "list.txt"), "--data-root", str(folder)])
    assert list(rows(capsys.readouterr().out)) == ["scan 3"]


def test_image_without_a_prediction_does_not_count_in_accuracy(folder, classifiers, tmp_path, capsys):
    predict.main([str(classifiers["linear"]), str(folder / "b.png")])
    label = rows(capsys.readouterr().out)[str(folder / "b.png")]["label"]
    (tmp_path / "list.txt").write_text(f"b.png {label}\ngone.png 0\n")
    predict.main([str(classifiers["linear"]), "--list", str(tmp_path / "list.txt"), "--data-root", str(folder)])
    line_with(capsys.readouterr().err, "1 of 2", "accuracy 100.00 %", "1 images")


@pytest.mark.parametrize(
    ("words", "facts"),
    [
        ("{linear}", ("IMAGES", "--list")),
        ("{linear} gone", ("gone",)),
        ("{linear} {images}/empty", ("empty",)),
        ("{linear} {images} --output {images}/b.png", ("b.png", ".csv", ".jsonl")),
        ("{linear} {images} --output {images}/taken.csv", ("taken.csv", "--overwrite")),
        ("{linear} --list {images}/notes.txt", ("no image", "--data-root")),
        ("{linear}/.. {images}", ("model_best.pth.tar", "linear")),
        ("{images}/notes.txt {images}", ("notes.txt",)),
        ("{stage1}/last.pth.tar {images}", ("last.pth.tar", "classifier", "--head")),
        ("{images}/gone.pt2 {images}", ("gone.pt2",)),
    ],
)
def test_unusable_command_line_is_refused(words, facts, folder, classifiers, tsc_run):
    (folder / "empty").mkdir()
    (folder / "taken.csv").write_text("kept")
    words = words.format(linear=classifiers["linear"], images=folder, stage1=tsc_run).split()
    refusal(lambda: predict.main(words), *facts)
    assert (folder / "taken.csv").read_text() == "kept"


@pytest.mark.parametrize("kind", ["linear", "targets"])
def test_classifier_of_stage_1_is_saved_by_head_own(kind, folder, tsc_run, tmp_path):
    """A linear one has tensors of its own, and --joint-classifier targets has none."""
    state = checkpoint.read_file(tsc_run / "last.pth.tar")
    state["args"] |= {"joint": 1.0, "joint_classifier": kind}
    if kind == "linear":
        zeros = {"weight": torch.zeros(10, 84), "bias": torch.zeros(10)}
        state["state_dict"] |= {f"module.classifier.{name}": tensor for name, tensor in zeros.items()}
    torch.save(state, tmp_path / "joint.pth.tar")
    refusal(lambda: predict.main([str(tmp_path / "joint.pth.tar"), str(folder)]), "joint.pth.tar", "--head own")


def test_old_checkpoint_sees_images_as_they_are_stored(classifiers, tmp_path, capsys):
    """It was trained before orientations were applied."""
    state = checkpoint.read_file(classifiers["linear"] / "model_best.pth.tar")
    state["args"]["images_as_shown"] = False
    torch.save(state, tmp_path / "old.pth.tar")
    pixels, exif = Image.fromarray((np.arange(256).reshape(16, 16) // 2).astype(np.uint8)), Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    (tmp_path / "images").mkdir()
    pixels.save(tmp_path / "images" / "turned.png", exif=exif)
    pixels.save(tmp_path / "images" / "plain.png")
    predict.main([str(tmp_path / "old.pth.tar"), str(tmp_path / "images")])
    turned, plain = rows(capsys.readouterr().out).values()
    assert turned["probability"] == plain["probability"]


def test_skipped_files_of_all_folders_are_reported(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("L", (4, 4)).save(tmp_path / name / "x.png")
        (tmp_path / name / "notes.txt").touch()
    skipped = find_images([str(tmp_path / "a"), str(tmp_path / "b")]).skipped
    assert_names(skipped, tmp_path / "a", tmp_path / "b")
