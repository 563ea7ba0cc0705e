"""Measure the in-batch losses, forward and backward, on given features.

N = 1024 images, 2048 rows, D = 128, C = 100 long-tailed classes, k = 6, float32. TSC as in the authors' code
("release", the code released by the TSC authors) has 25 copies of each target in each view, 7048 rows in all. The
floor is the two matrix products that every implementation needs: the logits of the distinct rows and their gradient.
The textbook version has every row, a mask of positives over all pairs and the whole log-softmax, like the published
SupContrast loss.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks import common
from benchmarks.bench_head import long_tailed_labels
from moco.losses import in_batch_loss, in_batch_target_loss

N, D, C, K, T, COPIES = 1024, 128, 100, 6, 0.07, 25
ROUNDS = 9
FORMS = ("KCL", "TSC, paper", "TSC, release")


def textbook_loss(rows: Tensor, labels: Tensor, views: int) -> Tensor:
    """Compute KCL over all rows. The other view of row i is row i + views."""
    logits = rows @ rows.T / T
    itself = torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    other = itself.roll(views, dims=1)
    same = (labels[:, None] == labels) & ~itself & ~other
    lots = torch.rand(same.shape, device=rows.device).masked_fill(~same, -1).topk(K, dim=1)
    drawn = torch.zeros_like(logits).scatter_(1, lots.indices, (lots.values >= 0).float())
    mask = drawn + other.float()
    log_p = logits.masked_fill(itself, -torch.inf).log_softmax(1).masked_fill(itself, 0)
    return -((mask * log_p).sum(1) / mask.sum(1)).mean()


def measure(where: torch.device, form: str) -> str:
    labels, classes = long_tailed_labels(N, C).to(where), torch.arange(C, device=where)
    targets = normalize(torch.randn(C, D, device=where), dim=1)
    views = normalize(targets[labels][:, None] + torch.randn(N, 2, D, device=where), dim=2).requires_grad_()
    given = {"num_positive": K, "temperature": T} | (
        {"targets": targets, "target_class": classes} if form != "KCL" else {}
    )
    different = torch.cat([views.detach().flatten(0, 1), *([targets] if form != "KCL" else [])])

    def loss() -> None:
        if form == "TSC, paper":
            in_batch_target_loss(views, labels, target_weight=0.2, **given).loss.backward()
        else:
            in_batch_loss(views, labels, target_repeat=COPIES, **given).backward()

    def textbook() -> None:
        copies, number = targets.repeat(COPIES, 1), classes.repeat(COPIES)
        parts = [(view, labels) for view in views.unbind(1)]
        if form == "TSC, release":
            parts = [(torch.cat([view, copies]), torch.cat([y, number])) for view, y in parts]
        rows, y = (torch.cat(part) for part in zip(*parts, strict=True))
        textbook_loss(rows, y, len(rows) // 2).backward()

    def floor() -> None:
        logits = different @ different.T
        logits @ different

    works = {"floor": floor, "loss": loss} | ({"textbook": textbook} if form != "TSC, paper" else {})
    times = common.interleaved(works, where, ROUNDS)
    memory = common.peak_memory(loss, where) / 2**20
    notes = f"peak memory {memory:.1f} MiB, of one float32 matrix of all rows {4 * rows_of(form) ** 2 / 2**20:.0f}"
    return common.row(f"in the batch, {form}", times["loss"], times["floor"], times.get("textbook"), notes)


def rows_of(form: str) -> int:
    return {"KCL": 2 * N, "TSC, paper": 2 * N + C, "TSC, release": 2 * (N + COPIES * C)}[form]


def main() -> None:
    torch.manual_seed(0)
    print(common.HEADER)
    for form in FORMS:
        print(measure(common.device(), form), flush=True)


if __name__ == "__main__":
    main()
