"""Training contracts classes and moves centroids to their targets. A collapse is reported."""

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
    """Yield batches of three classes, each a noisy point in image space, with shares of 60 %, 30 % and 10 %."""
    centres = torch.randn(CLASSES, *IMAGE)
    for _ in range(steps):
        labels = torch.multinomial(torch.tensor([0.6, 0.3, 0.1]), 32, replacement=True)
        im_q, im_k = (centres[labels] + 0.3 * torch.randn(32, *IMAGE) for _ in range(2))
        yield im_q, im_k, labels


def train(targeted: bool) -> tuple[KCL, torch.Tensor, torch.Tensor]:
    """Train for 300 steps. Return the model and the features and labels of the last batch."""
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


def test_kcl_contracts_and_separates_classes():
    _, q, labels = train(targeted=False)
    cosine = q @ q.T
    same = labels[:, None] == labels[None]
    assert cosine[same].mean() > 0.9
    assert cosine[~same].mean() < 0.2


def test_tsc_moves_each_class_to_its_target():
    model, _, _ = train(targeted=True)
    cosine = (model.class_centroid * model.optimal_target[model.assignment]).sum(1)
    assert (cosine > 0.9).all(), cosine
    assert sorted(model.assignment.tolist()) == [0, 1, 2]


def points_near_one(spread: float, count: int = 64) -> torch.Tensor:
    """Return unit vectors near one unit vector of R³."""
    torch.manual_seed(0)
    return normalize(torch.tensor([1.0, 2.0, 2.0]) / 3 + spread * torch.randn(count, 3), dim=1)


@pytest.mark.parametrize(
    ("epochs", "times"),
    [
        ([points_near_one(0.01)] * 5, 1),
        ([points_near_one(0.01)] * 8, 1),
        ([*[points_near_one(0.01)] * 4, points_near_one(0.3), points_near_one(0.01)], 0),  # recovers in the fifth epoch
        ([points_near_one(0.1)] * 5, 0),
        ([points_near_one(0.01, count=8)] * 5, 0),  # eight images may be one class
    ],
)
def test_lasting_collapse_is_reported_once(epochs, times, capsys):
    detector = CollapseDetector()
    for q in epochs:
        detector.step(q)
        detector.end_epoch()
    assert capsys.readouterr().out.count("--warmup-epochs") == times  # the suggested flag


def test_end_of_a_reported_collapse_is_reported(capsys):
    detector = CollapseDetector()
    for q in [*[points_near_one(0.01)] * 5, points_near_one(0.3), points_near_one(0.3)]:
        detector.step(q)
        detector.end_epoch()
    assert capsys.readouterr().out.count("note") == 2


def test_collapse_with_large_learning_rate_is_reported(digits_root, tmp_path, capsys):
    """In-batch KCL on the digits in three dimensions collapses with a large learning rate, but not with a small one."""
    flags = "--dataset digits -a lenet --image-size 12 --contrast batch --mlp --cos -b 64 --moco-dim 3 --epochs 5"
    run_flags = f"--seed 0 -p 0 --data-root {digits_root} --device cpu -j 0"
    stage1.main([*f"{flags} --lr 0.1 {run_flags} --run-dir {tmp_path}/large".split()])
    line_with(capsys.readouterr().out, "--warmup-epochs", "--lr", "--moco-t")  # the suggested flags
    stage1.main([*f"{flags} --lr 0.003 {run_flags} --run-dir {tmp_path}/small".split()])
    assert "--warmup-epochs" not in capsys.readouterr().out
