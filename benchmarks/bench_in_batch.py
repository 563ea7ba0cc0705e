"""Measure the in-batch losses, forward and backward, on given features.

N = 1024 images, 2048 rows, D = 128, C = 100 long-tailed classes, k = 6, float32. In the authors' code (the code
released by the TSC authors), TSC adds 25 copies of each target to each view, 7048 rows in all. The floor is the two
matrix products that every implementation needs: the logits of the distinct rows and their gradient. The textbook
version computes a mask of positives and the log-softmax over all pairs of rows, like the published SupContrast loss.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks import common
from benchmarks.bench_head import long_tailed_labels
from moco.losses import in_batch_loss, in_batch_target_loss

N, D, C, K, T, COPIES = 1024, 128, 100, 6, 0.07, 25
ROUNDS = 9
FORMS = ("KCL", "TSC (paper)", "TSC (authors' code)")


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


def main() -> None:
    torch.manual_seed(0)
    print(common.HEADER)
    for form in FORMS:
        print(measure(common.device_from_argv(), form), flush=True)


if __name__ == "__main__":
    main()
