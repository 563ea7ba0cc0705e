"""Compare one step on the CPU and on the GPU: distance of loss, gradients and buffers from the CPU's float64 values."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from benchmarks.bench_step import PLAIN, images_of, settled_model
from benchmarks.gpu.plan import NEEDS_CUDA, Plan, methods
from moco.builder import KCL
from utils.run.compute import ComputeConfig

CPU = torch.device("cpu")
TF32 = {"tf32": True}


@contextmanager
def convolutions(tf32: bool | None) -> Iterator[None]:
    """Allow or forbid TF32 in cuDNN's convolutions inside the block; None: no change."""
    before = torch.backends.cudnn.allow_tf32
    if tf32 is not None:
        torch.backends.cudnn.allow_tf32 = tf32
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def one_step(model: KCL, images: tuple[Tensor, ...], where: torch.device, dtype: torch.dtype) -> dict[str, list]:
    """Return loss, gradients, queue, centroids and assignment after a step, as float64 on the CPU."""
    model = copy.deepcopy(model).to(where, dtype)
    im_q, im_k, labels = images
    out = model(im_q.to(where, dtype), im_k.to(where, dtype), labels.to(where))
    out.loss.backward()
    left = {
        "loss": [out.loss],
        "gradients": [weight.grad for weight in model.encoder_q.parameters()],
        "queue": [model.queue],
        "centroids": [model.class_centroid],
        "assignment": [torch.zeros(0) if model.assignment is None else model.assignment],
    }
    return {name: [value.detach().to(CPU, torch.float64) for value in values] for name, values in left.items()}


def farthest(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """Return the largest ‖ours − theirs‖ ÷ ‖theirs‖ over the tensors."""
    return max(float((a - b).norm() / b.norm().clamp(min=1e-300)) for a, b in zip(ours, theirs, strict=True))


def cases(plan: Plan) -> list[tuple[str, torch.device, torch.dtype, bool | None, dict]]:
    """Return the cases to compare: name, device, dtype, TF32 in convolutions, flags."""
    here, single, double = plan.where, torch.float32, torch.float64
    return [
        ("CPU, float32", CPU, single, None, PLAIN),
        ("GPU, float64", here, double, None, PLAIN),
        ("GPU, float32, no TF32 anywhere", here, single, False, PLAIN),
        ("GPU, float32, all flags off", here, single, None, PLAIN),
        ("GPU, float32, --tf32", here, single, None, TF32),
    ]


def agreement(plan: Plan, facts: dict) -> Iterator[str]:
    """Yield a table with one row per case. Set the fact `differences`, of the gradients."""
    facts["differences"] = {}
    arch, pixels, batch = plan.agree
    yield (
        f"{arch}, {pixels} px, batch {batch}, the same seed. Each value is the largest ‖a − b‖ ÷ ‖b‖ over the tensors, "
        "where b is the CPU's float64 value."
    )
    yield ""
    yield "| | loss | gradients | queue | centroids | assignment |"
    yield "|---|--:|--:|--:|--:|---|"
    for method, targeted in methods():
        torch.manual_seed(0)
        model = settled_model(arch, pixels, targeted, plan.classes, plan.queue)
        images = images_of(batch, pixels, CPU, plan.classes)
        reference = one_step(model, images, CPU, torch.float64)
        for name, where, dtype, tf32, flags in cases(plan):
            if name.startswith("GPU") and plan.rehearsal:
                yield f"| {method}, {name} | {NEEDS_CUDA} | | | | |"
                continue
            with ComputeConfig(where, **flags).arithmetic(), convolutions(tf32):
                ours = one_step(model, images, where, dtype)
            same = all(map(torch.equal, ours.pop("assignment"), reference["assignment"]))
            far = {part: farthest(values, reference[part]) for part, values in ours.items()}
            facts["differences"][f"{method}, {name}"] = far["gradients"]
            assigned = ("the same" if same else "another") if targeted else "–"
            yield f"| {method}, {name} | " + " | ".join(f"{value:.0e}" for value in far.values()) + f" | {assigned} |"
