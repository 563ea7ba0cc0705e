"""Measure the training step of stage 1, compared with its encoders only and with the authors' code.

The authors' code is the code released by the TSC authors; see reference_step.py.
"""

from collections.abc import Callable, Iterator
from statistics import median

from benchmarks import common
from benchmarks.bench_step import NO_FLAGS, RECIPE, WARMUP_STEPS, random_batch, settled_model, step_functions
from benchmarks.gpu import reference_step
from benchmarks.gpu.plan import REFERENCE_NAME, Plan, free_memory, methods
from utils.optimizers import sgd


def compare_with_encoders(plan: Plan, metrics: dict) -> Iterator[str]:
    """Yield a table of the step. The floor is forward q, forward k and backward. Set the metric `encoder_ratios`."""
    metrics["encoder_ratios"] = ratios = {}
    yield from common.HEADER.splitlines()
    for flags_name, flags in (("all off", NO_FLAGS), (plan.fast_name, plan.fast_flags)):
        for method, targeted in methods():
            functions = step_functions(plan.device, plan.size, flags, targeted, plan.classes, plan.queue)
            del functions["textbook"]
            times = common.time_interleaved(functions, plan.device, plan.rounds)
            step, floor = (common.peak_memory(functions[name], plan.device) / 2**30 for name in ("step", "floor"))
            notes = f"peak memory without weights and queue {step:.2f} GiB, floor's {floor:.2f}"
            yield common.row(f"step, {method}, {flags_name}", times["step"], times["floor"], notes=notes)
            ratios[f"{method}, {flags_name}"] = common.median_ratio(times["step"], times["floor"])
            del functions
            free_memory()


def build_reference_step(plan: Plan, targeted: bool) -> Callable[[], None]:
    """Return the training step of the authors' code, in float32, after warm-up steps."""
    arch, pixels, batch_size = plan.size
    model = settled_model(arch, pixels, targeted, plan.classes, plan.queue).to(plan.device)
    optimizer = sgd(model.parameters(), *RECIPE)
    batch = random_batch(batch_size, pixels, plan.device, plan.classes)

    def step() -> None:
        loss = reference_step.forward(model, *batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    for _ in range(WARMUP_STEPS):
        step()
    return step


def compare_implementations(plan: Plan, metrics: dict) -> Iterator[str]:
    """Yield a table of images/s: all flags off, fast, and the authors' code. Set the metrics `rates` and `speedups`."""
    metrics["rates"], metrics["speedups"] = rates, speedups = {}, {}
    yield f"| step | all off | {plan.fast_name} | {REFERENCE_NAME} | fast ÷ off | off ÷ authors' | fast ÷ authors' |"
    yield "|---|--:|--:|--:|--:|--:|--:|"
    batch = plan.size[-1]
    for method, targeted in methods():
        functions = {"reference": build_reference_step(plan, targeted)}
        for name, flags in (("off", NO_FLAGS), ("fast", plan.fast_flags)):
            functions[name] = step_functions(plan.device, plan.size, flags, targeted, plan.classes, plan.queue)["step"]
        times = common.time_interleaved(functions, plan.device, plan.rounds)
        for name in functions:
            rates[f"{method} {name}"] = batch / median(times[name])
        off, fast, reference = (times[name] for name in ("off", "fast", "reference"))
        rate_cells = " | ".join(f"{rates[f'{method} {name}']:.0f} images/s" for name in ("off", "fast", "reference"))
        ratios = [common.median_ratio(*pair) for pair in ((off, fast), (reference, off), (reference, fast))]
        speedups[method] = ratios[0]
        yield f"| {method} | {rate_cells} | " + " | ".join(f"{ratio:.2f}" for ratio in ratios) + " |"
        del functions
        free_memory()
    step = step_functions(plan.device, plan.size, plan.fast_flags, True, plan.many_classes, plan.queue)["step"]
    times = common.time_interleaved({"step": step}, plan.device, plan.rounds)["step"]
    rates["TSC fast, many classes"] = batch / median(times)
    yield f"| TSC, {plan.many_classes} classes | – | {batch / median(times):.0f} images/s | – | – | – | – |"
    del step
    free_memory()
