"""A run that was stopped goes on as if it had not been: the same weights, bit for bit, and nothing lost."""

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch

import main_lincls_imba as stage2
import main_moco_supcon_imba as stage1
from imagenet_inat.sets import digits
from tests import ROOT
from tests.stopping import FOUR_EPOCHS, STEPS, assert_same_end, assert_stops_change_nothing, log_of, stopped_run
from utils.errors import InputError, Stopped
from utils.run import checkpoint
from utils.run.keeper import Keeper


@pytest.mark.parametrize("epochs_done", [1, 2, 3])
def test_stage_1_goes_on_from_the_end_of_an_epoch(epochs_done, flags, whole, tmp_path):
    """Within KCL, at the switch, within TSC."""
    kept = str(whole / f"checkpoint_{epochs_done:04d}.pth.tar")
    stage1.main([*flags, *FOUR_EPOCHS, "--run-dir", str(tmp_path / "run"), "--resume", kept])
    assert_same_end(tmp_path / "run", whole)
    assert [entry["epoch"] for entry in log_of(tmp_path / "run")] == list(range(epochs_done + 1, 5))


@pytest.mark.parametrize("step", [3, 5, 8, 10, 11, 14, 20])
def test_stage_1_goes_on_from_any_step(step, flags, whole, tmp_path, monkeypatch):
    """Stopped by a signal within an epoch, after its last step, before and after the switch (step 10)."""
    run = [*flags, *FOUR_EPOCHS, "--run-dir", str(tmp_path / "run"), "--resume", "auto"]
    stopped_run(stage1.main, run, monkeypatch, step, f"stopped by SIGUSR1 after epoch {(step - 1) // STEPS} and")
    assert checkpoint.load(tmp_path / "run" / "last.pth.tar")["step"] == (step - 1) % STEPS + 1
    stage1.main(run)
    assert_same_end(tmp_path / "run", whole)
    ours, theirs = log_of(tmp_path / "run"), log_of(whole)
    assert [entry["phase"] for entry in ours] == ["KCL", "KCL", "TSC", "TSC"]
    for mine, other in zip(ours, theirs, strict=True):  # the epoch's means count the steps before the stop too
        assert mine["loss"] == pytest.approx(other["loss"], rel=1e-6) and mine["top5"] == pytest.approx(other["top5"])


def test_centroids_from_the_queue_are_not_made_again_within_tsc(flags, tmp_path, monkeypatch):
    run = [*flags, "--epochs", "2", "--targeted", "--sep_t", "--centroid-init", "queue"]
    assert_stops_change_nothing(stage1.main, run, tmp_path, monkeypatch, (7,))


@pytest.mark.parametrize("step", [6, 7, 9])
def test_a_stale_assignment_is_remembered(step, flags, tmp_path, monkeypatch):
    """With --assignment-interval the permutation of an earlier step is still in use; TSC begins at step 5 here."""
    run = [*flags, "--epochs", "2", "--targeted", "--sep_t", "--assignment-interval", "4"]
    assert_stops_change_nothing(stage1.main, run, tmp_path, monkeypatch, (step,))


@pytest.mark.parametrize("bn_mode", ["train", "eval"])
@pytest.mark.parametrize("step", [2, 5, 7])
def test_stage_2_goes_on_from_any_step(step, bn_mode, tsc_run, probe_flags, tmp_path, monkeypatch):
    probe = [*probe_flags, "--pretrained", str(tsc_run / "last.pth.tar"), "--epochs", "3", "--bn-mode", bn_mode]
    assert_stops_change_nothing(stage2.main, probe, tmp_path, monkeypatch, (step,))
    ours, theirs = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("run", "whole"))
    assert ours == theirs


def test_stage_2_stops_within_validation_and_measures_again(tsc_run, probe_run, probe_flags, tmp_path, monkeypatch):
    """The epoch is trained and not yet measured: it goes on with the measuring."""
    options = ["--epochs", "2", "-b", "32", "--resume", "auto"]
    probe = [*probe_flags, "--pretrained", str(tsc_run / "last.pth.tar"), *options]
    stage2.main([*probe, "--run-dir", str(tmp_path / "whole")])
    calls, asked = iter(range(1, 1000)), Keeper.stop_if_asked

    def signalled(keeper):
        if keeper.state.step == 10 and next(calls) == 2:  # 10 steps an epoch: 1 is the last step's own question
            signal.raise_signal(signal.SIGTERM)
        asked(keeper)

    with monkeypatch.context() as patch:
        patch.setattr(Keeper, "stop_if_asked", signalled)
        with pytest.raises(Stopped, match="stopped by SIGTERM after epoch 0 and 10 steps"):
            stage2.main([*probe, "--run-dir", str(tmp_path / "p")])
    stage2.main([*probe, "--run-dir", str(tmp_path / "p")])
    assert_same_end(tmp_path / "p", tmp_path / "whole")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 0)])
