"""Measure the contrastive loss of KCL and of TSC, forward and backward, with a trivial encoder.

N = 256 anchors, Q = 65536, D = 128, C = 1000 long-tailed classes, k = 6, float32. The floor is
the two matrix products that every implementation needs: the logits and their gradient. The
textbook version computes the (N, Q) mask of positives and the log-softmax over all logits.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from benchmarks import common
from moco.builder import KCL

N, Q, D, C, K, T = 256, 65536, 128, 1000, 6, 0.07
ROUNDS = 15


class TrivialEncoder(nn.Module):
    """Encoder with a single linear layer `fc`, the identity at first. Its input images are the features."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.fc = nn.Linear(num_classes, num_classes, bias=False)
        nn.init.eye_(self.fc.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)


def textbook_loss(model: KCL, q: Tensor, k: Tensor, labels: Tensor) -> Tensor:
    """Compute the loss with a mask over all logits. If the model is targeted, the loss is that of TSC with --sep_t."""
    columns = [(q * k).sum(1, keepdim=True), q @ model.queue]  # (N, 1), (N, Q)
    same_class = labels[:, None] == model.queue_labels  # (N, Q)
    priority = torch.rand(same_class.shape, device=q.device).masked_fill(~same_class, -1).topk(K, dim=1)
    sampled = torch.zeros_like(priority.values.new_empty(same_class.shape))  # (N, Q)
    sampled.scatter_(1, priority.indices, (priority.values >= 0).float())
    masks = [torch.ones_like(columns[0]), sampled]
    if model.targeted:
        columns.append(q @ model.optimal_target.T)  # (N, C)
        masks.append(model.tw * nn.functional.one_hot(model.assignment[labels], C))
    mask = torch.cat(masks, dim=1)  # (N, 1 + Q + C)
    log_p = (torch.cat(columns, dim=1) / T).log_softmax(1)
    return -((mask * log_p).sum(1) / (mask > 0).sum(1)).mean()


def long_tailed_labels(size: int, classes: int = C) -> Tensor:
    """Sample (size,) labels. The frequency of class c is proportional to (c + 1)^-0.8."""
    weight = torch.arange(1, classes + 1).float() ** -0.8
    return torch.multinomial(weight, size, replacement=True)


def settled_model(device: torch.device, targeted: bool) -> KCL:
    """Return a model with a full queue and centroids near the targets."""
    targets = normalize(torch.randn(C, D), dim=1)
    model = KCL(
        TrivialEncoder, D, Q, T=T, num_positive=K, targeted=targeted, sep_t=True, tw=0.2, num_classes=C, targets=targets
    )
    model.queue_labels.copy_(long_tailed_labels(Q)[None])
    model.class_centroid.copy_(targets[torch.randperm(C)])
    return model.to(device)


def measure(device: torch.device, targeted: bool) -> str:
    """Return the table row of KCL, or of TSC if targeted."""
    model = settled_model(device, targeted)
    labels = long_tailed_labels(N).to(device)
    images = [normalize(model.class_centroid[labels] + 0.1 * torch.randn(N, D, device=device), dim=1) for _ in range(2)]
    negatives = torch.cat([model.queue, model.optimal_target.T], dim=1) if targeted else model.queue.clone()

    def step() -> None:
        model(*images, labels).loss.backward()

    def textbook() -> None:
        q = normalize(model.encoder_q(images[0]), dim=1)
        textbook_loss(model, q, images[1], labels).backward()

    def floor() -> None:
        logits = images[0] @ negatives
        logits @ negatives.T

    times = common.time_interleaved({"floor": floor, "step": step, "textbook": textbook}, device, ROUNDS)
    memory = common.peak_memory(step, device) / (4 * N * (Q + C))
    notes = f"peak memory {memory:.2f} × the float32 logits"
    name = "head, TSC with assignment" if targeted else "head, KCL"
    return common.row(name, times["step"], times["floor"], times["textbook"], notes)


def main() -> None:
    torch.manual_seed(0)
    print(common.HEADER)
    for targeted in (False, True):
        print(measure(common.device_from_argv(), targeted), flush=True)


if __name__ == "__main__":
    main()
