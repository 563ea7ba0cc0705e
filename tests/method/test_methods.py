"""A new method is a class and a row of METHODS; stage 1 needs no other change."""

import json
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

import main_lincls_imba as stage2
import main_moco_supcon_imba as stage1
from moco.encoders import get_encoder
from moco.losses import LOSS_FORMS
from moco.methods import METHODS, MethodRow
from moco.methods.base import Method
from moco.methods.method_flags import add_contrast_arguments, add_encoder_arguments, add_mlp_argument
from tests.refusals import refusal
from tests.stopping import run_until_stopped
from utils.errors import InputError
from utils.run import checkpoint

ONE_EPOCH = ["--contrast", "InBatch", "--heat", "0.2", "--epochs", "1", "--monitor-freq", "1"]


class Output(NamedTuple):
    loss: Tensor


class InBatchModel(nn.Module):
    """Contrast each image with the other views of the batch: one encoder, no queue, no labels."""

    def __init__(self, encoder, temperature: float):
        super().__init__()
        self.encoder_q, self.temperature = encoder, temperature

    def forward(self, im_q: Tensor, im_k: Tensor, labels: Tensor) -> Output:
        q, k = (normalize(self.encoder_q(images), dim=1) for images in (im_q, im_k))  # (N, D)
        return Output(cross_entropy(q @ k.T / self.temperature, torch.arange(len(q))))


class InBatch(Method):
    def check(self):
        if self.settings.heat <= 0:
            raise InputError(f"--heat {self.settings.heat}: expected more than 0")

    def build(self, num_classes, state, device):
        torch.manual_seed(state.seed)
        encoder = get_encoder(self.settings.arch, self.settings.image_size)(num_classes=self.settings.moco_dim)
        self.model = InBatchModel(encoder, self.settings.heat)
        return self.model


HELP = "the other view among those of the batch"
FLAGS = (
    add_encoder_arguments,
    add_mlp_argument,
    add_contrast_arguments,
    lambda model, loss: loss.add_argument("--heat", type=float, default=0.1),
)


@pytest.fixture
def in_batch_row(monkeypatch):
    monkeypatch.setitem(METHODS, "InBatch", MethodRow(HELP, lambda: InBatch, FLAGS))


def test_new_method_trains_and_is_probed(in_batch_row, batch_flags, probe_flags, tmp_path):
    stage1.main([*batch_flags, *ONE_EPOCH, "--run-dir", str(tmp_path / "run")])
    (record,) = (json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines())
    assert record["phase"] == "InBatch" and record["loss"] > 0 and record["val"]["knn_top1"] is not None
    pretrained = ["--pretrained", str(tmp_path / "run" / "last.pth.tar"), "--epochs", "1"]
    stage2.main([*probe_flags, *pretrained, "--run-dir", str(tmp_path / "probe")])
    assert (tmp_path / "probe" / "results.json").exists()


def test_new_method_resumes_bit_identically(in_batch_row, batch_flags, tmp_path, monkeypatch):
    words = [*batch_flags, *ONE_EPOCH, "--resume", "auto", "--run-dir"]
    stage1.main([*words, str(tmp_path / "whole")])
    run_until_stopped(stage1.main, [*words, str(tmp_path / "run")], monkeypatch, step=2)
    stage1.main([*words, str(tmp_path / "run")])
    ours, theirs = (
        checkpoint.read_checkpoint(tmp_path / name / "last.pth.tar")["state_dict"] for name in ("run", "whole")
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_new_method_adds_flags_checks_and_help(in_batch_row, batch_flags, tmp_path):
    assert f"InBatch: {HELP}" in " ".join(stage1.get_args_parser().format_help().split())
    words = [*batch_flags, *ONE_EPOCH, "--heat", "0", "--run-dir", str(tmp_path / "run")]
    refusal(lambda: stage1.main(words), "--heat 0.0")
    assert not (tmp_path / "run").exists()
    with pytest.raises(SystemExit):
        stage1.main([*batch_flags, "--contrast", "InBatches", "--run-dir", str(tmp_path / "run")])


def test_loss_form_accepts_the_forms_of_the_loss():
    (flag,) = (action for action in stage1.get_args_parser()._actions if action.dest == "loss_form")
    assert tuple(flag.choices) == LOSS_FORMS
