"""A resumed run is bit-identical to an uninterrupted one, and no epoch is lost."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch

import main_lincls_imba as stage2
import main_moco_supcon_imba as stage1
from imagenet_inat import loaders
from imagenet_inat.sets import digits
from tests.processes import Program
from tests.refusals import line_with, refusal
from tests.stopping import (
    BATCH,
    FOUR_EPOCHS,
    QUEUE,
    STEPS,
    assert_resumes_bit_identical,
    assert_same_checkpoint,
    log_of,
    run_until_stopped,
)
from utils.distributed import collectives
from utils.errors import Stopped
from utils.run import checkpoint
from utils.run.checkpointer import Checkpointer
from utils.run.folder import default_run_dir

TSC = ["--epochs", "2", "--targeted", "--sep_t", "--tw", "0.2"]  # the arguments of `tsc_run`


@pytest.fixture
def save_changed_checkpoint(tsc_run, tmp_path, monkeypatch):
    """Return a function that saves the first epoch's checkpoint with other entries and returns flags to resume it."""
    monkeypatch.chdir(tmp_path)

    def change(**entries) -> list[str]:
        torch.save(checkpoint.read_checkpoint(tsc_run / "checkpoint_0001.pth.tar") | entries, "changed.pth.tar")
        return ["--resume", "changed.pth.tar", "--run-dir", "run"]

    return change


@pytest.mark.parametrize("epochs_done", [1, 2, 3])
def test_stage_1_resumes_from_end_of_epoch(epochs_done, flags, uninterrupted_run, tmp_path):
    """The run resumes in the KCL phase, at the switch and in the TSC phase."""
    checkpoint_path = str(uninterrupted_run / f"checkpoint_{epochs_done:04d}.pth.tar")
    stage1.main([*flags, *FOUR_EPOCHS, "--run-dir", str(tmp_path / "run"), "--resume", checkpoint_path])
    assert_same_checkpoint(tmp_path / "run", uninterrupted_run)
    assert [entry["epoch"] for entry in log_of(tmp_path / "run")] == list(range(epochs_done + 1, 5))


def test_stage_1_resumes_from_any_step(flags, uninterrupted_run, tmp_path, monkeypatch):
    """The run is stopped within an epoch, after its last step, and before and after the switch (step 10)."""
    run = [*flags, *FOUR_EPOCHS, "--run-dir", str(tmp_path / "run"), "--resume", "auto"]
    before = 0
    for step in (3, 5, 8, 10, 11, 14, 20):
        epoch, within = (step - 1) // STEPS, (step - 1) % STEPS + 1
        run_until_stopped(stage1.main, run, monkeypatch, step - before, rf"SIGUSR1\D+{epoch}\D+{within}\b")
        state = checkpoint.read_checkpoint(tmp_path / "run" / "last.pth.tar")
        assert (state["epoch"], state["step"]) == (epoch, within)
        before = step
    stage1.main(run)
    assert_same_checkpoint(tmp_path / "run", uninterrupted_run)
    ours, theirs = log_of(tmp_path / "run"), log_of(uninterrupted_run)
    assert [entry["phase"] for entry in ours] == ["KCL", "KCL", "TSC", "TSC"]
    for mine, other in zip(ours, theirs, strict=True):  # the means include the steps before the stop
        assert mine["loss"] == pytest.approx(other["loss"], rel=1e-6) and mine["top5"] == pytest.approx(other["top5"])


def test_centroid_init_queue_is_not_repeated_on_resume(flags, tmp_path, monkeypatch):
    run = [*flags, "--epochs", "2", "--targeted", "--sep_t", "--centroid-init", "queue"]
    assert_resumes_bit_identical(stage1.main, run, tmp_path, monkeypatch, (STEPS + 2,))


def test_resume_keeps_assignment_of_earlier_step(flags, tmp_path, monkeypatch):
    """With --assignment-interval an earlier assignment is still in use. The run is stopped in steps 6, 7 and 9."""
    run = [*flags, "--epochs", "2", "--targeted", "--sep_t", "--assignment-interval", "4"]
    assert_resumes_bit_identical(stage1.main, run, tmp_path, monkeypatch, (STEPS + 1, 1, 2))


