"""Measure the training step of stage 1, compared with its encoders only.

resnet18, 32 px, batch 64, D = 128, Q = 65536, k = 6, --mlp: KCL, and TSC with C = 1000 long-tailed classes,
--sep_t --tw 0.2. The step is everything between two batches: both encoders, momentum update, centroids and
assignment, loss, queue, backward, optimiser, metrics. The floor is the encoders only: forward q, forward k
without gradient, and backward, without optimiser and momentum update. The textbook version is the step with a mask
over all logits. benchmarks/gpu measures resnet50 at 224 px on a GPU.

The last two rows measure flags that save memory, forward and backward at 64 px. Their floor is the step without the
flag.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks import common
from benchmarks.bench_head import C, D, K, Q, T, long_tailed_labels, textbook_loss
from moco.builder import KCL
from moco.encoders import get_encoder
from moco.encoders.memory import recompute_blocks
from utils.measure.metrics import Means, in_top_k
from utils.optimizers import sgd
from utils.run.compute import ComputeConfig

SMALL = ("resnet18", 32, 64)  # arch, pixels, batch
LARGER, PARTS = ("resnet18", 64, 64), 4
ROUNDS = 15
WARMUP_STEPS = 3  # not timed: they allocate the optimiser's buffers and solve the first assignment
NO_FLAGS: dict = {}  # arguments of ComputeConfig with all flags off
RECIPE = (0.03, 0.9, 1e-4)  # learning rate, momentum, weight decay


def settled_model(arch: str, pixels: int, targeted: bool, classes: int = C, queue: int = Q) -> KCL:
    """Return a model with a full queue and centroids near the targets, as it is after some epochs."""
    targets = normalize(torch.randn(classes, D), dim=1)
    options = {"targeted": targeted, "sep_t": True, "tw": 0.2, "num_classes": classes, "targets": targets}
    model = KCL(get_encoder(arch, pixels), D, queue, T=T, mlp=True, num_positive=K, **options)
    model.queue_labels.copy_(long_tailed_labels(queue, classes)[None])
    noise = 0.02 * torch.randn(classes, D)
    model.class_centroid.copy_(normalize(targets[torch.randperm(classes)] + noise, dim=1))
    return model


def random_batch(batch: int, pixels: int, device: torch.device, classes: int = C) -> tuple[Tensor, Tensor, Tensor]:
    """Return two views, (batch, 3, pixels, pixels) each, and labels, (batch,), on the device."""
    views = torch.randn(2, batch, 3, pixels, pixels, device=device)
    return views[0], views[1], long_tailed_labels(batch, classes).to(device)


def step_functions(
    device: torch.device, size: tuple, flags: dict, targeted: bool, classes: int = C, queue: int = Q
) -> dict[str, Callable[[], None]]:
    """Return the functions to measure, `floor`, `step` and `textbook`, for one model and one batch."""
    arch, pixels, batch = size
    compute = ComputeConfig(device, **flags)
    model = settled_model(arch, pixels, targeted, classes, queue).to(device)
    compute.apply_to(model.encoder_q, model.encoder_k)
    im_q, im_k, labels = random_batch(batch, pixels, device, classes)
    optimizer, means = sgd(model.parameters(), *RECIPE), Means("step", device)

    def encoders() -> tuple[Tensor, Tensor]:
        with compute.autocast():
            q = model.encoder_q(im_q).float()
            with torch.no_grad():
                return q, model.encoder_k(im_k).float()

    def floor() -> None:
        optimizer.zero_grad(set_to_none=True)
        q, _ = encoders()
        q.sum().backward()

    def step() -> None:
        with compute.autocast():
            out = model(im_q, im_k, labels)
        compute.step(out.loss, optimizer)
        top1, top5 = in_top_k(out.key_rank, 1), in_top_k(out.key_rank, 5)
        parts = {"loss_class": out.loss_class, "loss_target": out.loss_target}
        means.add(batch, loss=out.loss, top1=top1, top5=top5, **parts)

    def textbook() -> None:
        model._update_key_encoder()
        q, k = (normalize(features, dim=1) for features in encoders())
        if targeted:
            with torch.no_grad():
                model._update_centroids(q, labels)
                model._assigned_targets(labels)
        compute.step(textbook_loss(model, q, k, labels), optimizer)
        model._enqueue(k, labels)

    for _ in range(WARMUP_STEPS):
        step()
    return {"floor": floor, "step": step, "textbook": textbook}


def measure(device: torch.device, size: tuple, flags: dict, targeted: bool) -> str:
    """Return a table row, with the images per second of the step."""
    times = common.time_interleaved(step_functions(device, size, flags, targeted), device, ROUNDS)
    arch, pixels, batch = size
    name = f"step, {'TSC' if targeted else 'KCL'}, {arch}, {pixels} px, batch {batch}"
    notes = f"{batch / sorted(times['step'])[ROUNDS // 2]:.0f} images/s"
    return common.row(name, times["step"], times["floor"], times["textbook"], notes)


def measure_memory(device: torch.device, flag: str) -> str:
    """Return a table row for a flag that saves memory, with the peak memory with and without the flag."""
    arch, pixels, batch_size = LARGER
    plain, saving = (settled_model(arch, pixels, targeted=False, queue=4096).to(device) for _ in range(2))
    batch = random_batch(batch_size, pixels, device)
    if flag == "--grad-checkpointing":
        recompute_blocks(saving.encoder_q, arch)
    else:
        saving.parts = PARTS
    functions = {"floor": lambda: plain(*batch).loss.backward(), "step": lambda: saving(*batch).loss.backward()}
    times = common.time_interleaved(functions, device, ROUNDS)
    plain_mib, saving_mib = (common.peak_memory(functions[name], device) / 2**20 for name in ("floor", "step"))
    name = f"{flag}, {arch}, {pixels} px, {batch_size} images"
    notes = f"peak memory {saving_mib:.0f} MiB, {plain_mib:.0f} MiB without the flag"
    return common.row(name, times["step"], times["floor"], notes=notes)


def main() -> None:
    torch.manual_seed(0)
    device = common.device_from_argv()
    print(common.HEADER)
    with ComputeConfig(device).precision_context():
        for targeted in (False, True):
            print(measure(device, SMALL, NO_FLAGS, targeted), flush=True)
        for flag in (f"--accum-steps {PARTS}", "--grad-checkpointing"):
            print(measure_memory(device, flag), flush=True)


if __name__ == "__main__":
    main()
