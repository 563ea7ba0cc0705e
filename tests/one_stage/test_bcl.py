"""--contrast bcl: one step by hand, two processes, resuming, and the evaluation of its classifier in stage 2."""

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

import main_moco_supcon_imba as stage1
from moco.bcl import BCL
from moco.export.programs import trained_network
from moco.pretrained import read_state
from tests.one_stage import loops
from tests.one_stage.evaluated import assert_stage_2_reproduces_classifier
from tests.one_stage.ranks import assert_two_processes_match_one, train_two_steps
from tests.refusals import exit_message
from tests.stopping import assert_resumes_bit_identical, log_of
from tests.tiny import IMAGE, TinyEncoder

C, D, T = 3, 4, 0.2
COUNTS = torch.tensor([6, 2, 1])
PRIOR = COUNTS / 9


def build(seed: int = 0) -> BCL:
    torch.manual_seed(seed)
    return BCL(TinyEncoder, D, T, COUNTS, ce_weight=2.0, contrast_weight=0.6).double()


def batch(size: int) -> tuple[torch.Tensor, ...]:
    return *torch.randn(3, size, *IMAGE, dtype=torch.float64), torch.arange(size) % C


def test_step_matches_the_equations():
    model, (im_c, im_1, im_2, y) = build(), batch(5)
    out = model(im_c, im_1, im_2, y)
    x = torch.cat([im_c, im_1, im_2]).flatten(1)  # the features of TinyEncoder are the pixels
    _, z_1, z_2 = normalize(model.encoder_q.fc(x), dim=1).chunk(3)
    w = model.classifier.weight
    prototypes = normalize(model.prototype_head(w), dim=1)
    logits = 30 * normalize(im_c.flatten(1), dim=1) @ normalize(w, dim=1).T
    expected = 2.0 * cross_entropy(logits + PRIOR.log(), y)
    expected = expected + 0.6 * loops.bcl(torch.stack([z_1, z_2], dim=1), y, prototypes, T)
    torch.testing.assert_close(out.loss, expected)
    torch.testing.assert_close(out.q, z_1)
    model.zero_grad()
    ours = torch.autograd.grad(out.loss, list(model.parameters()))
    torch.testing.assert_close(ours, torch.autograd.grad(expected, list(model.parameters())))


def two_steps() -> dict:
    model = build()
    model.encoder_q.fc[1].eval()  # batch statistics would differ between processes
    torch.manual_seed(1)
    return train_two_steps(model, batch, lr=0.1)


def test_two_processes_match_one(tmp_path):
    assert_two_processes_match_one(two_steps, tmp_path)


@pytest.fixture(scope="module")
def words(flags) -> list[str]:
    """Return flags of a BCL run, without those of KCL."""
    without = ("--moco-k", "--targets")
    words = [word for at, word in enumerate(flags) if word not in without and flags[at - 1] not in without]
    words.remove("--mlp")
    return [*words, *["--contrast", "bcl", "-a", "lenet", "--image-size", "12", "--lr", "0.02", "--epochs", "3"]]


def test_resumed_run_is_bit_identical(words, tmp_path, monkeypatch):
    assert_resumes_bit_identical(stage1.main, words, tmp_path, monkeypatch, (3, 5))


def test_classifier_is_evaluated_and_encoder_exported(words, data_flags, tmp_path):
    stage1.main([*words, "--run-dir", str(tmp_path)])
    record = log_of(tmp_path)[-1]
    assert record["loss_contrast"] > 0 and record["val"]["classifier_top1"] > 20  # chance is 10
    checkpoint = tmp_path / "last.pth.tar"
    assert_stage_2_reproduces_classifier(tmp_path, data_flags)
    _, embedding = trained_network(checkpoint, read_state(checkpoint), "lenet", 12)(torch.rand(2, 3, 12, 12))
    torch.testing.assert_close(embedding.norm(dim=1), torch.ones(2))


@pytest.mark.parametrize("flag", [["--targeted"], ["--moco-k", "64"], ["--mlp"]], ids=str)
def test_flags_of_other_methods_are_refused(flag, words, capsys):
    exit_message(lambda: stage1.main([*words, *flag]), capsys, flag[0], "bcl")