def test_a_signal_saves_and_gives_its_exit_code(number, code, flags, tmp_path):
    """A whole process, with loader workers that get the signal too, as from a terminal or a scheduler."""
    command = [sys.executable, "main_moco_supcon_imba.py", *flags, "--epochs", "500", "-j", "2", "-p", "1"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(
        [*command, "--run-dir", str(tmp_path / "run")], cwd=ROOT, start_new_session=True, **pipes
    )
    next(line for line in process.stdout if "Epoch: [2/500]" in line)
    os.killpg(process.pid, number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert err.startswith(f"stopped by {signal.Signals(number).name} after epoch") and err.count("\n") == 1
    assert checkpoint.load(tmp_path / "run" / "last.pth.tar")["epoch"] >= 1


def test_resume_auto_starts_and_then_continues(flags, tmp_path, capsys):
    run = ["--run-dir", str(tmp_path / "run"), "--resume", "auto", "--cos"]
    stage1.main([*flags, *run, "--epochs", "1"])
    assert "resumed" not in capsys.readouterr().out
    stage1.main([*flags, *run, "--epochs", "2", "--override"])
    assert "after epoch 1" in capsys.readouterr().out
    assert [entry["epoch"] for entry in log_of(tmp_path / "run")] == [1, 2]


def test_another_batch_size_goes_on_in_the_same_queue(flags, tsc_run, tmp_path):
    """The queue's pointer need not be a multiple of the new batch: the keys wrap around."""
    state = checkpoint.load(tsc_run / "checkpoint_0001.pth.tar")
    state["state_dict"]["module.queue_ptr"].fill_(64)
    torch.save(state, tmp_path / "odd.pth.tar")
    options = ["--resume", str(tmp_path / "odd.pth.tar"), "--override", "-b", "128", "--epochs", "2"]
    stage1.main([*flags, *options, "--run-dir", str(tmp_path / "run")])
    state = checkpoint.load(tmp_path / "run" / "last.pth.tar")
    weights = state["state_dict"]
    assert state["queue_grid"] == 64  # of both batches: the next start does not take 64 for damage
    assert (weights["module.queue_labels"] >= 0).all() and weights["module.queue_ptr"].item() == 64


@pytest.mark.parametrize("change", ["-b 128", "--train-txt {lists}/digits_LT_val.txt"])
def test_within_an_epoch_the_batches_stay(change, flags, tsc_run, digits_root, tmp_path):
    """Those that are left are counted in batches of the size, and in the order of the list, that it began with."""
    lists = digits.prepare(digits_root, 50.0)[1]
    state = checkpoint.load(tsc_run / "checkpoint_0001.pth.tar") | {"step": 2}
    torch.save(state, tmp_path / "within.pth.tar")
    options = ["--resume", str(tmp_path / "within.pth.tar"), "--override", "--run-dir", str(tmp_path / "r")]
    with pytest.raises(InputError, match="2 batches of 64 into it; go on with -b 64 and the training list"):
        stage1.main([*flags, *options, *change.format(lists=lists).split(), "--epochs", "2"])
    assert not (tmp_path / "r").exists()


def test_another_list_is_another_argument(flags, tsc_run, digits_root, tmp_path):
    """Also under the same name: the run would go on with other images."""
    shutil.copytree(digits.prepare(digits_root, 50.0)[1], tmp_path / "lists")
    train = tmp_path / "lists" / "digits_LT_train.txt"
    train.write_text(train.read_text().replace(" 0\n", " 1\n", 1))
    options = ["--epochs", "2", "--targeted", "--sep_t", "--tw", "0.2", "--train-txt", str(train)]
    resume = ["--resume", str(tsc_run / "checkpoint_0001.pth.tar"), "--run-dir", str(tmp_path / "run")]
    with pytest.raises(InputError, match=r"made with other arguments \(train_list \w+ -> \w+\)"):
        stage1.main([*flags, *options, *resume])


def test_another_number_of_processes_is_said(flags, tsc_run, tmp_path, capsys):
    state = checkpoint.load(tsc_run / "checkpoint_0001.pth.tar") | {"processes": 4}
    torch.save(state, tmp_path / "four.pth.tar")
    options = ["--epochs", "2", "--targeted", "--sep_t", "--tw", "0.2", "--run-dir", str(tmp_path / "run")]
    stage1.main([*flags, *options, "--resume", str(tmp_path / "four.pth.tar")])
    assert "note: 4 processes wrote" in capsys.readouterr().out


def test_what_a_probe_does_not_know_of_its_checkpoint_is_not_carried_on(tsc_run, probe_run, probe_flags, tmp_path):
    torch.save(checkpoint.load(probe_run / "last.pth.tar") | {"ema": torch.zeros(3)}, tmp_path / "foreign.pth.tar")
    options = ["--pretrained", str(tsc_run / "last.pth.tar"), "--resume", str(tmp_path / "foreign.pth.tar")]
    stage2.main([*probe_flags, *options, "--epochs", "3", "--override", "--run-dir", str(tmp_path / "p")])
    entries = checkpoint.load(tmp_path / "p" / "last.pth.tar").keys()
    assert entries == checkpoint.load(probe_run / "last.pth.tar").keys()


@pytest.mark.parametrize(
    ("flag", "change"),
    [
        ("--lr-end 0.01", "lr_end 0.0 -> 0.01"),
        ("--warmup-epochs 1", "warmup_epochs 0 -> 1"),
        ("--targeted --kcl-epochs 1", "kcl_epochs None -> 1"),
        ("--contrast batch", "contrast queue -> batch"),
    ],
)
def test_a_flag_that_an_old_checkpoint_does_not_say_was_off(flag, change, whole, flags, batch_flags, tmp_path):
    state = torch.load(whole / "last.pth.tar", weights_only=True)
    for name in ("lr_end", "warmup_epochs", "warmup_from", "kcl_epochs", "contrast"):
        del state["args"][name]
    torch.save(state, tmp_path / "old.pth.tar")
    words = [*(batch_flags if "batch" in flag else flags), *flag.split(), *FOUR_EPOCHS[:3], "--run-dir"]
    with pytest.raises(InputError, match=change):
        stage1.main([*words, str(tmp_path / "run"), "--resume", str(tmp_path / "old.pth.tar")])
