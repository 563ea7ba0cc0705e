"""The run folder: checkpoints stay complete after crashes, and a lock excludes other runs."""

import errno
import json
import os
import resource
import shutil
import sys
import time

import pytest

import main_moco_supcon_imba as stage1
from tests.processes import FORKSERVER, start_server
from tests.refusals import exit_message, line_with, refusal
from tests.stopping import FOUR_EPOCHS, assert_same_checkpoint, log_of
from utils.cli.flags import Arguments
from utils.errors import run as run_main
from utils.run import checkpoint
from utils.run.checkpointer import Checkpointer
from utils.run.folder import LOCK, check_run_dir, lock_run_dir, resumable_checkpoints


def test_save_steps_saves_within_the_epoch(flags, uninterrupted_run, tmp_path, monkeypatch):
    """A run that crashes resumes from the last saved step."""
    run = [*flags, *FOUR_EPOCHS, "--save-steps", "2", "--run-dir", str(tmp_path / "run"), "--resume", "auto"]
    count, after_step = iter(range(1, 1000)), Checkpointer.after_step

    def failing_after_step(checkpointer):
        after_step(checkpointer)
        if next(count) == 8:
            raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(Checkpointer, "after_step", failing_after_step)
        with pytest.raises(MemoryError):
            stage1.main(run)
    state = checkpoint.read_checkpoint(tmp_path / "run" / "last.pth.tar")
    assert (state["epoch"], state["step"]) == (1, 2)
    stage1.main(run)
    assert_same_checkpoint(tmp_path / "run", uninterrupted_run)


def test_kill_between_two_checkpoint_files_loses_none(flags, uninterrupted_run, tmp_path, monkeypatch):
    """checkpoint_XXXX is written but last.pth.tar is not: the epoch runs again, and no file is missing."""
    run = [*flags, *FOUR_EPOCHS, "-s", "1", "--run-dir", str(tmp_path / "run"), "--resume", "auto"]
    count, write_atomically = iter(range(1, 1000)), checkpoint.write_atomically

    def failing_write(*args, **options):
        if next(count) == 4:  # the second epoch's last.pth.tar
            raise MemoryError
        write_atomically(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_atomically", failing_write)
        with pytest.raises(MemoryError):
            stage1.main(run)
    assert checkpoint.read_checkpoint(tmp_path / "run" / "last.pth.tar")["epoch"] == 1
    stage1.main(run)
    assert_same_checkpoint(tmp_path / "run", uninterrupted_run)
    epochs = [
        checkpoint.read_checkpoint(tmp_path / "run" / f"checkpoint_{i:04d}.pth.tar")["epoch"] for i in range(1, 5)
    ]
    assert epochs == [1, 2, 3, 4]
    assert [entry["epoch"] for entry in log_of(tmp_path / "run")] == [1, 2, 3, 4]


@pytest.mark.parametrize("damage", ["truncated", "empty", "gone", "no checkpoint"])
def test_damaged_last_checkpoint_falls_back_to_previous(damage, flags, uninterrupted_run, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(uninterrupted_run, run)
    content = (run / "last.pth.tar").read_bytes()
    broken = {"truncated": content[:-1000], "empty": b"", "gone": None, "no checkpoint": b"?" * 5000}[damage]
    (run / "last.pth.tar").unlink()
    if broken is not None:
        (run / "last.pth.tar").write_bytes(broken)
    for numbered in run.glob("checkpoint_*"):
        numbered.unlink()
    stage1.main([*flags, *FOUR_EPOCHS, "--run-dir", str(run), "--resume", "auto"])
    line_with(capsys.readouterr().out, f"{run}/previous.pth.tar", "epoch 3")
    assert_same_checkpoint(run, uninterrupted_run)
    assert checkpoint.read_checkpoint(run / "previous.pth.tar")["epoch"] == 3  # the damaged file does not replace it
    if broken is not None:
        assert (run / "last.pth.tar.broken").read_bytes() == broken


@pytest.mark.parametrize("damage", [b"?" * 5000, None])
def test_numbered_checkpoint_replaces_damaged_last(damage, flags, uninterrupted_run, tmp_path, capsys):
    """All epochs are done, so no training writes last.pth.tar, but the probe needs it."""
    run = tmp_path / "run"
    shutil.copytree(uninterrupted_run, run)
    for name in ("last.pth.tar", "previous.pth.tar"):
        (run / name).unlink() if damage is None else (run / name).write_bytes(damage)
    stage1.main([*flags, *FOUR_EPOCHS, "--run-dir", str(run), "--resume", "auto"])
    line_with(capsys.readouterr().out, f"{run}/last.pth.tar", " checkpoint_0004.pth.tar")
    assert (run / "last.pth.tar").read_bytes() == (run / "checkpoint_0004.pth.tar").read_bytes()
    assert_same_checkpoint(run, uninterrupted_run)
    broken = ["last.pth.tar.broken", "previous.pth.tar.broken"] if damage else []
    assert sorted(path.name for path in run.glob("*.broken")) == broken


def test_resume_without_readable_checkpoint_is_refused(flags, uninterrupted_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(uninterrupted_run, run)
    for path in resumable_checkpoints(run):
        path.write_bytes(b"?")
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    words = [*flags, *FOUR_EPOCHS, "--run-dir", str(run), "--resume", "auto"]
    refusal(lambda: stage1.main(words), "checkpoint_0001.pth.tar")
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == before


def test_full_disk_stops_run_and_keeps_last_checkpoint(flags, tsc_run, tmp_path, monkeypatch, capsys):
    """A limit on the file size below the size of a checkpoint simulates a full disk."""
    run, limit = tmp_path / "run", (tsc_run / "last.pth.tar").stat().st_size // 2
    stage1.main([*flags, *FOUR_EPOCHS, "--epochs", "1", "--run-dir", str(run)])
    before = (run / "last.pth.tar").read_bytes()
    words = [*flags, *FOUR_EPOCHS, "--override", "--run-dir", str(run), "--resume", "auto"]
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)  # restore it, because `run_main` replaces it
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, most))
    try:
        file = run / "last.pth.tar"
        exit_message(lambda: run_main(lambda: stage1.main(words)), capsys, file, os.strerror(errno.EFBIG))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    assert (run / "last.pth.tar").read_bytes() == before
    assert not list(run.glob(".*draft*"))


