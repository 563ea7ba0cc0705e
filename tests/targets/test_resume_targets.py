"""The targets of a resumed run come from the checkpoint, or from a file named with --targets."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import main_moco_supcon_imba as stage1
from moco.targets.generation import generate_file
from tests.refusals import line_with, refusal
from tests.stopping import assert_same_checkpoint
from utils.run import checkpoint

TSC = ["--epochs", "2", "--targeted", "--sep_t", "--tw", "0.2"]


@pytest.fixture
def flags_without_targets(flags) -> list[str]:
    """Return `flags` without --targets."""
    at = flags.index("--targets")
    return [*flags[:at], *flags[at + 2 :]]


@pytest.fixture
def other_targets(tmp_path) -> Path:
    """Write a file of other targets."""
    generate_file(tmp_path / "other.npy", 10, 16, seed=7)
    return tmp_path / "other.npy"


def targets_of(run: Path) -> np.ndarray:
    return checkpoint.read_checkpoint(run / "last.pth.tar")["state_dict"]["module.optimal_target"].numpy()


def test_targets_that_differ_from_checkpoint_are_refused(flags_without_targets, tsc_run, other_targets, tmp_path):
    saved = str(tsc_run / "checkpoint_0001.pth.tar")
    words = [
        *flags_without_targets,
        *TSC,
        "--targets",
        str(other_targets),
        "--resume",
        saved,
        "--run-dir",
        str(tmp_path / "run"),
    ]
    refusal(lambda: stage1.main(words), f"--targets {other_targets}", saved)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("step", [None, 8])
def test_override_uses_the_targets_of_the_file(step, flags_without_targets, tsc_run, other_targets, tmp_path, capsys):
    """The assignment is solved again, even if --assignment-interval would keep the old one."""
    state, old_assignment = checkpoint.read_checkpoint(tsc_run / "checkpoint_0001.pth.tar"), list(range(10))
    mid_epoch_entries = {
        "epoch": 1,
        "step": 1,
        "phase": "TSC",
        "assignment": torch.tensor(old_assignment),
        "assignment_before": old_assignment,
    }
    torch.save(state | (mid_epoch_entries if step else {}), tmp_path / "kept.pth.tar")
    options = ["--targets", str(other_targets), "--resume", str(tmp_path / "kept.pth.tar"), "--override"]
    interval = ["--assignment-interval", "1000"]
    stage1.main([*flags_without_targets, *TSC, *options, *interval, "--run-dir", str(tmp_path / "run")])
    line_with(capsys.readouterr().out, other_targets, tmp_path / "kept.pth.tar", "0.2045")
    assert np.array_equal(targets_of(tmp_path / "run"), np.load(other_targets))
    last = checkpoint.read_checkpoint(tmp_path / "run" / "last.pth.tar")
    assert last["assignment"].tolist() != old_assignment and last["assignment_before"] is None


@pytest.mark.parametrize("existing", ["nothing", "other targets", "a broken file"])
def test_resume_without_file_uses_checkpoint_targets(
    existing, flags_without_targets, tsc_run, other_targets, tmp_path, monkeypatch, capsys
):
    """A file with the default name is neither needed, nor written, nor read."""
    monkeypatch.chdir(tmp_path)
    if existing == "other targets":
        shutil.copy(other_targets, "optimal_10_16.npy")
    elif existing == "a broken file":
        Path("optimal_10_16.npy").write_bytes(b"broken")
    before = sorted(tmp_path.iterdir())
    saved = tsc_run / "checkpoint_0001.pth.tar"
    stage1.main([*flags_without_targets, *TSC, "--resume", str(saved), "--run-dir", "run"])
    line_with(capsys.readouterr().out, saved, "targets", "0.2045")
    assert_same_checkpoint(tmp_path / "run", tsc_run)
    assert sorted(tmp_path.iterdir()) == sorted([*before, tmp_path / "run"])


def test_new_run_with_resume_auto_uses_default_targets(flags_without_targets, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [*flags_without_targets, *TSC, "--run-dir", "run", "--resume", "auto"]
    Path("optimal_10_16.npy").write_bytes(b"broken")
    refusal(lambda: stage1.main(words), "optimal_10_16.npy")
    assert not Path("run").exists()
    Path("optimal_10_16.npy").unlink()
    stage1.main(words)
    assert np.array_equal(targets_of(Path("run")), np.load("optimal_10_16.npy"))


@pytest.mark.parametrize("is_named", [True, False])
def test_tsc_after_kcl_run_uses_the_file(is_named, flags_without_targets, other_targets, tmp_path, monkeypatch, capsys):
    """A KCL checkpoint has no targets, so they come from the named file or from a new file with the default name."""
    monkeypatch.chdir(tmp_path)
    stage1.main([*flags_without_targets, "--epochs", "1", "--run-dir", "kcl"])
    assert "energy ratio" not in capsys.readouterr().out
    options = ["--resume", "kcl/last.pth.tar", "--override", "--run-dir", "tsc"]
    stage1.main([*flags_without_targets, *TSC, *options, *(["--targets", str(other_targets)] if is_named else [])])
    file = other_targets if is_named else Path("optimal_10_16.npy")
    line_with(capsys.readouterr().out, "targets: ", file, "0.2045")
    assert np.array_equal(targets_of(Path("tsc")), np.load(file))


@pytest.mark.parametrize(("change", "expected"), [("--moco-dim 32", "(10, 32)"), ("--tr 2", "(20, 16)")])
def test_checkpoint_targets_of_other_size_are_refused(change, expected, flags_without_targets, tsc_run, tmp_path):
    saved = tsc_run / "checkpoint_0001.pth.tar"
    words = [
        *flags_without_targets,
        *TSC,
        "--resume",
        str(saved),
        "--override",
        "--run-dir",
        str(tmp_path / "run"),
        *change.split(),
    ]
    refusal(lambda: stage1.main(words), saved, "targets", "(10, 16)", expected)
    assert not (tmp_path / "run").exists()


def test_damaged_checkpoint_targets_are_refused(flags_without_targets, tsc_run, tmp_path):
    state = checkpoint.read_checkpoint(tsc_run / "checkpoint_0001.pth.tar")
    state["state_dict"]["module.optimal_target"][3, 2] = torch.nan
    torch.save(state, tmp_path / "damaged.pth.tar")
    words = [
        *flags_without_targets,
        *TSC,
        "--resume",
        str(tmp_path / "damaged.pth.tar"),
        "--run-dir",
        str(tmp_path / "run"),
    ]
    refusal(lambda: stage1.main(words), tmp_path / "damaged.pth.tar", "targets", "row 3")
    assert not (tmp_path / "run").exists()
