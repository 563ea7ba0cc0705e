"""`in_batch_loss` against the loops of loops.py in float64, and its symmetries."""

import pytest
import torch

from moco.losses import in_batch_loss
from moco.losses.positives import LARGEST_DRAW
from tests.in_batch import BOTH, C, D, N, close, gradients, loops, seeded, with_targets
from tests.tiny import unit

pytestmark = pytest.mark.usefixtures("block")


@BOTH
@pytest.mark.parametrize("num_positive", [0, 3, 12])
@pytest.mark.parametrize(("repeat", "anchors"), [(0, "all"), (1, "all"), (3, "all"), (3, "targets")])
def test_value_and_gradients_are_the_loops(batch, num_positive, repeat, anchors, unbiased):
    given = with_targets(repeat) if repeat else {}
    number_of_rows = 2 * (N + C * repeat)
    draws = torch.randint(LARGEST_DRAW, (number_of_rows, num_positive), generator=seeded()).tolist()
    ours = in_batch_loss(
        batch["views"], batch["labels"], num_positive, 0.3, **given, anchors=anchors, unbiased=unbiased,
        generator=seeded(),
    )  # fmt: skip
    none = {"targets": unit(0, D), "target_class": torch.zeros(0, dtype=torch.long), "target_repeat": 1}
    theirs = loops.loss(*batch.values(), num_positive, 0.3, *(given or none).values(), anchors, unbiased, draws)
    close(ours, theirs)
    close(gradients(ours, batch | given), gradients(theirs, batch | given))


def test_the_releases_number_of_copies():
    torch.manual_seed(0)
    batch, given = {"views": unit(N, 2, D, dim=2), "labels": torch.randint(0, C, (N,))}, with_targets(25)
    close(
        in_batch_loss(**batch, temperature=0.07, **given),
        loops.loss(*batch.values(), 0, 0.07, *given.values(), "all", False, None),
    )


@BOTH
@pytest.mark.parametrize("num_positive", [0, 2])
@pytest.mark.parametrize("anchors", ["all", "targets"])
@pytest.mark.parametrize("batch", [0], indirect=True)
def test_the_gradient_is_that_of_finite_differences(batch, num_positive, anchors, unbiased):
    """On four images, as the gradients of seven are compared with those of the loops."""
    given, labels = with_targets(), batch["labels"][:4]
    views = batch["views"].detach()[:4].requires_grad_()

    def of(views, targets):
        options = {"anchors": anchors, "unbiased": unbiased, "generator": seeded()}
        return in_batch_loss(views, labels, num_positive, 0.3, **(given | {"targets": targets}), **options)

    assert torch.autograd.gradcheck(of, (views, given["targets"]))


@BOTH
@pytest.mark.parametrize("num_positive", [0, 2])
def test_copies_of_targets_are_as_many_more_images(batch, num_positive, unbiased):
    """With the same draws: the rows are in one order."""
    given = with_targets()
    copies = given["targets"].repeat_interleave(3, dim=0)
    views = torch.cat([batch["views"], torch.stack([copies, copies], dim=1)])
    labels = torch.cat([batch["labels"], given["target_class"].repeat_interleave(3)])
    explicit = in_batch_loss(views, labels, num_positive, unbiased=unbiased, generator=seeded())
    ours = in_batch_loss(**batch, num_positive=num_positive, **given, unbiased=unbiased, generator=seeded())
    close(ours, explicit)
    close(gradients(ours, batch | given), gradients(explicit, batch | given))


@BOTH
@pytest.mark.parametrize("given", [False, True], ids=["without targets", "with targets"])
def test_nothing_depends_on_the_order_of_images_views_targets_or_names_of_classes(batch, given, unbiased):
    options = {"unbiased": unbiased} | (with_targets() if given else {})
    before = in_batch_loss(**batch, **options)
    order = torch.randperm(N)
    after = options | ({k: options[k].flip(0) for k in ("targets", "target_class")} if given else {})
    if given:
        after["target_class"] = after["target_class"] * -7 + 10**12
    close(in_batch_loss(batch["views"][order].flip(1), batch["labels"][order] * -7 + 10**12, **after), before)


@BOTH
@pytest.mark.parametrize("anchors", ["all", "targets"])
@pytest.mark.parametrize("num_positive", [2 * N + 6 * C - 3, 10**12], ids=["one less than all rows", "more than rows"])
def test_as_many_positives_as_the_class_has_is_the_whole_class(batch, num_positive, anchors, unbiased):
    options = with_targets() | {"anchors": anchors, "unbiased": unbiased}
    close(in_batch_loss(**batch, num_positive=num_positive, **options), in_batch_loss(**batch, **options))


def test_the_draws_follow_the_generator_alone(batch):
    options = with_targets() | {"num_positive": 2}
    first = in_batch_loss(**batch, **options, generator=seeded(1))
    torch.manual_seed(9)
    assert torch.equal(first, in_batch_loss(**batch, **options, generator=seeded(1)))
    assert not torch.equal(first, in_batch_loss(**batch, **options, generator=seeded(2)))
    torch.manual_seed(1)
    assert torch.equal(first, in_batch_loss(**batch, **options))  # None: torch's own
