"""Training does what the paper says: classes contract, and TSC's centroids go to their targets."""

import torch

from moco.builder import KCL
from moco.targets.generation import generate
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
