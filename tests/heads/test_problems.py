"""What a checkpoint lacks for a head is said before the features are made, which takes longest."""

import shutil

import pytest
import torch

import main_lincls_imba as stage2
from moco.heads.problems import held_by
from utils.errors import InputError
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
    ("head", "name", "message"),
    [
        ("own", "last.pth.tar", r"last\.pth\.tar: has a projection head, expected a linear classifier"),
        ("target", "encoder.pt", r"encoder\.pt: has no 'state_dict', expected a file that one of the stages wrote"),
    ],
)
def test_nothing_is_made_where_a_head_cannot_be_fitted(head, name, message, own, probe_flags):
    at = probe_flags.index("--lr")  # of training
    flags = [*probe_flags[:at], *probe_flags[at + 2 :]]
    with pytest.raises(InputError, match=f"--head {head}: checkpoint .*/{message}"):
        stage2.main([*flags, "--pretrained", str(own / name), "--head", head])
    assert sorted(path.name for path in own.iterdir()) == ["encoder.pt", "last.pth.tar"]


def test_what_a_checkpoint_holds(own):
    held = held_by(own / "last.pth.tar", 10, "target")
    assert held.targets[1].shape == (10, 16) and held.classifier is None and list(held.lacks) == ["classifier"]
    assert list(held_by(own / "encoder.pt", 10, "ncm").lacks) == ["targets", "classifier"]
    with pytest.raises(InputError, match=r"--head target: .*has targets of 10 classes, expected 9"):
        held_by(own / "last.pth.tar", 9, "target")