@pytest.mark.parametrize("bn_mode", ["train", "eval"])
def test_stage_2_resumes_from_any_step(bn_mode, tsc_run, probe_flags, tmp_path, monkeypatch):
    """The run is stopped within an epoch, after its last step, and within the next (steps 2, 5 and 7)."""
    probe = [*probe_flags, "--pretrained", str(tsc_run / "last.pth.tar"), "--epochs", "2", "--bn-mode", bn_mode]
    assert_resumes_bit_identical(stage2.main, probe, tmp_path, monkeypatch, (2, STEPS - 2, 2))
    ours, theirs = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("run", "whole"))
    assert ours == theirs


def test_stage_2_stopped_in_validation_evaluates_again(tsc_run, probe_run, probe_flags, tmp_path, monkeypatch):
    """The epoch is trained but not evaluated. The resumed run starts with the evaluation, in several batches."""
    monkeypatch.setattr(loaders, "EVAL_BATCH", BATCH)
    words = ["--pretrained", str(tsc_run / "last.pth.tar"), "--epochs", "2", "--resume", "auto"]
    probe = [*probe_flags, *words, "--run-dir", str(tmp_path / "p")]
    calls, stop_if_asked = iter(range(1, 1000)), Checkpointer.stop_if_asked

    def stop_within_validation(checkpointer):
        if checkpointer.state.step == STEPS and next(calls) == 2:  # call 1 is after the last step
            signal.raise_signal(signal.SIGTERM)
        stop_if_asked(checkpointer)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpointer, "stop_if_asked", stop_within_validation)
        with pytest.raises(Stopped, match=rf"SIGTERM\D+0\D+{STEPS}\b"):
            stage2.main(probe)
    state = checkpoint.read_checkpoint(tmp_path / "p" / "last.pth.tar")
    assert (state["epoch"], state["step"]) == (0, STEPS)
    stage2.main(probe)
    assert_same_checkpoint(tmp_path / "p", probe_run)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 0)])
def test_signal_saves_and_sets_exit_code(number, code, flags, tmp_path):
    """The loader processes receive the signal as well, as from a terminal or a scheduler."""
    words = ["main_moco_supcon_imba.py", *flags, "--epochs", "500", "-j", "2", "-p", "1"]
    program = Program([*words, "--run-dir", str(tmp_path / "run")])
    program.wait_for("Epoch: [2/500]")
    os.killpg(program.pid, number)
    _, err = program.communicate()
    assert program.returncode == code
    assert err.count("\n") == 1 and signal.Signals(number).name in err
    assert checkpoint.read_checkpoint(tmp_path / "run" / "last.pth.tar")["epoch"] >= 1


