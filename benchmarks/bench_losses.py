"""Measure the losses in the batch and those of one-stage methods, forward and backward, on given features.

In the batch: N = 1024 images, 2048 rows, D = 128, C = 100 long-tailed classes, k = 6, float32. In the authors' code
(the code released by the TSC authors), TSC adds 25 copies of each target to each view, 7048 rows in all. The floor is
the two matrix products that every implementation needs: the logits of the distinct rows and their gradient. The
textbook version computes a mask of positives and the log-softmax over all pairs of rows, like the published SupContrast
loss.

One stage: the sizes of ImageNet-LT with ResNet-50, C = 1000, from the recipes. The floor is the matrix products of the
loss: its logits, and the gradients of those factors that are trained.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks import common
from benchmarks.bench_head import TrivialEncoder, long_tailed_labels
from moco.classifier import EncoderClassifier, TargetClassifier
from moco.losses import bcl_loss, in_batch_loss, in_batch_target_loss, paco_loss

N, D, C, K, T, COPIES = 1024, 128, 100, 6, 0.07, 25
ROUNDS, ONE_STAGE_ROUNDS = 9, 25
FORMS = ("KCL", "TSC (paper)", "TSC (authors' code)")
CLASSES, WIDTH = 1000, 2048  # of ImageNet-LT and of ResNet-50's features


def textbook_loss(rows: Tensor, labels: Tensor, views: int) -> Tensor:
    """Compute the KCL loss over all pairs of rows. The other view of row i is row i + views."""
    logits = rows @ rows.T / T
    is_self = torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    is_other_view = is_self.roll(views, dims=1)
    same_class = (labels[:, None] == labels) & ~is_self & ~is_other_view
    priority = torch.rand(same_class.shape, device=rows.device).masked_fill(~same_class, -1).topk(K, dim=1)
    sampled = torch.zeros_like(logits).scatter_(1, priority.indices, (priority.values >= 0).float())
    mask = sampled + is_other_view.float()
    log_p = logits.masked_fill(is_self, -torch.inf).log_softmax(1).masked_fill(is_self, 0)
    return -((mask * log_p).sum(1) / mask.sum(1)).mean()


def measure(device: torch.device, form: str) -> str:
    """Return the table row of one form of the loss."""
    labels, classes = long_tailed_labels(N, C).to(device), torch.arange(C, device=device)
    targets = normalize(torch.randn(C, D, device=device), dim=1)
    views = normalize(targets[labels][:, None] + torch.randn(N, 2, D, device=device), dim=2).requires_grad_()
    loss_args = {"num_positive": K, "temperature": T} | (
        {"targets": targets, "target_class": classes} if form != "KCL" else {}
    )
    distinct_rows = torch.cat([views.detach().flatten(0, 1), *([targets] if form != "KCL" else [])])

    def loss() -> None:
        if form == "TSC (paper)":
            in_batch_target_loss(views, labels, target_weight=0.2, **loss_args).loss.backward()
        else:
            in_batch_loss(views, labels, target_repeat=COPIES, **loss_args).backward()

    def textbook() -> None:
        copies, copy_labels = targets.repeat(COPIES, 1), classes.repeat(COPIES)
        parts = [(view, labels) for view in views.unbind(1)]
        if form == "TSC (authors' code)":
            parts = [(torch.cat([view, copies]), torch.cat([row_labels, copy_labels])) for view, row_labels in parts]
        rows, row_labels = (torch.cat(part) for part in zip(*parts, strict=True))
        textbook_loss(rows, row_labels, len(rows) // 2).backward()

    def floor() -> None:
        logits = distinct_rows @ distinct_rows.T
        logits @ distinct_rows

    functions = {"floor": floor, "loss": loss} | ({"textbook": textbook} if form != "TSC (paper)" else {})
    times = common.time_interleaved(functions, device, ROUNDS)
    memory = common.peak_memory(loss, device) / 2**20
    notes = (
        f"peak memory {memory:.1f} MiB; a float32 matrix of all pairs has {4 * count_rows(form) ** 2 / 2**20:.0f} MiB"
    )
    return common.row(f"in-batch loss, {form}", times["loss"], times["floor"], times.get("textbook"), notes)


def count_rows(form: str) -> int:
    """Return the number of rows of the loss, including copies of targets."""
    return {"KCL": 2 * N, "TSC (paper)": 2 * N + C, "TSC (authors' code)": 2 * (N + COPIES * C)}[form]


class OneStage(NamedTuple):
    """A loss to measure, its matrix products, and the number of its logits."""

    loss: Callable[[], Tensor]
    floor: Callable[[], object]
    logits: int


def unit_rows(*shape: int) -> Tensor:
    return normalize(torch.randn(*shape), dim=-1)


def build_bcl(device: torch.device, images: int = 256, dim: int = 1024) -> OneStage:
    """Build BCL's loss. Views and prototypes are trained, so both factors of the logits have a gradient."""
    labels = long_tailed_labels(images, CLASSES).to(device)
    views = unit_rows(images, 2, dim).to(device).requires_grad_()
    prototypes = unit_rows(CLASSES, dim).to(device).requires_grad_()
    rows = views.detach().flatten(0, 1)
    columns = torch.cat([rows, prototypes.detach()])

    def floor() -> None:
        logits = rows @ columns.T
        logits @ columns, logits.T @ rows

    return OneStage(lambda: bcl_loss(views, labels, prototypes, 0.07), floor, len(rows) * len(columns))


