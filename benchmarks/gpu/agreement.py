"""Compare one training step on CPU and GPU: relative errors of loss, gradients and buffers.

The reference values are those of the CPU in float64.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from benchmarks.bench_step import NO_FLAGS, random_batch, settled_model
from benchmarks.gpu.plan import NEEDS_CUDA, Plan, methods
from moco.builder import KCL
from utils.run.compute import ComputeConfig

CPU = torch.device("cpu")
TF32 = {"tf32": True}


@contextmanager
def conv_tf32(tf32: bool | None) -> Iterator[None]:
    """Enable or disable TF32 in cuDNN's convolutions inside the block. None: no change."""
    before = torch.backends.cudnn.allow_tf32
    if tf32 is not None:
        torch.backends.cudnn.allow_tf32 = tf32
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def one_step(model: KCL, batch: tuple[Tensor, ...], device: torch.device, dtype: torch.dtype) -> dict[str, list]:
    """Run a step. Return its loss and gradients, and the buffers after it, as float64 on the CPU."""
    model = copy.deepcopy(model).to(device, dtype)
    im_q, im_k, labels = batch
    out = model(im_q.to(device, dtype), im_k.to(device, dtype), labels.to(device))
    out.loss.backward()
    outputs = {
        "loss": [out.loss],
        "gradients": [weight.grad for weight in model.encoder_q.parameters()],
        "queue": [model.queue],
        "centroids": [model.class_centroid],
        "assignment": [torch.zeros(0) if model.assignment is None else model.assignment],
    }
    return {name: [value.detach().to(CPU, torch.float64) for value in values] for name, values in outputs.items()}


def max_relative_error(actual: list[Tensor], expected: list[Tensor]) -> float:
    """Return the largest ‖ours − theirs‖ ÷ ‖theirs‖ over the tensors."""
    return max(float((a - b).norm() / b.norm().clamp(min=1e-300)) for a, b in zip(actual, expected, strict=True))


def cases(plan: Plan) -> list[tuple[str, torch.device, torch.dtype, bool | None, dict]]:
    """Return the cases to compare: name, device, dtype, argument of `conv_tf32`, arguments of ComputeConfig."""
    gpu, single, double = plan.device, torch.float32, torch.float64
    return [
        ("CPU, float32", CPU, single, None, NO_FLAGS),
        ("GPU, float64", gpu, double, None, NO_FLAGS),
        ("GPU, float32, no TF32 anywhere", gpu, single, False, NO_FLAGS),
        ("GPU, float32, all flags off", gpu, single, None, NO_FLAGS),
        ("GPU, float32, --tf32", gpu, single, None, TF32),
    ]


def compare_devices(plan: Plan, metrics: dict) -> Iterator[str]:
    """Yield a table with one row per case. Set the metric `differences`, the relative errors of the gradients."""
    metrics["differences"] = {}
    arch, pixels, batch_size = plan.agreement_size
    yield (
        f"{arch}, {pixels} px, batch {batch_size}, same seed. Each value is the largest ‖a − b‖ ÷ ‖b‖ over the "
        "tensors, where b is the CPU's float64 value."
    )
    yield ""
    yield "| | loss | gradients | queue | centroids | assignment |"
    yield "|---|--:|--:|--:|--:|---|"
    for method, targeted in methods():
        torch.manual_seed(0)
        model = settled_model(arch, pixels, targeted, plan.classes, plan.queue)
        batch = random_batch(batch_size, pixels, CPU, plan.classes)
        reference = one_step(model, batch, CPU, torch.float64)
        for name, device, dtype, tf32, flags in cases(plan):
            if name.startswith("GPU") and plan.smoke_test:
                yield f"| {method}, {name} | {NEEDS_CUDA} | | | | |"
                continue
            with ComputeConfig(device, **flags).precision_context(), conv_tf32(tf32):
                actual = one_step(model, batch, device, dtype)
            same_assignment = all(map(torch.equal, actual.pop("assignment"), reference["assignment"]))
            relative_errors = {part: max_relative_error(values, reference[part]) for part, values in actual.items()}
            metrics["differences"][f"{method}, {name}"] = relative_errors["gradients"]
            assignment = ("same" if same_assignment else "different") if targeted else "–"
            cells = " | ".join(f"{value:.0e}" for value in relative_errors.values())
            yield f"| {method}, {name} | {cells} | {assignment} |"