def test_resume_auto_starts_then_continues(flags, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run = ["--run-dir", "run", "--resume", "auto", "--cos"]
    stage1.main([*flags, *run, "--epochs", "1"])
    first = capsys.readouterr().out
    stage1.main([*flags, *run, "--epochs", "2", "--override"])
    resumed = line_with(capsys.readouterr().out, " run/last.pth.tar", "epoch 1")
    assert resumed not in first
    assert [entry["epoch"] for entry in log_of(tmp_path / "run")] == [1, 2]
    assert checkpoint.read_checkpoint(tmp_path / "run" / "previous.pth.tar")["epoch"] == 1


def test_run_with_name_of_earlier_version_is_continued(flags, tmp_path):
    """Earlier versions ended a name without --name in "_"."""
    words = [*flags, "--epochs", "1", "--save-folder", str(tmp_path)]
    stage1.main(words)
    (new,) = tmp_path.iterdir()
    assert not new.name.endswith("_")
    old = new.rename(f"{new}_")
    refusal(lambda: stage1.main(words), old, "--resume auto")
    stage1.main([*words, "--resume", "auto"])
    assert [*tmp_path.iterdir()] == [old]


@pytest.mark.parametrize(
    ("existing", "suffix", "expected"),
    [([], "", "a"), (["a_"], "", "a_"), (["a", "a_"], "", "a"), (["a_"], "x", "a_x"), ([], "x", "a_x")],
)
def test_default_run_folder(existing, suffix, expected, tmp_path):
    for name in existing:
        (tmp_path / name).mkdir()
    assert default_run_dir(tmp_path, "a", suffix) == str(tmp_path / expected)


def test_resume_with_other_batch_size_wraps_the_queue(flags, save_changed_checkpoint, tmp_path):
    """The queue pointer need not be a multiple of the new batch size. The keys wrap around."""
    options = save_changed_checkpoint()
    path = Path(options[1])
    state = checkpoint.read_checkpoint(path)
    state["state_dict"]["module.queue_ptr"].fill_(BATCH)
    torch.save(state, path)
    stage1.main([*flags, *options, "--override", "-b", str(2 * BATCH), "--epochs", "2"])
    state = checkpoint.read_checkpoint(tmp_path / "run" / "last.pth.tar")
    weights = state["state_dict"]
    assert state["queue_grid"] == BATCH  # divides both batch sizes, so the next start accepts the pointer
    steps = STEPS // 2
    assert weights["module.queue_ptr"].item() == (BATCH + steps * 2 * BATCH) % QUEUE
    assert (weights["module.queue_labels"] >= 0).all()


@pytest.mark.parametrize("change", [f"-b {2 * BATCH}", "--accum-steps 2", "--train-txt {lists}/digits_LT_val.txt"])
def test_changed_batches_within_epoch_are_refused(change, flags, save_changed_checkpoint, digits_root, tmp_path):
    """Within an epoch, batch size and list must stay the same, because the remaining batches follow from them."""
    lists = digits.prepare(digits_root, 50.0)[1]
    words = [
        *flags,
        *save_changed_checkpoint(step=2),
        "--override",
        *change.format(lists=lists).split(),
        "--epochs",
        "2",
    ]
    refusal(lambda: stage1.main(words), 2, f"-b {BATCH}", "--accum-steps 1")
    assert not (tmp_path / "run").exists()


def test_resume_with_other_image_list_is_refused(flags, save_changed_checkpoint, tmp_path):
    """A list with the same name but other content is refused as well."""
    old = Path(flags[flags.index("--train-txt") + 1])
    new = tmp_path / old.name
    new.write_text(old.read_text().replace(" 0\n", " 1\n", 1))
    refusal(lambda: stage1.main([*flags, *TSC, "--train-txt", str(new), *save_changed_checkpoint()]), "train_list")


def test_changed_number_of_processes_is_reported(flags, save_changed_checkpoint, capsys):
    stage1.main([*flags, *TSC, *save_changed_checkpoint(processes=4)])
    line_with(capsys.readouterr().out, "note", 4, 1, "changed.pth.tar")


def test_processes_at_different_steps_are_refused(flags, save_changed_checkpoint, monkeypatch):
    words = [*flags, *TSC, *save_changed_checkpoint(step=2)]
    monkeypatch.setattr(collectives, "gather", lambda mine: torch.cat([mine, mine - torch.tensor([0, 1])]))
    refusal(lambda: stage1.main(words), "[1, 2]", "[1, 1]")


def test_unknown_checkpoint_entries_are_dropped(tsc_run, probe_run, probe_flags, tmp_path):
    torch.save(
        checkpoint.read_checkpoint(probe_run / "last.pth.tar") | {"ema": torch.zeros(3)}, tmp_path / "foreign.pth.tar"
    )
    options = ["--pretrained", str(tsc_run / "last.pth.tar"), "--resume", str(tmp_path / "foreign.pth.tar")]
    stage2.main([*probe_flags, *options, "--epochs", "3", "--override", "--run-dir", str(tmp_path / "p")])
    entries = checkpoint.read_checkpoint(tmp_path / "p" / "last.pth.tar").keys()
    assert entries == checkpoint.read_checkpoint(probe_run / "last.pth.tar").keys()


@pytest.mark.parametrize(
    ("flag", "change"),
    [
        ("--lr-end 0.01", "lr_end 0.0 0.01"),
        ("--warmup-epochs 1", "warmup_epochs 0 1"),
        ("--targeted --kcl-epochs 1", "kcl_epochs None 1"),
        ("--contrast batch", "contrast queue batch"),
    ],
)
def test_missing_argument_in_checkpoint_counts_as_default(
    flag, change, uninterrupted_run, flags, batch_flags, tmp_path, monkeypatch
):
    state = torch.load(uninterrupted_run / "last.pth.tar", weights_only=True)
    for name in ("lr_end", "warmup_epochs", "warmup_from", "kcl_epochs", "contrast"):
        del state["args"][name]
    torch.save(state, tmp_path / "old.pth.tar")
    monkeypatch.chdir(tmp_path)
    words = [*(batch_flags if "batch" in flag else flags), *flag.split(), *FOUR_EPOCHS[:3]]
    words += ["--run-dir", "run", "--resume", "old.pth.tar"]
    refusal(lambda: stage1.main(words), *change.split())
