"""Bad input gives one line and exit code 2, and nothing is written. Tables of cases are in tests/hostile."""

from argparse import ArgumentTypeError
from pathlib import Path

import pytest
import torch

import main_lincls_imba as stage2
import main_moco_supcon_imba as stage1
from moco.methods.checkpoint_entries import batch_size_divisor, check_queue
from tests import processes
from tests.refusals import assert_names, exit_message, refusal
from tests.tiny import tiny_model
from utils.cli.numbers import fraction, nonnegative_float, nonnegative_int, positive_float, positive_int
from utils.distributed import collectives
from utils.errors import run
from utils.run import checkpoint
from utils.run.state import RunState


def test_bad_argument_prints_one_line_with_exit_code_2(tmp_path):
    done = processes.run(["main_moco_supcon_imba.py", "--dataset", "digits", "-b", "48"], cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert_names(done.stderr, "--moco-k", 65536, "--batch-size", 48)
    assert list(tmp_path.iterdir()) == []


def test_system_error_names_the_file_in_one_line(tmp_path, capsys):
    exit_message(lambda: run(lambda: (tmp_path / "not" / "there").write_text("x")), capsys, tmp_path / "not" / "there")


@pytest.mark.parametrize("workers", ["0", "1"])
def test_non_finite_loss_stops_run_without_saving(workers, flags, tsc_run, tmp_path):
    options = ["--resume", str(tsc_run / "checkpoint_0001.pth.tar"), "--run-dir", str(tmp_path / "run"), "-j", workers]
    options += ["--epochs", "2", "--targeted", "--sep_t", "--lr", "1e38", "--override"]
    refusal(lambda: stage1.main([*flags, *options]), "Epoch: [2/2]", "TSC")
    assert not (tmp_path / "run" / "last.pth.tar").exists()
    assert checkpoint.read_checkpoint(tsc_run / "checkpoint_0001.pth.tar")["epoch"] == 1


def test_resume_lists_arguments_that_differ_from_checkpoint(tsc_run, flags, tmp_path):
    """The number of workers may change without --override."""
    options = [
        "--resume",
        str(tsc_run / "checkpoint_0001.pth.tar"),
        "--run-dir",
        str(tmp_path / "run"),
        "--epochs",
        "2",
    ]
    facts = ("lr", 0.1, 0.5, "sep_t", "targeted", "tw", 0.2, 1.0, "True", "False", "--override")
    message = refusal(lambda: stage1.main([*flags, *options, "--lr", "0.5", "-j", "1"]), *facts)
    assert "workers" not in message and "epochs" not in message
    assert not (tmp_path / "run").exists()


def test_processes_with_different_checkpoints_are_refused(tsc_run, flags, monkeypatch):
    """The folder of the other rank is empty, as on machines without a shared disk."""
    monkeypatch.setattr(collectives, "gather", lambda mine: torch.cat([mine, torch.zeros_like(mine)]))
    resume = ["--run-dir", str(tsc_run), "--resume", "auto", "--override"]
    refusal(lambda: stage1.main([*flags, *resume]), "[2, 0]", "[0, 0]")


def test_resumed_probe_of_other_encoder_is_refused(tsc_run, probe_run, probe_flags):
    other = ["--pretrained", str(tsc_run / "checkpoint_0001.pth.tar"), "--epochs", "2", "--resume", "auto"]
    refusal(lambda: stage2.main([*probe_flags, *other, "--run-dir", str(probe_run)]), probe_run, "checkpoint_0001")


def test_invalid_queue_pointer_or_labels_are_refused():
    def check(pointer, label, grid=4):
        model = tiny_model()
        model.queue_ptr.fill_(pointer)
        model.queue_labels[0, 5] = label
        check_queue(model, grid, Path("x.pth.tar"))

    for pointer, grid in ((-1, 1), (12, 4), (10**6, 4), (7, 4), (2, 4)):
        refusal(lambda p=pointer, g=grid: check(p, 0, g), "x.pth.tar", "queue_ptr", pointer, 11, grid)
    for label in (-2, 3, 10**9):
        refusal(lambda label=label: check(0, label), "x.pth.tar", "queue_labels", 1, 12, label)
    check(8, -1)
    check(7, 2, grid=1)


def test_queue_grid_divides_all_batch_sizes_so_far():
    path = Path("x")
    assert batch_size_divisor(RunState(), 512) == 512
    assert batch_size_divisor(RunState(source=path, args={"batch_size": 512}), 1024) == 512
    assert batch_size_divisor(RunState(source=path, args={"batch_size": 1024}, extra={"queue_grid": 512}), 1024) == 512
    assert (
        batch_size_divisor(RunState(source=path), 512) == 1
    )  # a checkpoint of the authors' code: its batch size is unknown


def test_help_shows_defaults(capsys):
    for script in (stage1, stage2):
        with pytest.raises(SystemExit) as ended:
            script.get_args_parser().parse_args(["--help"])
        assert ended.value.code == 0
    assert "(default: 0.03)" in capsys.readouterr().out


def test_help_all_lists_rare_flags(capsys):
    for word, listed in (("--help", False), ("--help-all", True)):
        with pytest.raises(SystemExit) as ended:
            stage1.get_args_parser().parse_args([word])
        assert ended.value.code == 0
        shown = capsys.readouterr().out
        assert ("--unbiased" in shown) == listed and ("--help-all also lists" in shown) != listed


def test_parser_checks_number_ranges():
    for convert, good, bad in (
        (positive_int, "1", "0"),
        (nonnegative_int, "0", "-1"),
        (positive_float, "0.1", "inf"),
        (nonnegative_float, "0", "-0.1"),
        (fraction, "1", "1.01"),
    ):
        convert(good)
        with pytest.raises(ArgumentTypeError):
            convert(bad)
