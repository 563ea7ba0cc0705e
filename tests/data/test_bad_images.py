"""Unreadable images: they end the run with their name and line, or are skipped and listed."""

import io
import os
import shutil
import signal
from pathlib import Path

import pytest
from PIL import Image

import main_lincls_imba as stage2
import main_moco_supcon_imba as stage1
from imagenet_inat.images import LongTailDataset
from tests import processes
from tests.refusals import assert_names, at_line, line_with, refusal
from utils.errors import InputError, one_line
from utils.run import checkpoint


@pytest.fixture
def folder(tmp_path) -> Path:
    """Write thirty-two images of two classes. In class 1 two images are damaged and one is missing."""
    for i in range(32):
        Image.new("RGB", (9, 8), (8 * i, 100, 200)).save(tmp_path / f"{i}.png")
    (tmp_path / "5.png").write_bytes((tmp_path / "5.png").read_bytes()[:50])
    (tmp_path / "7.png").write_bytes(b"not an image")
    (tmp_path / "9.png").unlink()
    for split, numbers in (("train", range(32)), ("val", range(0, 32, 2)), ("test", range(0, 32, 2))):
        (tmp_path / f"custom_{split}.txt").write_text("".join(f"{i}.png {i % 2}\n" for i in numbers))
    (tmp_path / "custom_val.txt").write_text("0.png 0\n1.png 1\n")
    (tmp_path / "custom_test.txt").write_text("2.png 0\n3.png 1\n")
    return tmp_path


def flags(folder: Path, workers: int = 0) -> list[str]:
    """Return flags of both stages. Without loader processes, whole batches of the images are augmented."""
    text = f"--dataset custom --data-root {folder} --splits {folder} --arch resnet20 --image-size 8 --device cpu"
    text += f" -b 8 --epochs 2 --seed 0 -p 0 -j {workers} --device-aug {'off' if workers else 'auto'}"
    return text.split()


STAGE_1 = ["--moco-k", "16", "--moco-dim", "8"]
TRAIN = "custom_train.txt"
BAD = {"5.png": at_line(TRAIN, 6), "7.png": at_line(TRAIN, 8), "9.png": at_line(TRAIN, 10)}


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_image_ends_run_and_error_names_file_line_and_cause(workers, folder):
    with pytest.raises(InputError) as error:
        stage1.main([*flags(folder, workers), *STAGE_1, "--run-dir", str(folder / "run")])
    line = one_line(error.value)
    name = next(name for name in BAD if f"{name}: " in line)
    assert_names(line, BAD[name])
    assert "\n" not in line
    assert {"5.png": "truncated", "7.png": "cannot identify image", "9.png": "No such file"}[name] in line


@pytest.mark.parametrize("workers", [0, 2])
def test_skipped_images_are_counted_and_listed_in_both_stages(workers, folder, capsys):
    run, skip = folder / "run", ["--on-bad-image", "skip"]
    stage1.main([*flags(folder, workers), *STAGE_1, *skip, "--run-dir", str(run)])
    line_with(capsys.readouterr().out, "note", 3, run / "bad_images.txt")
    lines = (run / "bad_images.txt").read_text().splitlines()
    assert len(lines) == 3
    for name, facts in BAD.items():
        line_with("\n".join(lines), name, facts)

    pretrained = ["--pretrained", str(run / "last.pth.tar"), "--run-dir", str(folder / "probe"), "--lr", "0.1"]
    stage2.main([*flags(folder, workers), *pretrained, *skip])
    assert (folder / "probe" / "bad_images.txt").read_text().splitlines() == lines


def test_replacement_images_do_not_depend_on_workers(folder):
    weights = []
    for workers in (0, 2):
        run, words = folder / f"run{workers}", [*flags(folder, workers), "--device-aug", "off"]
        stage1.main([*words, *STAGE_1, "--on-bad-image", "skip", "--run-dir", str(run)])
        weights.append(checkpoint.read_checkpoint(run / "last.pth.tar")["state_dict"])
    assert all((weights[0][name] == weights[1][name]).all() for name in weights[0])


def test_skip_writes_no_list_when_all_images_are_readable(folder, capsys):
    for name in BAD:
        shutil.copy(folder / "1.png", folder / name)
    stage1.main([*flags(folder), *STAGE_1, "--on-bad-image", "skip", "--run-dir", str(folder / "run")])
    assert "bad_images.txt" not in capsys.readouterr().out
    assert not (folder / "run" / "bad_images.txt").exists()


