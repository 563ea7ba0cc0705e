"""--contrast paco: one step by hand, two processes, resuming, and the evaluation of its classifier in stage 2."""

import pytest
import torch
from torch.nn.functional import normalize

import main_moco_supcon_imba as stage1
from moco.paco import PaCo
from tests.one_stage import loops
from tests.one_stage.evaluated import assert_stage_2_reproduces_classifier
from tests.one_stage.ranks import assert_two_processes_match_one, train_two_steps
from tests.refusals import exit_message, refusal
from tests.stopping import assert_resumes_bit_identical
from tests.tiny import TinyEncoder, tiny_batch

T, COUNTS = 0.2, torch.tensor([6, 2, 1])
LOG_PRIOR = (COUNTS.double() / 9).log().float()
WEIGHTS = {"alpha": 0.1, "beta": 0.9, "gamma": 0.4}
EACH_METHOD = pytest.mark.parametrize("momentum_keys", [True, False], ids=["PaCo", "GPaCo"])


def build(momentum_keys: bool) -> PaCo:
    torch.manual_seed(0)
    options = {"dim": 4, "K": 16, "m": 0.9, "T": T, "num_classes": 3, "momentum_keys": momentum_keys}
    model = PaCo(TinyEncoder, COUNTS, **WEIGHTS, **options).double()
    model.queue_labels.copy_(torch.randint(-1, 3, model.queue_labels.shape))
    with torch.no_grad():
        model.classifier.weight.normal_()
    return model


@EACH_METHOD
def test_step_matches_the_equations(momentum_keys):
    model, (im_q, im_k, y) = build(momentum_keys), tiny_batch()
    queue, queue_labels = model.queue.clone(), model.queue_labels[0].clone()
    q, k = (normalize(model.encoder_q(images), dim=1) for images in (im_q, im_k))
    # After the first momentum update, the key encoder still equals the query encoder.
    anchors, images, labels = (
        (q, im_q, y) if momentum_keys else (torch.cat([q, k]), torch.cat([im_q, im_k]), y.repeat(2))
    )
    columns = torch.cat([q, k.detach() if momentum_keys else k, queue.T])
    x = images.flatten(1)  # the features of TinyEncoder are the pixels
    logits = x @ model.classifier.weight.T + model.classifier.bias
    column_labels = torch.cat([y, y, queue_labels])
    expected = loops.paco(
        anchors, labels, logits, LOG_PRIOR, columns, column_labels, **WEIGHTS, class_scale=1, temperature=T
    )
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    theirs = torch.autograd.grad(expected, weights)
    out = model(im_q, im_k, y)
    torch.testing.assert_close(out.loss, expected)
    torch.testing.assert_close(torch.autograd.grad(out.loss, weights), theirs)
    torch.testing.assert_close(out.q, q)
    torch.testing.assert_close(model.queue, torch.cat([k.detach().T, queue[:, 4:]], dim=1))  # the newest 4 keys
    assert model.queue_labels[0].tolist() == [*y.tolist(), *queue_labels[4:].tolist()]


@EACH_METHOD
def test_class_logits_are_computed_once(momentum_keys):
    model, calls = build(momentum_keys), []
    model.classifier.register_forward_hook(lambda *_: calls.append(1))
    model(*tiny_batch())
    assert len(calls) == 1


def paco_two_steps() -> dict:
    return train_two_steps(build(momentum_keys=True), tiny_batch, lr=0.1)


def gpaco_two_steps() -> dict:
    return train_two_steps(build(momentum_keys=False), tiny_batch, lr=0.1)


@pytest.mark.parametrize("two_steps", [paco_two_steps, gpaco_two_steps])
def test_two_processes_match_one(two_steps, tmp_path):
    assert_two_processes_match_one(two_steps, tmp_path)


@pytest.fixture(scope="module")
def words(flags) -> list[str]:
    """Return flags of a PaCo run, without those of TSC."""
    at = flags.index("--targets")
    text = "--contrast paco -a lenet --image-size 12 --lr 0.02 --epochs 3"
    return [*flags[:at], *flags[at + 2 :], *text.split()]


@pytest.mark.parametrize("options", [[], ["--no-momentum-keys"]], ids=["PaCo", "GPaCo"])
def test_resumed_run_is_bit_identical(options, words, tmp_path, monkeypatch):
    assert_resumes_bit_identical(stage1.main, [*words, *options], tmp_path, monkeypatch, (3, 5))


@pytest.mark.parametrize("options", [[], ["--no-momentum-keys"]], ids=["PaCo", "GPaCo"])
def test_stage_2_evaluates_the_classifier_that_the_run_reports(options, words, data_flags, tmp_path):
    stage1.main([*words, *options, "--lr", "0.05", "--epochs", "8", "--run-dir", str(tmp_path)])
    own = assert_stage_2_reproduces_classifier(tmp_path, data_flags)
    assert sum(accuracy > 0 for accuracy in own["per_class"]) >= 3  # a constant prediction has one


@pytest.mark.parametrize("flag", [["--targeted"], ["--joint", "1"]], ids=str)
def test_unsupported_flags_are_refused(flag, words, capsys):
    exit_message(lambda: stage1.main([*words, *flag]), capsys, flag[0], "paco")


def test_accumulation_is_refused(words):
    refusal(lambda: stage1.main([*words, "--accum-steps", "2"]), "--accum-steps", "paco")
