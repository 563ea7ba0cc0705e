"""--joint-classifier targets: the fixed targets of TSC as the classifier of --joint."""

import copy
import json
import pickle

import pytest
import torch
from torch.nn.functional import normalize

import main_lincls_imba as stage2
import main_moco_supcon_imba as stage1
from moco.classifier import add_classifier
from moco.in_batch import InBatchKCL
from tests.one_stage import loops
from tests.one_stage.ranks import assert_two_processes_match_one, train_two_steps
from tests.refusals import exit_message, refusal
from tests.stopping import assert_resumes_bit_identical, log_of
from tests.tiny import TinyEncoder, tiny_batch, tiny_model, unit_vectors

COUNTS, W, T = torch.tensor([6, 2, 1]), 0.5, 0.2
LOG_PRIOR = (COUNTS.double() / 9).log().float().double()  # models store it in float32
SHIFTED = [2, 0, 1]  # the assignment in these tests: class c has target SHIFTED[c]


def queue_model():
    return with_shifted_centroids(tiny_model(targeted=True, T=T))


def in_batch_model():
    targets = unit_vectors(3, 4).float()
    model = InBatchKCL(TinyEncoder, 4, T=T, num_classes=3, targets=targets, targeted=True).double()
    return with_shifted_centroids(model)


def with_shifted_centroids(model):
    model.class_centroid.copy_(model.unique_targets[SHIFTED])
    return model


def step(build, joint: bool):
    """Train one step on the same model and batch, with or without the classifier; return the model and its output."""
    torch.manual_seed(0)
    model = build()
    if joint:
        add_classifier(model, COUNTS, W, "targets").double()
    im_q, im_k, labels = tiny_batch()
    return model, (im_q, im_k, labels), model(im_q, im_k, labels)


@pytest.mark.parametrize("build", [queue_model, in_batch_model])
def test_loss_adds_balanced_softmax_over_the_assigned_targets(build):
    plain_model, _, plain = step(build, joint=False)
    model, (im_q, im_k, labels), out = step(build, joint=True)
    images, y = (im_q, labels) if build is queue_model else (torch.cat([im_q, im_k]), labels.repeat(2))
    q = normalize(model.encoder_q(images), dim=1)
    term = loops.targets(q, y, model.unique_targets[SHIFTED], LOG_PRIOR, T)
    torch.testing.assert_close(out.loss, plain.loss + W * term, rtol=0, atol=1e-12)
    torch.testing.assert_close(model.classifier.metrics["loss_classifier"], term.detach(), rtol=0, atol=1e-12)
    (ours,) = torch.autograd.grad(out.loss, model.encoder_q.fc.weight)
    (of_plain,) = torch.autograd.grad(plain.loss, plain_model.encoder_q.fc.weight)
    (of_term,) = torch.autograd.grad(term, model.encoder_q.fc.weight)
    torch.testing.assert_close(ours, of_plain + W * of_term, rtol=0, atol=1e-12)


def test_kcl_phase_has_no_classifier_loss():
    def kcl():
        return tiny_model(targeted=False)

    (_, _, plain), (model, _, out) = step(kcl, joint=False), step(kcl, joint=True)
    assert torch.equal(out.loss, plain.loss) and not model.classifier.metrics


def test_model_that_leaves_the_tsc_phase_has_no_classifier_loss():
    """The assignment of its last TSC step still exists."""
    model, batch, _ = step(queue_model, joint=True)
    model.targeted, model.classifier.metrics = False, {}
    model(*batch)
    assert not model.classifier.metrics


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copy_of_a_model_uses_its_own_targets(duplicate):
    model, _, _ = step(queue_model, joint=True)
    second = duplicate(model)
    model.optimal_target.zero_()
    assert torch.equal(second.classifier.class_targets(), second.unique_targets[SHIFTED])


def two_steps() -> dict:
    torch.manual_seed(0)
    model = in_batch_model()
    add_classifier(model, COUNTS, W, "targets").double()
    return train_two_steps(model, tiny_batch, lr=0.5)


def test_two_processes_match_one(tmp_path):
    assert_two_processes_match_one(two_steps, tmp_path)


SMALL = "-a lenet --image-size 12 --epochs 2 --targeted --joint 1 --joint-classifier targets"


@pytest.mark.parametrize("contrast", ["queue", "batch"])
def test_resumed_run_is_bit_identical(contrast, flags, batch_flags, tmp_path, monkeypatch):
    """The second stop follows the last step, so the resumed run measures with the checkpoint's assignment."""
    words = flags if contrast == "queue" else [*batch_flags, "--contrast", "batch"]
    assert_resumes_bit_identical(stage1.main, [*words, *SMALL.split()], tmp_path, monkeypatch, (3, 7))
    assert log_of(tmp_path / "run")[-1]["val"] == log_of(tmp_path / "whole")[-1]["val"]


@pytest.fixture(scope="module")
def joint_run(flags, tmp_path_factory):
    """Train one epoch of KCL and three of TSC; return the run folder, which has a checkpoint of each epoch."""
    run = tmp_path_factory.mktemp("joint") / "run"
    words = f"{SMALL} --lr 0.02 --epochs 4 --kcl-epochs 1 -s 1 --run-dir {run}"
    stage1.main([*flags, *words.split()])
    return run


def stage_2(data_flags, checkpoint, run, *options: str) -> dict:
    text = f"--image-size 12 --seed 1 -j 0 --device cpu --pretrained {checkpoint} --run-dir {run}"
    stage2.main([*data_flags, *text.split(), *options])
    return json.loads((run / "results.json").read_text())


def test_classifier_is_logged_from_the_tsc_phase_on(joint_run):
    kcl, *tsc = log_of(joint_run)
    assert "loss_classifier" not in kcl and kcl["val"]["classifier_top1"] is None
    assert all(line["loss_classifier"] > 0 and line["val"]["classifier_top1"] is not None for line in tsc)


def test_stage_2_evaluates_the_classifier_that_the_run_reports(joint_run, data_flags, tmp_path):
    last = joint_run / "last.pth.tar"
    own = stage_2(data_flags, last, tmp_path / "own", "--head", "own", "--logit-adjustment", "off")["selected"]
    assert own["val_acc1"] == log_of(joint_run)[-1]["val"]["classifier_top1"]
    target = stage_2(data_flags, last, tmp_path / "target", "--head", "target")["selected"]
    assert own["per_class"] == target["per_class"]  # the nearest target; the scale and the prior do not change it
    assert own["ece"] is not None


def test_checkpoint_of_the_kcl_phase_has_no_classifier_to_evaluate(joint_run, data_flags, tmp_path):
    def evaluate():
        stage_2(data_flags, joint_run / "checkpoint_0001.pth.tar", tmp_path / "own", "--head", "own")

    refusal(evaluate, "--head own", "checkpoint_0001", "TSC phase")


@pytest.mark.parametrize(
    ("words", "facts"),
    [
        (["--joint-classifier", "targets", "--targeted"], ["--joint-classifier", "--joint"]),
        (["--joint-classifier", "targets", "--joint", "1"], ["--joint-classifier", "--targeted"]),
    ],
    ids=["without --joint", "without --targeted"],
)
def test_unsupported_combinations_are_refused(words, facts, flags, tmp_path, capsys):
    exit_message(lambda: stage1.main([*flags, *words, "--run-dir", str(tmp_path / "run")]), capsys, *facts)
    assert not (tmp_path / "run").exists()
