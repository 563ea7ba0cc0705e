"""One step of KCL: it matches the oracle, its parts run in the right order, and its state is as expected."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from moco.builder import KCL, RANDOM_INT_BOUND
from tests import oracle
from tests.refusals import refusal
from tests.tiny import TinyEncoder, tiny_batch, tiny_model, unit_vectors
from utils import distributed
from utils.randomness import Stream, torch_rng

METHODS = [
    {"num_positive": 2},
    {"num_positive": 0},
    {"targeted": True, "sep_t": True, "tw": 0.2},
    {"targeted": True, "sep_t": False, "tw": 0.2},
    {"targeted": True, "sep_t": True, "tr": 3},
    {"targeted": True, "sep_t": False, "tr": 3},
    {"targeted": True, "sep_t": False, "num_positive": 0, "tr": 3},
    {"targeted": True, "sep_t": True, "tw": 0.2, "loss_form": "paper"},
    {"supervised": False},
    {"supervised": False, "num_positive": 0},
]


def expected_step(model: KCL, im_q: Tensor, im_k: Tensor, labels: Tensor) -> tuple[tuple, dict[str, Tensor]]:
    """Return the oracle's losses and state after one step, given the state before it."""
    q = normalize(model.encoder_q(im_q), dim=1)
    before = model.state_dict()
    after = {
        f"encoder_k.{name}": model.m * before[f"encoder_k.{name}"] + (1 - model.m) * before[f"encoder_q.{name}"]
        for name in ("fc.weight", "fc.bias")
    }
    k = normalize(im_k.flatten(1) @ after["encoder_k.fc.weight"].T + after["encoder_k.fc.bias"], dim=1)

    y, target_options, copies, fixed_copies, draws = labels.tolist(), {}, 0, 0, None
    if model.num_positive or not model.supervised:
        rng = torch_rng(model.seed, Stream.POSITIVES, model.step, 0)
        shape = (len(y), model.num_positive if model.supervised else 0)
        draws = torch.randint(RANDOM_INT_BOUND, shape, generator=rng).tolist()
    after["class_centroid"] = before["class_centroid"]
    if model.targeted:
        fixed_copies, copies = (model.tr, 0) if model.sep_t or draws is None else (0, model.tr)
        after["class_centroid"] = oracle.centroids(before["class_centroid"], q.detach(), y)
        sigma = oracle.assignment(after["class_centroid"] @ before["optimal_target"][:: model.tr].T)
        target_options = {"targets": before["optimal_target"], "target_row": [model.tr * row for row in sigma]}
    chosen = oracle.positives(y, before["queue_labels"][0].tolist(), draws, copies, fixed_copies)
    losses = oracle.loss(
        q,
        k,
        before["queue"].clone(),
        y,
        chosen,
        model.T,
        target_weight=model.tw,
        form=model.loss_form,
        **target_options,
    )

    start, size = int(before["queue_ptr"]), len(y)
    after |= {name: before[name].clone() for name in ("queue", "queue_labels")}
    for i in range(size):
        after["queue"][:, start + i], after["queue_labels"][0, start + i] = k[i].detach(), y[i]
    after["queue_ptr"] = torch.tensor([(start + size) % model.K])
    return losses, after


@pytest.mark.parametrize("options", METHODS, ids=str)
def test_four_steps_match_oracle(options):
    """Loss, gradients and all buffers match, including a wrap-around of the queue of 12 (4 images per step)."""
    model = tiny_model(**options)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(4):
        batch = tiny_batch()
        losses, state = expected_step(model, *batch)
        expected = torch.autograd.grad(sum(losses), list(model.encoder_q.parameters()))

        out = model(*batch)
        optimizer.zero_grad()
        out.loss.backward()
        torch.testing.assert_close((out.loss_class, out.loss_target), losses, rtol=1e-10, atol=1e-12)
        for parameter, gradient in zip(model.encoder_q.parameters(), expected, strict=True):
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-9, atol=1e-12)
        actual = {name: tensor for name, tensor in model.state_dict().items() if name in state}
        torch.testing.assert_close(actual, state, rtol=1e-12, atol=1e-12)
        optimizer.step()


