"""`in_batch_loss` against the loops of loops.py in float64, and its invariances."""

import pytest
import torch

from moco.losses import in_batch_loss
from moco.losses.positives import RANDOM_INT_BOUND
from tests.in_batch import (
    BOTH_DENOMINATORS,
    C,
    D,
    N,
    assert_close,
    gradients,
    loops,
    make_target_args,
    seeded_generator,
)
from tests.tiny import unit_vectors

pytestmark = pytest.mark.usefixtures("block")


@BOTH_DENOMINATORS
@pytest.mark.parametrize("num_positive", [0, 3, 12])
@pytest.mark.parametrize(("repeat", "anchors"), [(0, "all"), (1, "all"), (3, "all"), (3, "targets")])
def test_loss_and_gradients_match_loops(batch, num_positive, repeat, anchors, unbiased):
    target_args = make_target_args(repeat) if repeat else {}
    number_of_rows = 2 * (N + C * repeat)
    draws = torch.randint(RANDOM_INT_BOUND, (number_of_rows, num_positive), generator=seeded_generator()).tolist()
    ours = in_batch_loss(
        batch["views"], batch["labels"], num_positive, 0.3, **target_args, anchors=anchors, unbiased=unbiased,
        generator=seeded_generator(),
    )  # fmt: skip
    no_targets = {"targets": unit_vectors(0, D), "target_class": torch.zeros(0, dtype=torch.long), "target_repeat": 1}
    theirs = loops.loss(
        *batch.values(), num_positive, 0.3, *(target_args or no_targets).values(), anchors, unbiased, draws
    )
    assert_close(ours, theirs)
    assert_close(gradients(ours, batch | target_args), gradients(theirs, batch | target_args))


def test_loss_with_25_target_copies_matches_loops():
    torch.manual_seed(0)
    batch, target_args = (
        {"views": unit_vectors(N, 2, D, dim=2), "labels": torch.randint(0, C, (N,))},
        make_target_args(25),
    )
    assert_close(
        in_batch_loss(**batch, temperature=0.07, **target_args),
        loops.loss(*batch.values(), 0, 0.07, *target_args.values(), "all", False, None),
    )


@BOTH_DENOMINATORS
@pytest.mark.parametrize("num_positive", [0, 2])
@pytest.mark.parametrize("anchors", ["all", "targets"])
@pytest.mark.parametrize("batch", [0], indirect=True)
def test_gradient_matches_finite_differences(batch, num_positive, anchors, unbiased):
    """Four images are enough: the test above compares the gradients of seven images with the loops."""
    target_args, labels = make_target_args(), batch["labels"][:4]
    views = batch["views"].detach()[:4].requires_grad_()

    def loss_of(views, targets):
        options = {"anchors": anchors, "unbiased": unbiased, "generator": seeded_generator()}
        return in_batch_loss(views, labels, num_positive, 0.3, **(target_args | {"targets": targets}), **options)

    assert torch.autograd.gradcheck(loss_of, (views, target_args["targets"]))


@BOTH_DENOMINATORS
@pytest.mark.parametrize("num_positive", [0, 2])
def test_target_copies_equal_additional_images(batch, num_positive, unbiased):
    """Both have the same row order, so the same rows are sampled."""
    target_args = make_target_args()
    copies = target_args["targets"].repeat_interleave(3, dim=0)
    views = torch.cat([batch["views"], torch.stack([copies, copies], dim=1)])
    labels = torch.cat([batch["labels"], target_args["target_class"].repeat_interleave(3)])
    explicit = in_batch_loss(views, labels, num_positive, unbiased=unbiased, generator=seeded_generator())
    ours = in_batch_loss(
        **batch, num_positive=num_positive, **target_args, unbiased=unbiased, generator=seeded_generator()
    )
    assert_close(ours, explicit)
    assert_close(gradients(ours, batch | target_args), gradients(explicit, batch | target_args))


@BOTH_DENOMINATORS
@pytest.mark.parametrize("has_targets", [False, True], ids=["without targets", "with targets"])
def test_loss_is_invariant_to_order_and_class_names(batch, has_targets, unbiased):
    options = {"unbiased": unbiased} | (make_target_args() if has_targets else {})
    before = in_batch_loss(**batch, **options)
    order = torch.randperm(N)
    after = options | ({k: options[k].flip(0) for k in ("targets", "target_class")} if has_targets else {})
    if has_targets:
        after["target_class"] = after["target_class"] * -7 + 10**12
    assert_close(in_batch_loss(batch["views"][order].flip(1), batch["labels"][order] * -7 + 10**12, **after), before)


@BOTH_DENOMINATORS
@pytest.mark.parametrize("anchors", ["all", "targets"])
@pytest.mark.parametrize("num_positive", [2 * N + 6 * C - 3, 10**12], ids=["one less than all rows", "more than rows"])
def test_num_positive_of_class_size_uses_whole_class(batch, num_positive, anchors, unbiased):
    options = make_target_args() | {"anchors": anchors, "unbiased": unbiased}
    assert_close(in_batch_loss(**batch, num_positive=num_positive, **options), in_batch_loss(**batch, **options))


def test_sampling_depends_only_on_the_generator(batch):
    options = make_target_args() | {"num_positive": 2}
    first = in_batch_loss(**batch, **options, generator=seeded_generator(1))
    torch.manual_seed(9)
    assert torch.equal(first, in_batch_loss(**batch, **options, generator=seeded_generator(1)))
    assert not torch.equal(first, in_batch_loss(**batch, **options, generator=seeded_generator(2)))
    torch.manual_seed(1)
    assert torch.equal(first, in_batch_loss(**batch, **options))  # without a generator: torch's default generator