def test_class_without_readable_images_ends_run(folder):
    for i in range(1, 32, 2):
        (folder / f"{i}.png").write_bytes(b"")
    words = [*flags(folder), *STAGE_1, "--on-bad-image", "skip", "--run-dir", str(folder / "run")]
    refusal(lambda: stage1.main(words), "class 1")


def test_bad_image_in_evaluation_always_ends_run(folder):
    stage1.main([*flags(folder), *STAGE_1, "--on-bad-image", "skip", "--run-dir", str(folder / "run")])
    (folder / "custom_test.txt").write_text("2.png 0\n7.png 1\n")
    pretrained = ["--pretrained", str(folder / "run" / "last.pth.tar"), "--run-dir", str(folder / "probe")]
    words = [*flags(folder), *pretrained, "--on-bad-image", "skip"]
    refusal(lambda: stage2.main(words), "7.png", at_line("custom_test.txt", 2))


def test_first_image_may_be_missing_only_with_skip(folder, capsys):
    (folder / "0.png").unlink()
    words = [*flags(folder), *STAGE_1, "--run-dir", str(folder / "run")]
    refusal(lambda: stage1.main(words), "0.png", TRAIN)
    (folder / "custom_val.txt").write_text("2.png 0\n1.png 1\n")
    words += ["--on-bad-image", "skip"]
    stage1.main(words)
    line_with(capsys.readouterr().out, "note", 4, "bad_images.txt")
    words += ["--data-root", str(folder / "run"), "--run-dir", str(folder / "other")]
    refusal(lambda: stage1.main(words), 32, TRAIN, "--data-root")


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), Path.mkdir])
def test_fifo_device_and_folder_are_refused_as_images(make, folder):
    (folder / "7.png").unlink()
    make(folder / "7.png")
    dataset = LongTailDataset(folder, folder / "custom_train.txt", 2, transform=None)
    refusal(lambda: dataset.read(7), "7.png", at_line(TRAIN, 8))


def test_bad_validation_image_loses_no_trained_epoch(folder, monkeypatch):
    """The image is found after an epoch has been trained. Once it is repaired, the run resumes after that epoch."""
    for name in BAD:
        shutil.copy(folder / "1.png", folder / name)
    (folder / "1.png").write_bytes(b"")
    (folder / "custom_train.txt").write_text("".join(f"{2 * i}.png {i % 2}\n" for i in range(16)))
    run, probe = folder / "run", folder / "probe"
    first = [*flags(folder), *STAGE_1, "--monitor-freq", "1", "--resume", "auto", "--run-dir", str(run)]
    second = [*flags(folder), "--pretrained", str(run / "last.pth.tar"), "--resume", "auto", "--run-dir", str(probe)]
    for main, words, run_dir in ((stage1.main, first, run), (stage2.main, second, probe)):
        refusal(lambda main=main, words=words: main(words), "1.png", at_line("custom_val.txt", 2))
        state = checkpoint.read_checkpoint(run_dir / "last.pth.tar")
        assert (state["epoch"], state["step"]) == (0, 2)
        shutil.copy(folder / "2.png", folder / "1.png")
        main(words)
        assert checkpoint.read_checkpoint(run_dir / "last.pth.tar")["epoch"] == 2
        (folder / "1.png").write_bytes(b"")


def test_killed_loader_process_is_reported_with_cause(folder):
    """The system may kill a loader process when memory runs out."""
    for name in BAD:
        shutil.copy(folder / "1.png", folder / name)
    words = ["main_moco_supcon_imba.py", *flags(folder, 1), *STAGE_1, "--epochs", "5000"]
    program = processes.Program([*words, "--run-dir", str(folder / "run")])
    program.wait_for("Epoch: [2/")
    os.kill(processes.descendants(program.pid)[-1], signal.SIGKILL)
    _, err = program.communicate()
    assert program.returncode == 1
    assert err.startswith("error: ") and err.count("\n") == 1
    assert "Killed" in err or "exited unexpectedly" in err  # PyTorch reports it in one of two ways


def test_truncated_tiff_gives_one_error_without_pillow_warnings(folder):
    whole = io.BytesIO()
    Image.new("L", (8, 8)).save(whole, "TIFF")
    (folder / "0.png").write_bytes(whole.getvalue()[:25])
    (folder / TRAIN).write_text("0.png 0\n" * 16 + "1.png 1\n" * 16)
    done = processes.run(["main_moco_supcon_imba.py", *flags(folder), *STAGE_1, "--run-dir", str(folder / "run")])
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert_names(done.stderr, "0.png", TRAIN)
