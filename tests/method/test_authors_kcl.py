"""KCL as its own authors' code trains it: positives, denominators and the initial queue, against loops."""

import pytest
import torch
from torch.nn.functional import normalize

import main_moco_supcon_imba as stage1
from moco import authors_kcl
from moco.authors_kcl import AuthorsKCL
from tests.refusals import exit_message
from tests.stopping import assert_resumes_bit_identical, log_of
from tests.tiny import TinyEncoder, tiny_batch, tiny_model
from utils.run import checkpoint


def build(**options) -> AuthorsKCL:
    torch.manual_seed(0)
    model = AuthorsKCL(TinyEncoder, dim=4, K=12, m=0.9, T=0.2, num_positive=2, num_classes=3, **options).double()
    model.queue_labels.copy_(torch.tensor([[0, 1, 0, 0, 1, -1, 2, 0, 1, 1, 0, 1]]))
    model.queue_ptr.fill_(4)
    return model


def newest(queue_labels: list[int], label: int, pointer: int, k: int) -> list[int]:
    """Return the columns of the k newest entries of a class: pointer - 1 is the newest, pointer the oldest."""
    length = len(queue_labels)
    by_age = [(pointer - 1 - age) % length for age in range(length)]
    return [column for column in by_age if queue_labels[column] == label][:k]


def loss_of(q, k, queue, queue_labels, labels, chosen, temperature, unused) -> torch.Tensor:
    total = 0
    for i, label in enumerate(labels):
        own = q[i] @ k[i] / temperature
        logits = [q[i] @ queue[:, j] / temperature for j in range(queue.shape[1])]
        denominator = torch.exp(own)
        for j, logit in enumerate(logits):
            if queue_labels[j] != label or j in chosen[i] or unused == "keep":
                denominator = denominator + torch.exp(logit)
            elif unused == "zero":
                denominator = denominator + 1
        positives = [own, *(logits[j] for j in chosen[i])]
        total = total - sum(torch.log(torch.exp(p) / denominator) for p in positives) / len(positives) / len(labels)
    return total


@pytest.mark.parametrize("unused", ["keep", "drop", "zero"])
def test_step_with_first_positives_matches_loops(unused):
    model, (im_q, im_k, labels) = build(positives="first", unused=unused), tiny_batch(6)
    q, queue, y = normalize(model.encoder_q(im_q), dim=1), model.queue.clone(), labels.tolist()
    stored = model.queue_labels[0].tolist()
    chosen = [newest(stored, label, 4, 2) for label in y]
    assert newest(stored, 0, 4, 2) == [3, 2] and newest(stored, 2, 4, 2) == [6]  # a class with one entry
    out = model(im_q, im_k, labels)
    k = normalize(model.encoder_k(im_k), dim=1)  # the key encoder was updated before it encoded the keys
    expected = loss_of(q, k, queue, stored, y, chosen, 0.2, unused)
    torch.testing.assert_close(out.loss, expected, rtol=1e-12, atol=1e-12)
    ours, theirs = (torch.autograd.grad(loss, list(model.encoder_q.parameters())) for loss in (out.loss, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("unused", ["drop", "zero"])
def test_unused_positives_of_random_draws_match_loops(unused):
    model, (im_q, im_k, labels) = build(unused=unused), tiny_batch(6)
    q, queue = normalize(model.encoder_q(im_q), dim=1), model.queue.clone()
    stored = model.queue_labels[0].tolist()
    columns, _ = model._choose_positives(labels)  # the draws of the coming step
    out = model(im_q, im_k, labels)
    k = normalize(model.encoder_k(im_k), dim=1)
    chosen = [[j for j in row if j < 12] for row in columns.tolist()]
    assert all(stored[j] == label for row, label in zip(chosen, labels.tolist(), strict=True) for j in row)
    torch.testing.assert_close(out.loss, loss_of(q, k, queue, stored, labels.tolist(), chosen, 0.2, unused))


def test_random_positives_are_those_of_kcl():
    """The draws are the same; the sums may round differently."""
    torch.manual_seed(0)
    plain, batch = tiny_model(), tiny_batch(6)
    ours = AuthorsKCL(TinyEncoder, dim=4, K=12, m=0.9, T=0.2, num_positive=2, num_classes=3).double()
    ours.load_state_dict(plain.state_dict())
    torch.testing.assert_close(ours(*batch).loss, plain(*batch).loss, rtol=1e-12, atol=1e-12)


def test_positives_are_summed_in_full_precision_under_autocast(monkeypatch):
    dtypes = []
    summed = authors_kcl.sum_columns

    def recorded(*arguments):
        dtypes.append(summed(*arguments).vector.dtype)
        return summed(*arguments)

    monkeypatch.setattr(authors_kcl, "sum_columns", recorded)
    im_q, im_k, labels = tiny_batch(6)
    with torch.autocast("cpu", torch.bfloat16):
        build(positives="first").float()(im_q.float(), im_k.float(), labels)
    assert dtypes == [torch.float32]


AUTHORS = "--epochs 2 --queue-init keys --positives first --unused-positives drop"


def test_queue_is_filled_with_keys_and_run_resumes(flags, tmp_path, monkeypatch):
    words = [*flags, *["-a", "lenet", "--image-size", "12", "--lr", "0.02"], *AUTHORS.split()]
    assert_resumes_bit_identical(stage1.main, words, tmp_path, monkeypatch, (3, 4))
    assert all(torch.tensor(record["loss"]).isfinite() for record in log_of(tmp_path / "whole"))


@pytest.mark.parametrize("init", ["random", "keys"])
def test_queue_before_the_first_step(init, flags, tmp_path):
    """An epoch has fewer images than the queue entries, so some entries are still the initial ones."""
    words = [*flags, *["-a", "lenet", "--image-size", "12", "--epochs", "1", "--moco-k", "128", "--queue-init"], init]
    stage1.main([*words, "--run-dir", str(tmp_path)])
    weights = checkpoint.strip_prefix(checkpoint.read_checkpoint(tmp_path / "last.pth.tar")["state_dict"])
    assert bool((weights["queue_labels"] == -1).any()) == (init == "random")
    torch.testing.assert_close(weights["queue"].norm(dim=0), torch.ones(128))


def test_targets_are_refused(flags, capsys):
    words = [*flags, "--targeted", "--positives", "first"]
    exit_message(lambda: stage1.main(words), capsys, "--positives", "--targeted")
