"""The step of stage 2 and its evaluation, beside the bare frozen encoder: bench_probe at the GPU's size."""

from collections.abc import Iterator

from benchmarks import common
from benchmarks.bench_probe import Probe, measure_evaluation, measure_step
from benchmarks.bench_step import PLAIN
from benchmarks.gpu.plan import Plan, forget_models


def probe(plan: Plan, facts: dict) -> Iterator[str]:
    """Rows of training and evaluation, all off and with the flags for speed."""
    yield from common.HEADER.splitlines()
    for flags, how in (("all off", PLAIN), (plan.fast_name, plan.fast)):
        work = Probe(plan.where, plan.size, how)
        yield measure_step(work, flags)
        yield from measure_evaluation(work, flags)
        del work
        forget_models()
