"""Which targets a resumed run has: those of the checkpoint, or those of a file that is named."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import main_moco_supcon_imba as stage1
from moco.targets.generation import generate_file
from tests.refusals import line_with, refusal
from tests.stopping import assert_same_end
from utils.run import checkpoint

TSC = ["--epochs", "2", "--targeted", "--sep_t", "--tw", "0.2"]


@pytest.fixture
def unnamed(flags) -> list[str]:
    """`flags` without --targets."""
    at = flags.index("--targets")
    return [*flags[:at], *flags[at + 2 :]]


@pytest.fixture
def other(tmp_path) -> Path:
    """A file of other targets."""
    generate_file(tmp_path / "other.npy", 10, 16, seed=7)
    return tmp_path / "other.npy"


def used_by(run: Path) -> np.ndarray:
    return checkpoint.load(run / "last.pth.tar")["state_dict"]["module.optimal_target"].numpy()


def test_other_targets_than_the_checkpoints_are_refused(unnamed, tsc_run, other, tmp_path):
    kept = str(tsc_run / "checkpoint_0001.pth.tar")
    words = [*unnamed, *TSC, "--targets", str(other), "--resume", kept, "--run-dir", str(tmp_path / "run")]
    refusal(lambda: stage1.main(words), f"--targets {other}", kept)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("step", [None, 8])
def test_override_takes_the_files_targets(step, unnamed, tsc_run, other, tmp_path, capsys):
    """Also where an assignment of the old ones would be used on: it is solved anew, at whatever interval."""
    state, stale = checkpoint.load(tsc_run / "checkpoint_0001.pth.tar"), list(range(10))
    within = {"epoch": 1, "step": 1, "phase": "TSC", "assignment": torch.tensor(stale), "assignment_before": stale}
    torch.save(state | (within if step else {}), tmp_path / "kept.pth.tar")
    options = ["--targets", str(other), "--resume", str(tmp_path / "kept.pth.tar"), "--override"]
    interval = ["--assignment-interval", "1000"]
    stage1.main([*unnamed, *TSC, *options, *interval, "--run-dir", str(tmp_path / "run")])
    line_with(capsys.readouterr().out, other, tmp_path / "kept.pth.tar", "0.2045")
    assert np.array_equal(used_by(tmp_path / "run"), np.load(other))
    last = checkpoint.load(tmp_path / "run" / "last.pth.tar")
    assert last["assignment"].tolist() != stale and last["assignment_before"] is None


@pytest.mark.parametrize("there", ["nothing", "other targets", "a broken file"])
def test_a_run_that_names_no_file_goes_on_with_the_checkpoints(
    there, unnamed, tsc_run, other, tmp_path, monkeypatch, capsys
):
    """A file of the default name is neither needed, nor made, nor read."""
    monkeypatch.chdir(tmp_path)
    if there == "other targets":
        shutil.copy(other, "optimal_10_16.npy")
    elif there == "a broken file":
        Path("optimal_10_16.npy").write_bytes(b"broken")
    before = sorted(tmp_path.iterdir())
    kept = tsc_run / "checkpoint_0001.pth.tar"
    stage1.main([*unnamed, *TSC, "--resume", str(kept), "--run-dir", "run"])
    line_with(capsys.readouterr().out, kept, "targets", "0.2045")
    assert_same_end(tmp_path / "run", tsc_run)
    assert sorted(tmp_path.iterdir()) == sorted([*before, tmp_path / "run"])


def test_resume_auto_without_a_run_needs_the_default_file_and_makes_it(unnamed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [*unnamed, *TSC, "--run-dir", "run", "--resume", "auto"]
    Path("optimal_10_16.npy").write_bytes(b"broken")
    refusal(lambda: stage1.main(words), "optimal_10_16.npy")
    assert not Path("run").exists()
    Path("optimal_10_16.npy").unlink()
    stage1.main(words)
    assert np.array_equal(used_by(Path("run")), np.load("optimal_10_16.npy"))


@pytest.mark.parametrize("named", [True, False])
def test_tsc_after_a_kcl_run_takes_the_file(named, unnamed, other, tmp_path, monkeypatch, capsys):
    """Its checkpoint has no targets: the file that is named, or the default one, which is made."""
    monkeypatch.chdir(tmp_path)
    stage1.main([*unnamed, "--epochs", "1", "--run-dir", "kcl"])
    assert "energy ratio" not in capsys.readouterr().out
    options = ["--resume", "kcl/last.pth.tar", "--override", "--run-dir", "tsc"]
    stage1.main([*unnamed, *TSC, *options, *(["--targets", str(other)] if named else [])])
    file = other if named else Path("optimal_10_16.npy")
    line_with(capsys.readouterr().out, "targets: ", file, "0.2045")
    assert np.array_equal(used_by(Path("tsc")), np.load(file))


@pytest.mark.parametrize(("change", "expected"), [("--moco-dim 32", "(10, 32)"), ("--tr 2", "(20, 16)")])
def test_a_checkpoint_with_targets_of_another_size_is_refused(change, expected, unnamed, tsc_run, tmp_path):
    kept = tsc_run / "checkpoint_0001.pth.tar"
    words = [*unnamed, *TSC, "--resume", str(kept), "--override", "--run-dir", str(tmp_path / "run"), *change.split()]
    refusal(lambda: stage1.main(words), kept, "targets", "(10, 16)", expected)
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_with_damaged_targets_is_refused(unnamed, tsc_run, tmp_path):
    state = checkpoint.load(tsc_run / "checkpoint_0001.pth.tar")
    state["state_dict"]["module.optimal_target"][3, 2] = torch.nan
    torch.save(state, tmp_path / "damaged.pth.tar")
    words = [*unnamed, *TSC, "--resume", str(tmp_path / "damaged.pth.tar"), "--run-dir", str(tmp_path / "run")]
    refusal(lambda: stage1.main(words), tmp_path / "damaged.pth.tar", "targets", "row 3")
    assert not (tmp_path / "run").exists()
