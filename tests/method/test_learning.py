"""Training does what the paper says: classes contract, centroids go to their targets. A collapse is reported."""

import pytest
import torch
from torch.nn.functional import normalize

import main_moco_supcon_imba as stage1
from moco.builder import KCL
from moco.methods.collapse import CollapseDetector
from moco.targets.generation import generate
from tests.refusals import line_with
from tests.tiny import IMAGE, TinyEncoder

CLASSES = 3


def batches(steps: int):
    """Three classes as noisy points in the space of images, 60 % / 30 % / 10 %."""
    centres = torch.randn(CLASSES, *IMAGE)
    for _ in range(steps):
        labels = torch.multinomial(torch.tensor([0.6, 0.3, 0.1]), 32, replacement=True)
        im_q, im_k = (centres[labels] + 0.3 * torch.randn(32, *IMAGE) for _ in range(2))
        yield im_q, im_k, labels


def train(targeted: bool) -> tuple[KCL, torch.Tensor, torch.Tensor]:
    """The model after 300 steps, with the last batch's features and labels."""
    model = KCL(
        TinyEncoder, 8, 128, m=0.9, targeted=targeted, sep_t=True, num_classes=CLASSES, targets=generate(CLASSES, 8)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for im_q, im_k, labels in batches(300):
        out = model(im_q, im_k, labels)
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
    return model, out.q.detach(), labels


def test_kcl_brings_a_class_together_and_classes_apart():
    _, q, labels = train(targeted=False)
    cosine = q @ q.T
    same = labels[:, None] == labels[None]
    assert cosine[same].mean() > 0.9
    assert cosine[~same].mean() < 0.2


def test_tsc_brings_every_class_to_its_own_target():
    model, _, _ = train(targeted=True)
    cosine = (model.class_centroid * model.optimal_target[model.assignment]).sum(1)
    assert (cosine > 0.9).all(), cosine
    assert sorted(model.assignment.tolist()) == [0, 1, 2]


def near(spread: float, number: int = 64) -> torch.Tensor:
    """Unit vectors about one of R³."""
    torch.manual_seed(0)
    return normalize(torch.tensor([1.0, 2.0, 2.0]) / 3 + spread * torch.randn(number, 3), dim=1)


@pytest.mark.parametrize(
    ("epochs", "times"),
    [
        ([near(0.01), near(0.01)], 1),
        ([near(0.01)] * 4, 1),
        ([near(0.01), near(0.3), near(0.01)], 0),  # it found its way out
        ([near(0.1)] * 3, 0),
        ([near(0.01, number=8)] * 3, 0),  # may be one class
    ],
)
def test_two_epochs_in_a_row_that_end_in_one_point_are_reported_once(epochs, times, capsys):
    watch = CollapseDetector()
    for q in epochs:
        watch.step(q)
        watch.end_epoch()
    assert capsys.readouterr().out.count("--warmup-epochs") == times  # which is the advice


def test_steps_too_large_for_few_dimensions_end_in_one_point_and_small_ones_do_not(digits_root, tmp_path, capsys):
    """The real thing, on the digits: KCL in the batch in three dimensions."""
    flags = "--dataset digits -a lenet --image-size 12 --contrast batch --mlp --cos -b 64 --moco-dim 3 --epochs 3"
    where = f"--seed 0 -p 0 --data-root {digits_root} --device cpu -j 0 --device-aug"
    stage1.main([*f"{flags} --lr 0.1 {where} --run-dir {tmp_path}/large".split()])
    line_with(capsys.readouterr().out, "--warmup-epochs", "--lr", "--moco-t")  # the advice
    stage1.main([*f"{flags} --lr 0.003 {where} --run-dir {tmp_path}/small".split()])
    assert "--warmup-epochs" not in capsys.readouterr().out
