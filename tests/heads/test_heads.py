"""Trained classifiers of stage 2: each entry of HEADS defines what is built and trained."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize

import main_lincls_imba as stage2
from moco.encoders import get_encoder
from moco.heads import HEADS, Head
from moco.heads.networks import build_classifier, changed_weights, frozen_weights, load_trained
from tests.refusals import refusal
from tests.stopping import STEPS
from utils.run import checkpoint


class Cosine(nn.Module):
    """A toy classifier: cosines to one vector per class, scaled by the share of the class."""

    def __init__(self, width: int, counts: np.ndarray):
        super().__init__()
        self.direction = nn.Parameter(torch.randn(len(counts), width))
        self.register_buffer("share", torch.from_numpy(counts / counts.sum()).float())

    def forward(self, x):
        return normalize(x, dim=1) @ normalize(self.direction, dim=1).T * self.share


def test_linear_probe_matches_authors_code():
    """Random numbers are drawn in its order: the network, then N(0, 0.01) for `fc`. The loss is cross-entropy."""
    model = build_classifier("resnet20", 8, 5, 4, None)
    torch.manual_seed(0)
    expected = get_encoder("resnet20", 8)(num_classes=5)
    assert torch.equal(model.fc.weight, torch.randn(5, 64) * 0.01) and not model.fc.bias.any()
    assert torch.equal(model.layer3[2].conv2.weight, expected.layer3[2].conv2.weight)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {"fc.weight", "fc.bias"}
    head, logits, labels = HEADS["linear"], torch.randn(4, 5), torch.arange(4)
    assert torch.equal(head.loss(logits, labels, 0), cross_entropy(logits, labels))
    assert head.samplings[0] == "class-balanced"


def smoothed_loss(logits, labels, epoch):
    return cross_entropy(logits, labels, label_smoothing=0.1 * (epoch + 1))


@pytest.fixture
def cosine_head(monkeypatch):
    monkeypatch.setitem(
        HEADS, "cosine", Head("cosines to a vector a class", Cosine, smoothed_loss, samplings=("instance",))
    )


def test_head_can_be_added_as_an_entry(cosine_head):
    model = build_classifier("resnet20", 8, 3, 4, None, head="cosine", counts=np.array([6, 3, 1]))
    frozen, before = frozen_weights(model, "eval"), model.fc.direction.clone()
    optimizer = torch.optim.SGD(model.fc.parameters(), lr=1.0)
    model.eval()
    for epoch in range(2):
        HEADS["cosine"].loss(model(torch.randn(4, 3, 8, 8)), torch.tensor([0, 1, 2, 0]), epoch).backward()
        optimizer.step()
    assert not changed_weights(model, frozen) and not torch.equal(model.fc.direction, before)
    assert model.fc.share.tolist() == pytest.approx([0.6, 0.3, 0.1])


def test_added_head_trains_through_the_script(cosine_head, tsc_run, probe_flags, tmp_path, monkeypatch):
    """Trains two epochs with the head's own loss on plain batches. --evaluate then measures the checkpoint."""
    seen = []
    recording = lambda logits, labels, epoch: seen.append((epoch, labels)) or smoothed_loss(logits, labels, epoch)  # noqa: E731
    monkeypatch.setitem(HEADS, "cosine", HEADS["cosine"]._replace(loss=recording))
    words = [*probe_flags, "--head", "cosine", "--epochs", "2"]
    stage2.main([*words, "--pretrained", str(tsc_run / "last.pth.tar"), "--run-dir", str(tmp_path)])
    assert [epoch for epoch, _ in seen] == [0] * STEPS + [1] * STEPS
    many, *_, few = torch.cat([labels for _, labels in seen]).bincount().tolist()
    assert many > 10 * few  # 30 and 2 training images; class-balanced batches would contain equally many
    state = checkpoint.read_checkpoint(tmp_path / "last.pth.tar")
    assert {name for name in state["state_dict"] if "fc." in name} == {"module.fc.direction", "module.fc.share"}
    assert json.loads((tmp_path / "args.json").read_text())["args"]["head"] == "cosine"
    stage2.main([*words, "--evaluate", "--resume", str(tmp_path / "last.pth.tar")])
    assert f"cosine: {HEADS['cosine'].help}" in " ".join(stage2.get_args_parser().format_help().split())


def test_missing_encoder_is_refused(tmp_path):
    absent = tmp_path / "absent.pth.tar"
    refusal(lambda: build_classifier("resnet20", 8, 3, 4, absent), absent)


@pytest.mark.parametrize("classes", [2, 4])
def test_fitted_head_is_refused_for_data_with_another_number_of_classes(classes):
    fitted, other = (build_classifier("resnet20", 8, count, 4, None, "ncm") for count in (3, classes))
    refusal(lambda: load_trained(other, "ncm", fitted.state_dict(), Path("best.pth.tar")), "best.pth.tar", 3, classes)
