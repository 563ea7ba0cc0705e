"""--joint: a classifier trained together with the encoder, its loss, its checkpoint, and its evaluation in stage 2."""

import copy
import pickle

import pytest
import torch
from torch.nn.functional import cross_entropy

import main_moco_supcon_imba as stage1
from moco.classifier import add_classifier
from moco.in_batch import InBatchKCL
from tests.one_stage.evaluated import assert_stage_2_reproduces_classifier
from tests.one_stage.ranks import assert_two_processes_match_one, train_two_steps
from tests.refusals import exit_message
from tests.stopping import assert_resumes_bit_identical, log_of
from tests.tiny import TinyEncoder, tiny_batch, tiny_model, unit_vectors

COUNTS, W = torch.tensor([6, 2, 0]), 0.5
PRIOR = torch.tensor([6 / 9, 2 / 9, 1 / 9], dtype=torch.float64)  # a class without images counts as one with one


def in_batch_model() -> InBatchKCL:
    targets = unit_vectors(3, 4).float()
    return InBatchKCL(TinyEncoder, 4, num_classes=3, targets=targets, targeted=True).double()


@pytest.mark.parametrize("build", [tiny_model, in_batch_model])
def test_loss_is_the_methods_loss_plus_weighted_balanced_softmax(build):
    torch.manual_seed(0)
    model, (im_q, im_k, labels) = build(), tiny_batch()
    torch.manual_seed(1)
    plain = model(im_q, im_k, labels).loss
    torch.manual_seed(0)
    model = build()
    add_classifier(model, COUNTS, W).double()
    with torch.no_grad():
        model.classifier.weight.normal_()
    out = model(im_q, im_k, labels)
    images, y = (im_q, labels) if build is tiny_model else (torch.cat([im_q, im_k]), labels.repeat(2))
    logits = images.flatten(1) @ model.classifier.weight.T  # the features of TinyEncoder are the pixels
    term = cross_entropy(logits + PRIOR.log(), y)
    torch.testing.assert_close(out.loss, plain + W * term)
    torch.testing.assert_close(model.classifier.metrics["loss_classifier"], term.detach())


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copy_of_a_model_trains_its_own_classifier(duplicate):
    model = tiny_model()
    add_classifier(model, COUNTS, W).double()
    second = duplicate(model)
    second(*tiny_batch()).loss.backward()
    assert second.classifier.bias.grad.any() and model.classifier.bias.grad is None


def test_gradient_reaches_the_encoder():
    model = tiny_model(num_positive=0)
    model.encoder_q.body = torch.nn.Linear(12, 12).double()
    model.encoder_q.forward = lambda images: model.encoder_q.fc(model.encoder_q.body(images.flatten(1)))
    classifier = add_classifier(model, COUNTS, 1.0).double()
    with torch.no_grad():
        classifier.weight.normal_()
    model.encoder_q(tiny_batch()[0])
    classifier.loss(classifier.logits(), torch.tensor([0, 1, 2, 0])).backward()
    assert model.encoder_q.body.weight.grad.abs().max() > 0 and model.encoder_q.fc.weight.grad is None


def two_steps() -> dict:
    torch.manual_seed(0)
    model = in_batch_model()
    add_classifier(model, COUNTS, W).double()
    return train_two_steps(model, tiny_batch, lr=0.5)


def test_two_processes_match_one(tmp_path):
    assert_two_processes_match_one(two_steps, tmp_path)


SMALL = "-a lenet --image-size 12 --epochs 2 --targeted --joint 1"


@pytest.mark.parametrize("contrast", ["queue", "batch"])
def test_resumed_run_is_bit_identical(contrast, flags, batch_flags, tmp_path, monkeypatch):
    words = flags if contrast == "queue" else [*batch_flags, "--contrast", "batch"]
    assert_resumes_bit_identical(stage1.main, [*words, *SMALL.split()], tmp_path, monkeypatch, (3, 4))


def test_stage_2_evaluates_the_classifier_that_the_run_reports(flags, data_flags, tmp_path):
    words = [*flags, *["-a", "lenet", "--image-size", "12", "--lr", "0.02", "--epochs", "4", "--joint", "1"]]
    stage1.main([*words, "--run-dir", str(tmp_path)])
    assert log_of(tmp_path)[-1]["val"]["classifier_top1"] > 20  # chance is 10
    assert_stage_2_reproduces_classifier(tmp_path, data_flags)


def test_accumulated_steps_are_refused(flags, capsys):
    words = [*flags, "--joint", "1", "--accum-steps", "2"]
    exit_message(lambda: stage1.main(words), capsys, "--joint", "--accum-steps")