def build_paco(device: torch.device, images: int = 128, dim: int = 128, queue: int = 8192) -> OneStage:
    """Build PaCo's loss on given class logits. Of the columns, only the anchors have a gradient."""
    labels, anchors = long_tailed_labels(images, CLASSES).to(device), unit_rows(images, dim).to(device).requires_grad_()
    others = unit_rows(images + queue, dim).to(device)
    column_labels = torch.cat([labels, labels, long_tailed_labels(queue, CLASSES).to(device)])
    class_logits = torch.randn(images, CLASSES, device=device).requires_grad_()
    prior = torch.full((CLASSES,), 1 / CLASSES, device=device).log()
    fixed = torch.cat([anchors.detach(), others])

    def loss() -> Tensor:
        columns = torch.cat([anchors, others])
        return paco_loss(anchors, labels, class_logits, prior, columns, column_labels, alpha=0.05)

    def floor() -> None:
        logits = fixed[:images] @ fixed.T
        logits @ fixed, logits[:, :images].T @ fixed[:images]

    return OneStage(loss, floor, images * (CLASSES + len(fixed)))


def build_joint(device: torch.device, kind: str, images: int = 256) -> OneStage:
    """Build the loss of --joint. The linear classifier has a gradient, and the targets do not."""
    labels, counts = long_tailed_labels(images, CLASSES).to(device), torch.ones(CLASSES)
    width = WIDTH if kind == "linear" else D
    features, weight = torch.randn(images, width, device=device).requires_grad_(), unit_rows(CLASSES, width).to(device)
    if kind == "linear":
        classifier = EncoderClassifier(TrivialEncoder(width), counts).to(device)
    else:
        classifier = TargetClassifier(TrivialEncoder(width), counts, T, lambda: weight).to(device)

    def loss() -> Tensor:
        classifier.features = features
        return classifier.loss(classifier.logits(), labels)

    def floor() -> None:
        logits = features.detach() @ weight.T
        logits @ weight
        if kind == "linear":
            logits.T @ features.detach()

    return OneStage(loss, floor, images * CLASSES)


def measure_one_stage(name: str, one: OneStage, device: torch.device) -> str:
    """Return the table row of a loss of a one-stage method."""

    def step() -> None:
        one.loss().backward()

    times = common.time_interleaved({"floor": one.floor, "step": step}, device, ONE_STAGE_ROUNDS)
    notes = f"peak memory {common.peak_memory(step, device) / 2**20:.1f} MiB; the float32 logits have "
    return common.row(name, times["step"], times["floor"], notes=f"{notes}{4 * one.logits / 2**20:.1f} MiB")


def main() -> None:
    torch.manual_seed(0)
    device = common.device_from_argv()
    print(common.HEADER)
    for form in FORMS:
        print(measure(device, form), flush=True)
    for name, one in {
        "bcl_loss, 512 anchors, D = 1024": build_bcl(device),
        "paco_loss, 128 anchors, Q = 8192": build_paco(device),
        "--joint, linear, 256 images, d = 2048": build_joint(device, "linear"),
        "--joint, targets, 256 images, D = 128": build_joint(device, "targets"),
    }.items():
        print(measure_one_stage(name, one, device), flush=True)


if __name__ == "__main__":
    main()
