"""A user's mistake gets one line that says what to do, exit code 2, and nothing is written."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import main_lincls_imba as stage2
import main_moco_supcon_imba as stage1
import target_generation
from imagenet_inat.splits import __main__ as splits
from moco.export import __main__ as export
from tests import ROOT
from utils.errors import InputError, one_line, run
from utils.parser import fraction, natural, positive_float, positive_int, unsigned_float
from utils.report import __main__ as report
from utils.run import arguments, checkpoint


def test_the_command_line_gives_one_line_and_exit_code_2(tmp_path):
    command = [sys.executable, str(ROOT / "main_moco_supcon_imba.py"), "--dataset", "digits", "-b", "48"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "error: --moco-k 65536: not a multiple of the global batch, --batch-size 48\n"
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_the_system_refuses_is_named_in_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        run(lambda: (tmp_path / "not" / "there").write_text("x"))
    assert end.value.code == 2
    assert capsys.readouterr().err == f"error: {tmp_path}/not/there: No such file or directory\n"


def test_a_folder_that_cannot_be_written_is_named_in_one_line(flags, tmp_path, capsys):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as end:
        run(lambda: stage1.main([*flags, "--run-dir", str(tmp_path / "file" / "run")]))
    assert end.value.code == 2
    folder = f"{tmp_path}/file"
    assert capsys.readouterr().err == f"error: run folder {folder}/run: {folder} is no folder that can be written\n"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("--dataset mnist", "argument --dataset: invalid choice: 'mnist'"),
        ("--lr zero", "argument --lr/--learning-rate: invalid positive_float value: 'zero'"),
        ("--lr nan", "found nan, expected a number above 0"),
        ("--epochs 0", "found 0, expected 1 or more"),
        ("--moco-m 1.5", "found 1.5, expected 0 to 1"),
        ("--moco-dim 11111111111111111111", "found 11111111111111111111, expected 2147483647 at most"),
        ("-j 2000", "found 2000, expected 0 to 1024"),
        ("--bogus", "unrecognized arguments: --bogus"),
        ("--schedule 60 x", "argument --schedule: invalid natural value: 'x'"),
        ("--seed 99999999999999999999999", "expected less than 2**63"),
    ],
)
def test_wrong_flags_are_answered_in_one_line(given, message, capsys):
    with pytest.raises(SystemExit) as end:
        stage1.main(given.split())
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("main", "given"),
    [
        *((stage1.main, flag) for flag in ("--resume", "--targets", "--run-dir", "--data-root", "--save-folder")),
        *((stage2.main, flag) for flag in ("--pretrained", "--resume", "--train-txt", "--splits")),
        *((target_generation.main, flag) for flag in ("--check", "--output", "--plot")),
        *((report.main, words) for words in ("RUN", "a --output", "--trials a")),
        *((export.main, words) for words in ("a OUT",)),
        *((splits.main, f"verify digits {flag}") for flag in ("--data-root", "--splits")),
        *((splits.main, f"make {words}") for words in ("a --output", "inat --json a")),
        (splits.main, "download imagenet --output"),
    ],
)
def test_an_empty_path_is_an_unset_variable_and_no_default(main, given, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = [word for word in given.split() if not word.isupper()]  # a name in capitals is an argument without a flag
    with pytest.raises(SystemExit) as end:
        main([*words, ""])
    assert end.value.code == 2
    error = capsys.readouterr().err
    name = next(word for word in reversed(given.split()) if word.isupper() or word.startswith("--"))
    assert error.startswith(f"error: argument {name}: found an empty value") and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("--arch resnet51", "--arch resnet51: unknown"),
        ("--arch vgg16", "--arch vgg16: cannot train on 512 16-px images a process"),
        ("--moco-k 1000", "--moco-k 1000: not a multiple of the global batch, --batch-size 512"),
        ("--batch-size 4096 --moco-k 4096", "--batch-size: 4096 images a step, an epoch has 2648 for training"),
        ("--device cuda:99", "device cuda:99"),
        ("--device meta", "device meta: computes nothing"),
        ("--device privateuseone", "device privateuseone: "),
        ("--device hpu", "device hpu: "),
        ("--image-size 1000000", "--image-size 1000000: a batch of 512 images takes 5,722,046 GiB, this machine has"),
        ("--batch-size 1 --image-size 4", "cannot train on 1 4-px images"),
        ("--world-size 2 --rank 1", "they need --multiprocessing-distributed"),
        ("--multiprocessing-distributed --world-size 2 --rank 2", "--rank 2: expected 0 to 1"),
        ("--targeted --targets typo.npy", "targets typo.npy: no such file"),
        ("--epochs 3 --start-epoch 3", "--epochs 3: 3 are done, none is left to train"),
        ("--imbalance 500", "--imbalance 500: expected 1 to 120"),
        ("--resume nowhere.pth.tar", "--resume nowhere.pth.tar: no such file"),
        ("--loss MoCo --targeted", "--loss MoCo uses no labels"),
        (
            "--dataset imagenet --data-root nowhere --image-size 64",
            "--data-root nowhere: no such folder, expected the root",
        ),
        ("--dataset imagenet --image-size 64 --splits nowhere", "nowhere/ImageNet_LT_train.txt: no such list"),
        (
            "--dataset inat --image-size 64",
            "iNaturalist18_train.txt: no such list; get it: python -m imagenet_inat.splits download inat --output",
        ),
    ],
)
def test_stage_1_refuses(given, message, digits_root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base = f"--dataset digits --data-root {digits_root} -b 512 --moco-k 1024 -j 0 --device cpu --epochs 1"
    with pytest.raises(InputError) as error:
        stage1.main([*base.split(), *given.split()])
    assert message in str(error.value) and "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (np.eye(10, 8), "shape (10, 8), expected (10, 16)"),
        (2 * np.eye(10, 16), "rows 0, 1, 2 and 7 more have norm 2"),
        (np.full((10, 16), np.inf), "rows 0, 1, 2 and 7 more have a value that is not finite"),
    ],
)
def test_stage_1_refuses_bad_targets(targets, message, flags, tmp_path):
    np.save(tmp_path / "t.npy", targets)
    run = tmp_path / "run"
    with pytest.raises(InputError) as error:
        stage1.main([*flags, "--targeted", "--targets", str(tmp_path / "t.npy"), "--run-dir", str(run)])
    assert message in str(error.value)
    assert not run.exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [("images/0/0000.png", "digits_LT_train.txt:2: found"), ("images/0/0000.png 10", "label 10, expected 0 to 9")],
)
def test_a_bad_split_line_is_found_before_anything_is_written(line, message, digits_flags, tmp_path):
    (tmp_path / "digits_LT_train.txt").write_text(f"images/0/0000.png 0\n{line}\n")
    with pytest.raises(InputError) as error:
        stage1.main([*digits_flags, "--splits", str(tmp_path), "--run-dir", str(tmp_path / "run")])
    assert message in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_second_run_does_not_overwrite_the_first(tsc_run, flags):
    before = (tsc_run / "last.pth.tar").read_bytes()
    with pytest.raises(InputError, match="holds a run already"):
        stage1.main([*flags, "--run-dir", str(tsc_run)])
    assert (tsc_run / "last.pth.tar").read_bytes() == before


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_the_last_checkpoint(workers, flags, tsc_run, tmp_path):
    run = tmp_path / "run"
    resume = ["--resume", str(tsc_run / "checkpoint_0001.pth.tar"), "--run-dir", str(run), "-j", workers]
    with pytest.raises(InputError, match=r"Epoch: \[2/2\] TSC, step \d: .* is not finite"):
        stage1.main([*flags, *resume, "--epochs", "2", "--targeted", "--sep_t", "--lr", "1e38", "--override"])
    assert not (run / "last.pth.tar").exists()
    assert checkpoint.load(tsc_run / "checkpoint_0001.pth.tar")["epoch"] == 1


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_broken_image_stops_the_run_in_one_line(workers, flags, tmp_path):
    """Also from a loader process, which wraps a traceback around the message."""
    good, bad, train = (tmp_path / name for name in ("good.png", "bad.png", "train.txt"))
    Image.new("L", (8, 8)).save(good)
    bad.write_bytes(b"not an image")
    train.write_text("good.png 0\n" * 63 + "bad.png 1\n")
    mine = ["--train-txt", str(train), "--data-root", str(tmp_path), "-b", "64", "--moco-k", "64"]
    with pytest.raises(InputError) as error:
        stage1.main([*flags, *mine, "-j", workers, "--run-dir", str(tmp_path / "run")])
    line = one_line(error.value)
    assert "bad.png: not a readable image" in line and "train.txt:64" in line and "\n" not in line


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("", '--pretrained "": no such file'),
        ("--pretrained nowhere.pth.tar", '--pretrained "nowhere.pth.tar": no such file'),
        ("--evaluate", '--evaluate: --resume "" is no file'),
        ("--evaluate --pretrained {run}/last.pth.tar", "leave --pretrained out"),
        ("--arch resnet32 --pretrained {run}/last.pth.tar", "trained with --arch resnet20, found --arch resnet32"),
        ("--pretrained {run}/log.jsonl", "not a checkpoint"),
        ("--pretrained {run}/probe/results.json", "not a checkpoint"),
        ("--evaluate --resume {run}/last.pth.tar", "does not fit the model"),
        ("--pretrained {run}/last.pth.tar --epochs 2 --start-epoch 2", "--epochs 2: 2 are done, none is left to train"),
    ],
)
def test_stage_2_refuses(given, message, tsc_run, probe_run, probe_flags, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(InputError) as error:
        stage2.main([*probe_flags, "--run-dir", str(run), *given.format(run=tsc_run).split()])
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not run.exists()


def test_help_shows_defaults_once(capsys):
    for script in (stage1, stage2):
        with pytest.raises(SystemExit) as end:
            script.get_args_parser().parse_args(["--help"])
        assert end.value.code == 0
    assert "(default: 0.03)" in capsys.readouterr().out


def test_numbers_are_checked_at_the_parser():
    for convert, good, bad in (
        (positive_int, "1", "0"),
        (natural, "0", "-1"),
        (positive_float, "0.1", "inf"),
        (unsigned_float, "0", "-0.1"),
        (fraction, "1", "1.01"),
    ):
        convert(good)
        with pytest.raises(arguments.argparse.ArgumentTypeError):
            convert(bad)
