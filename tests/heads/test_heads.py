"""Classifiers of stage 2: what a row of HEADS says is what is built and trained."""

import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize

import main_lincls_imba as stage2
from moco.encoders import get_encoder
from moco.heads import HEADS, Head, build_classifier, frozen_weights, moved
from tests.refusals import refusal
from tests.stopping import STEPS
from utils.run import checkpoint


class Cosine(nn.Module):
    """A toy: cosines to a vector a class, scaled by the share of the class."""

    def __init__(self, width: int, counts: np.ndarray):
        super().__init__()
        self.direction = nn.Parameter(torch.randn(len(counts), width))
        self.register_buffer("share", torch.from_numpy(counts / counts.sum()).float())

    def forward(self, x):
        return normalize(x, dim=1) @ normalize(self.direction, dim=1).T * self.share


def test_the_linear_probe_is_the_releases():
    """Random numbers in its order: the network's own, `fc` with them, then N(0, 0.01); the loss is cross-entropy."""
    model = build_classifier("resnet20", 8, 5, 4, None)
    torch.manual_seed(0)
    expected = get_encoder("resnet20", 8)(num_classes=5)
    assert torch.equal(model.fc.weight, torch.randn(5, 64) * 0.01) and not model.fc.bias.any()
    assert torch.equal(model.layer3[2].conv2.weight, expected.layer3[2].conv2.weight)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {"fc.weight", "fc.bias"}
    head, logits, labels = HEADS["linear"], torch.randn(4, 5), torch.arange(4)
    assert torch.equal(head.loss(logits, labels, 0), cross_entropy(logits, labels))
    assert head.samplings[0] == "class-balanced"


def smoothed(logits, labels, epoch):
    return cross_entropy(logits, labels, label_smoothing=0.1 * (epoch + 1))


@pytest.fixture
def row(monkeypatch):
    monkeypatch.setitem(HEADS, "cosine", Head("cosines to a vector a class", Cosine, smoothed, samplings=("instance",)))


def test_another_head_is_a_row(row):
    model = build_classifier("resnet20", 8, 3, 4, None, head="cosine", counts=np.array([6, 3, 1]))
    frozen, before = frozen_weights(model, "eval"), model.fc.direction.clone()
    optimizer = torch.optim.SGD(model.fc.parameters(), lr=1.0)
    model.eval()
    for epoch in range(2):
        HEADS["cosine"].loss(model(torch.randn(4, 3, 8, 8)), torch.tensor([0, 1, 2, 0]), epoch).backward()
        optimizer.step()
    assert not moved(model, frozen) and not torch.equal(model.fc.direction, before)
    assert model.fc.share.tolist() == pytest.approx([0.6, 0.3, 0.1])


def test_another_head_trains_through_the_script(row, tsc_run, probe_flags, tmp_path, monkeypatch):
    """Two epochs by its own loss, on images as they come; and what it wrote is measured by --evaluate."""
    seen = []
    noting = lambda logits, labels, epoch: seen.append((epoch, labels)) or smoothed(logits, labels, epoch)  # noqa: E731
    monkeypatch.setitem(HEADS, "cosine", HEADS["cosine"]._replace(loss=noting))
    words = [*probe_flags, "--head", "cosine", "--epochs", "2"]
    stage2.main([*words, "--pretrained", str(tsc_run / "last.pth.tar"), "--run-dir", str(tmp_path)])
    assert [epoch for epoch, _ in seen] == [0] * STEPS + [1] * STEPS
    many, *_, few = torch.cat([labels for _, labels in seen]).bincount().tolist()
    assert many > 10 * few  # 30 and 2 training images; of balanced classes as many
    state = checkpoint.load(tmp_path / "last.pth.tar")
    assert {name for name in state["state_dict"] if "fc." in name} == {"module.fc.direction", "module.fc.share"}
    assert json.loads((tmp_path / "args.json").read_text())["args"]["head"] == "cosine"
    stage2.main([*words, "--evaluate", "--resume", str(tmp_path / "last.pth.tar")])
    assert f"cosine: {HEADS['cosine'].help}" in " ".join(stage2.get_args_parser().format_help().split())


def test_an_encoder_that_does_not_exist_is_refused(tmp_path):
    absent = tmp_path / "absent.pth.tar"
    refusal(lambda: build_classifier("resnet20", 8, 3, 4, absent), absent)
