"""Measure the step of stage 1, compared with the bare encoders, and computed in three ways.

The ways are: all flags off, fast, and "release", as in the code released by the TSC authors (see release_way.py).
"""

from collections.abc import Callable, Iterator
from statistics import median

from benchmarks import common
from benchmarks.bench_step import PLAIN, RECIPE, SETTLING, images_of, settled_model, works
from benchmarks.gpu import release_way
from benchmarks.gpu.plan import Plan, forget_models, methods
from utils.optimizers import sgd


def beside_encoders(plan: Plan, facts: dict) -> Iterator[str]:
    """Yield a table of the step. The floor is forward q, forward k and backward. Set the fact `beside` (ratios)."""
    facts["beside"] = ratios = {}
    yield from common.HEADER.splitlines()
    for flags, how in (("all off", PLAIN), (plan.fast_name, plan.fast)):
        for method, targeted in methods():
            work = works(plan.where, plan.size, how, targeted, plan.classes, plan.queue)
            del work["textbook"]
            times = common.interleaved(work, plan.where, plan.rounds)
            step, floor = (common.peak_memory(work[name], plan.where) / 2**30 for name in ("step", "floor"))
            notes = f"peak memory beyond weights and queue {step:.2f} GiB, floor's {floor:.2f}"
            yield common.row(f"step, {method}, {flags}", times["step"], times["floor"], notes=notes)
            ratios[f"{method}, {flags}"] = common.ratio(times["step"], times["floor"])
            del work
            forget_models()


def release_step(plan: Plan, targeted: bool) -> Callable[[], None]:
    """Return the step of the authors' code, in float32, after warm-up steps."""
    arch, pixels, batch = plan.size
    model = settled_model(arch, pixels, targeted, plan.classes, plan.queue).to(plan.where)
    optimizer = sgd(model.parameters(), *RECIPE)
    images = images_of(batch, pixels, plan.where, plan.classes)

    def step() -> None:
        loss = release_way.forward(model, *images)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    for _ in range(SETTLING):
        step()
    return step


def ways(plan: Plan, facts: dict) -> Iterator[str]:
    """Yield a table of images per second for three ways to compute the step. Set the facts `rates` and `gains`."""
    facts["rates"], facts["gains"] = rates, gains = {}, {}
    yield f"| step | all off | {plan.fast_name} | the release's way | fast ÷ off | off ÷ release | fast ÷ release |"
    yield "|---|--:|--:|--:|--:|--:|--:|"
    batch = plan.size[-1]
    for method, targeted in methods():
        work = {"release": release_step(plan, targeted)}
        for name, how in (("off", PLAIN), ("fast", plan.fast)):
            work[name] = works(plan.where, plan.size, how, targeted, plan.classes, plan.queue)["step"]
        times = common.interleaved(work, plan.where, plan.rounds)
        for name in work:
            rates[f"{method} {name}"] = batch / median(times[name])
        off, fast, release = (times[name] for name in ("off", "fast", "release"))
        speeds = " | ".join(f"{rates[f'{method} {name}']:.0f} images/s" for name in ("off", "fast", "release"))
        ratios = [common.ratio(*pair) for pair in ((off, fast), (release, off), (release, fast))]
        gains[method] = ratios[0]
        yield f"| {method} | {speeds} | " + " | ".join(f"{ratio:.2f}" for ratio in ratios) + " |"
        del work
        forget_models()
    step = works(plan.where, plan.size, plan.fast, True, plan.many_classes, plan.queue)["step"]
    times = common.interleaved({"step": step}, plan.where, plan.rounds)["step"]
    rates["TSC fast, many classes"] = batch / median(times)
    yield f"| TSC, {plan.many_classes} classes | – | {batch / median(times):.0f} images/s | – | – | – | – |"
    del step
    forget_models()