def lock_for_a_minute(run) -> None:
    with lock_run_dir(run):
        time.sleep(60)


def test_run_folder_is_locked_by_one_run(flags, tmp_path):
    """The lock lasts as long as the process, however it ends."""
    run = tmp_path / "run"
    start_server()
    process = FORKSERVER.Process(target=lock_for_a_minute, args=(run,))
    process.start()
    while process.is_alive() and not ((run / LOCK).exists() and (run / LOCK).read_text()):
        time.sleep(0.01)
    refusal(lambda: stage1.main([*flags, "--epochs", "1", "--run-dir", str(run)]), run, process.pid)
    assert [path.name for path in run.iterdir()] == [".lock"]
    process.kill()
    process.join()
    stage1.main([*flags, "--epochs", "1", "--run-dir", str(run)])
    assert (run / "last.pth.tar").exists()


def test_leftover_draft_files_are_removed(tmp_path):
    (tmp_path / ".last.pth.tar.draft-abc").write_bytes(b"half")
    with lock_run_dir(tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


PRETRAINING = {"lr": 0.1}
CLASSIFIER = {"lr": 0.1, "pretrained": "runs/kcl/last.pth.tar", "head": "ncm"}
COMPARISON = CLASSIFIER | {"compare_heads": True}
BASELINE = {"lr": 0.1, "pretrained": None}
MAY_CHANGE = frozenset({"run_dir", "resume", "override", "pretrained"})


def check(run_dir, resume=None, override=False, values=PRETRAINING, fitted=False) -> None:
    """Check the folder of a run with these arguments."""
    values = values | {"run_dir": str(run_dir), "resume": resume and str(resume), "override": override}
    check_run_dir(Arguments(values, MAY_CHANGE, frozenset(), {}), fitted)


def write_args(run_dir, values) -> None:
    (run_dir / "args.json").write_text(json.dumps({"args": values}))


def test_missing_or_unrequested_checkpoint_is_refused(tmp_path):
    check(tmp_path, "auto")
    check(tmp_path)
    check(tmp_path / "not" / "there", "auto")
    (tmp_path / "previous.pth.tar").touch()
    check(tmp_path, "auto")
    check(tmp_path, tmp_path / "previous.pth.tar")
    refusal(lambda: check(tmp_path), tmp_path, "--resume")
    refusal(lambda: check(tmp_path, tmp_path / "absent"), "--resume", tmp_path / "absent")


@pytest.mark.parametrize("file", ["results.json", "last.pth.tar"])
@pytest.mark.parametrize("held", [PRETRAINING, CLASSIFIER, COMPARISON, BASELINE])
def test_run_of_another_kind_never_uses_the_folder(held, file, tmp_path):
    write_args(tmp_path, held)
    (tmp_path / file).touch()
    for values in (PRETRAINING, CLASSIFIER, COMPARISON, BASELINE):
        if values is not held:
            refusal(lambda values=values: check(tmp_path, "auto", override=True, values=values), tmp_path, "--run-dir")


@pytest.mark.parametrize("file", ["results.json", "model_best.pth.tar", "features.npz"])
def test_results_without_checkpoint_are_not_overwritten(file, tmp_path):
    """The checkpoints of a finished run were deleted to save space."""
    write_args(tmp_path, CLASSIFIER)
    (tmp_path / file).touch()
    for resume in (None, "auto"):
        refusal(lambda resume=resume: check(tmp_path, resume, values=CLASSIFIER), tmp_path, "--run-dir")


def test_killed_run_without_checkpoint_starts_again(tmp_path):
    write_args(tmp_path, PRETRAINING)
    (tmp_path / "log.jsonl").write_text('{"epoch": 1}\n')
    check(tmp_path, "auto")
    (tmp_path / "log.jsonl").write_text('{"epoch": 1}\n{"epoch": 2}\n')
    refusal(lambda: check(tmp_path, "auto"), tmp_path, "--run-dir")


def test_fit_is_only_repeated_with_the_same_arguments(tmp_path):
    write_args(tmp_path, CLASSIFIER | {"encoder": "a"})
    (tmp_path / "results.json").touch()
    same, other = CLASSIFIER | {"encoder": "a"}, CLASSIFIER | {"encoder": "b"}
    check(tmp_path, "auto", values=same, fitted=True)
    refusal(lambda: check(tmp_path, "auto", values=other, fitted=True), "encoder", "a -> b", "--override")
    check(tmp_path, "auto", override=True, values=other, fitted=True)


def test_non_finite_weights_are_not_saved(flags, tmp_path, monkeypatch):
    """The loss of the last step is finite, but the state is not: the earlier checkpoint stays."""
    end_epoch = Checkpointer.end_epoch

    def end_epoch_with_nan(checkpointer, **entries):
        if checkpointer.state.epoch == 1:
            checkpointer.model.queue[0, 0] = float("nan")
        end_epoch(checkpointer, **entries)

    monkeypatch.setattr(Checkpointer, "end_epoch", end_epoch_with_nan)
    words = [*flags, "--epochs", "2", "--run-dir", str(tmp_path / "run")]
    refusal(lambda: stage1.main(words), "Epoch: [2/2]", "KCL")
    assert checkpoint.read_checkpoint(tmp_path / "run" / "last.pth.tar")["epoch"] == 1


def test_checkpoint_of_another_folder_does_not_continue_into_a_held_one(tmp_path):
    run, other = tmp_path / "run", tmp_path / "other.pth.tar"
    run.mkdir()
    write_args(run, PRETRAINING)
    for file in (run / "last.pth.tar", other):
        file.touch()
    check(run, run / "last.pth.tar")
    refusal(lambda: check(run, other), run, "--run-dir")
