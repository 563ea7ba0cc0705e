"""What a checkpoint lacks for a head is reported before the features are computed, which takes longest."""

import shutil

import pytest
import torch

import main_lincls_imba as stage2
from moco.heads.inputs import read_checkpoint_parts
from tests.refusals import refusal
from utils.run import checkpoint


@pytest.fixture
def folder(tsc_run, tmp_path):
    """Return a folder with the TSC run's checkpoint, and a file with its query encoder alone."""
    shutil.copy(tsc_run / "last.pth.tar", tmp_path)
    weights = checkpoint.strip_prefix(checkpoint.read_checkpoint(tsc_run / "last.pth.tar")["state_dict"])
    query = {k.removeprefix("encoder_q."): value for k, value in weights.items() if k.startswith("encoder_q.")}
    torch.save(query, tmp_path / "encoder.pt")
    return tmp_path


@pytest.mark.parametrize(
    ("head", "name", "fact"),
    [("own", "last.pth.tar", "10"), ("target", "encoder.pt", "'state_dict'")],
)
def test_head_that_cannot_be_fitted_is_refused_first(head, name, fact, folder, probe_flags):
    at = probe_flags.index("--lr")  # a flag of training
    flags = [*probe_flags[:at], *probe_flags[at + 2 :]]
    words = [*flags, "--pretrained", str(folder / name), "--head", head]
    refusal(lambda: stage2.main(words), f"--head {head}", folder / name, fact)
    assert sorted(path.name for path in folder.iterdir()) == ["encoder.pt", "last.pth.tar"]


def test_missing_parts_of_checkpoint_are_listed(folder):
    file = folder / "last.pth.tar"
    parts, lacks = read_checkpoint_parts(file, 10, "target")
    assert parts["targets"][1].shape == (10, 16) and list(parts) == ["targets"] and list(lacks) == ["classifier"]
    parts, lacks = read_checkpoint_parts(folder / "encoder.pt", 10, "ncm")
    assert not parts and list(lacks) == ["targets", "classifier"]
    refusal(lambda: read_checkpoint_parts(file, 9, "target"), "--head target", file, "10", "9")


def test_kcl_phase_of_tsc_run_has_no_targets(tsc_run):
    """The checkpoint contains targets, but none is assigned to a class yet."""
    _, lacks = read_checkpoint_parts(tsc_run / "checkpoint_0001.pth.tar", 10, "linear")
    assert "TSC phase" in lacks["targets"]