def test_new_model_has_equal_encoders_with_a_relu_and_an_empty_queue_of_unit_columns():
    model = KCL(TinyEncoder, 4, 12, mlp=True, num_classes=3)
    torch.testing.assert_close(model.encoder_k.state_dict(), model.encoder_q.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(model.queue.norm(dim=0), torch.ones(12))
    assert model.queue_labels.tolist() == [[-1] * 12] and model.queue_ptr.item() == 0
    assert not any(weight.requires_grad for weight in model.encoder_k.parameters())
    assert [type(layer) for layer in model.encoder_q.fc] == [nn.Linear, nn.ReLU, nn.Linear]


def test_k_above_class_size_uses_all_positives():
    """The class has 12 keys in the queue and 2 copies of its target."""

    def loss(num_positive: int) -> float:
        torch.manual_seed(0)
        model = tiny_model(num_positive=num_positive, targeted=True, tr=2)
        model.queue_labels.zero_()
        im_q, im_k, labels = tiny_batch()
        return model(im_q, im_k, torch.zeros_like(labels)).loss.item()

    assert loss(1000) == loss(14) != loss(13)


def test_ranks_sample_different_positives(monkeypatch):
    model, labels = tiny_model(K=120, num_positive=2), torch.tensor([0, 1, 2, 0])
    sums = []
    for rank in (0, 1):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        sums.append(model._choose_positives(labels)[0].vector)
    assert not torch.equal(*sums)


def test_filled_queue_holds_the_keys_and_must_be_a_multiple_of_the_batch():
    model, (_, im_k, labels) = tiny_model(), tiny_batch()
    model.queue_ptr.fill_(10)
    model.fill_queue(im_k, labels)
    torch.testing.assert_close(model.queue[:, [10, 11, 0, 1]].T, normalize(model.encoder_k(im_k), dim=1))
    assert model.queue_labels[0, [10, 11, 0, 1]].tolist() == labels.tolist() and model.queue_ptr.item() == 2
    with pytest.raises(ValueError, match=r"12\b.*\b5\b"):
        model.fill_queue(*tiny_batch(5)[1:])


def test_keys_that_are_not_finite_are_not_stored():
    """A damaged image has a key of NaN. An output that overflows gives a key with one NaN and zeros."""
    model, (im_q, im_k, labels) = tiny_model(), tiny_batch()
    queue, queue_labels = model.queue.clone(), model.queue_labels.clone()
    im_k[1] = torch.nan
    model(im_q, im_k, labels)
    assert torch.equal(model.queue[:, 1], queue[:, 1]) and model.queue_labels[0, 1] == queue_labels[0, 1]
    assert not (model.queue[:, [0, 2, 3]] == queue[:, [0, 2, 3]]).any()
    model.encoder_k.fc.bias.data[0] = torch.inf
    model.fill_queue(im_k, labels)
    assert torch.equal(model.queue[:, 4:], queue[:, 4:]) and torch.equal(model.queue_labels[:, 4:], queue_labels[:, 4:])


def test_queue_is_updated_after_the_loss():
    """The queue is empty and as long as the batch: an early update would give every anchor positives."""
    model = tiny_model(K=4, num_positive=0, m=1.0)
    model.queue_labels.fill_(-1)
    before = model.queue.clone()
    im_q, im_k, labels = tiny_batch()
    out = model(im_q, im_k, labels)
    k = normalize(model.encoder_k(im_k), dim=1)
    no_positives = [([], 0)] * 4
    expected, _ = oracle.loss(out.q, k, before, labels.tolist(), no_positives, model.T)
    torch.testing.assert_close(out.loss, expected)
    assert model.queue_labels[0].tolist() == labels.tolist()  # the queue holds the keys after the step
    torch.testing.assert_close(model.queue.T, k)


def test_momentum_update_precedes_the_keys():
    """With m = 0 the key encoder equals the query encoder, already for the keys of this step."""
    model = tiny_model(m=0.0)
    im_q, _, labels = tiny_batch()
    out = model(im_q, im_q, labels)
    assert torch.equal(model.encoder_k.fc.weight, model.encoder_q.fc.weight)
    torch.testing.assert_close(model.queue[:, :4].T, out.q.detach())


def test_only_the_query_encoder_has_gradients():
    model = tiny_model(targeted=True, sep_t=True)
    model(*tiny_batch()).loss.backward()
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None}
    assert with_gradient == {"encoder_q.fc.weight", "encoder_q.fc.bias"}


