"""What a checkpoint lacks for a head is said before the features are made, which takes longest."""

import shutil

import pytest
import torch

import main_lincls_imba as stage2
from moco.heads.problems import held_by
from tests.refusals import refusal
from utils.run import checkpoint


@pytest.fixture
def own(tsc_run, tmp_path):
    """A folder with the TSC run's checkpoint, and its query encoder alone in a file."""
    shutil.copy(tsc_run / "last.pth.tar", tmp_path)
    weights = checkpoint.unpacked(checkpoint.load(tsc_run / "last.pth.tar"))
    query = {k.removeprefix("encoder_q."): value for k, value in weights.items() if k.startswith("encoder_q.")}
    torch.save(query, tmp_path / "encoder.pt")
    return tmp_path


@pytest.mark.parametrize(
    ("head", "name", "fact"),
    [("own", "last.pth.tar", "10"), ("target", "encoder.pt", "'state_dict'")],
)
def test_nothing_is_made_where_a_head_cannot_be_fitted(head, name, fact, own, probe_flags):
    at = probe_flags.index("--lr")  # of training
    flags = [*probe_flags[:at], *probe_flags[at + 2 :]]
    words = [*flags, "--pretrained", str(own / name), "--head", head]
    refusal(lambda: stage2.main(words), f"--head {head}", own / name, fact)
    assert sorted(path.name for path in own.iterdir()) == ["encoder.pt", "last.pth.tar"]


def test_what_a_checkpoint_holds(own):
    held = held_by(own / "last.pth.tar", 10, "target")
    assert held.targets[1].shape == (10, 16) and held.classifier is None and list(held.lacks) == ["classifier"]
    assert list(held_by(own / "encoder.pt", 10, "ncm").lacks) == ["targets", "classifier"]
    file = own / "last.pth.tar"
    refusal(lambda: held_by(file, 9, "target"), "--head target", file, "10", "9")