def test_sampled_positives_depend_on_seed_and_step():
    batch = tiny_batch(12)

    def loss(seed: int, step: int) -> float:
        torch.manual_seed(7)
        model = tiny_model(K=120)
        torch.rand(seed * 3 + step)  # other uses of the generator
        model.seed, model.step = seed, step
        return model(*batch).loss.item()

    assert loss(1, 5) == loss(1, 5)
    assert len({loss(1, 5), loss(1, 6), loss(2, 5)}) == 3


def test_assignment_is_kept_between_intervals():
    """With assignment_interval 3, the assignment is solved at steps 0 and 3, however the centroids change."""
    model = tiny_model(targeted=True, sep_t=True, assignment_interval=3)
    seen = []
    for order in ([0, 1, 2], [1, 2, 0], [1, 2, 0], [1, 2, 0]):
        model.class_centroid.copy_(model.optimal_target[order])
        model(*tiny_batch())
        seen.append(model.assignment.tolist())
    assert seen == [[0, 1, 2], [0, 1, 2], [0, 1, 2], [1, 2, 0]]


def test_queue_wraps_around():
    model = tiny_model()
    labels_seen = []
    for _ in range(5):
        im_q, im_k, labels = tiny_batch()
        model(im_q, im_k, labels)
        labels_seen += labels.tolist()
    assert int(model.queue_ptr) == 8  # 20 keys through a queue of 12
    assert model.queue_labels[0].tolist() == labels_seen[12:20] + labels_seen[8:12]
    torch.testing.assert_close(model.queue.norm(dim=0), torch.ones(12, dtype=torch.float64))


def test_queue_size_must_be_multiple_of_batch_size():
    with pytest.raises(ValueError, match=r"12\b.*\b5\b"):
        tiny_model()(*tiny_batch(5))


def test_targeted_step_without_targets_is_refused():
    model = tiny_model(targets=None)
    model(*tiny_batch())  # KCL needs no targets
    model.targeted = True
    with pytest.raises(ValueError, match="targets"):
        model(*tiny_batch())


def test_targets_must_be_unit_vectors():
    targets = unit_vectors(3, 4) * torch.tensor([[1.0], [2.0], [1.0]])
    refusal(lambda: KCL(TinyEncoder, 4, 12, num_classes=3, targets=targets), "row 1", "norm 2")


def test_state_dict_has_release_keys_and_shapes():
    model = tiny_model(mlp=True, tr=2)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    heads = {"fc.0.weight": (12, 12), "fc.0.bias": (12,), "fc.2.weight": (4, 12), "fc.2.bias": (4,)}
    assert shapes == {f"encoder_{e}.{name}": shape for e in "qk" for name, shape in heads.items()} | {
        "queue": (4, 12),
        "queue_labels": (1, 12),
        "queue_ptr": (1,),
        "class_centroid": (3, 4),
        "optimal_target": (6, 4),
    }
    assert model.queue_labels.dtype == model.queue_ptr.dtype == torch.int64


def test_target_copies_are_adjacent():
    targets = unit_vectors(3, 4)
    model = KCL(TinyEncoder, 4, 12, tr=2, num_classes=3, targets=targets)
    assert torch.equal(model.optimal_target[0::2], targets) and torch.equal(model.optimal_target[1::2], targets)
