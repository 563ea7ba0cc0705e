"""Measure the step and the evaluation of stage 2, compared with the bare frozen encoder (bench_probe on a GPU)."""

from collections.abc import Iterator

from benchmarks import common
from benchmarks.bench_probe import Probe, measure_evaluation, measure_step
from benchmarks.bench_step import PLAIN
from benchmarks.gpu.plan import Plan, forget_models


def probe(plan: Plan, facts: dict) -> Iterator[str]:
    """Yield a table of training and evaluation, with all flags off and with the flags for speed."""
    yield from common.HEADER.splitlines()
    for flags, how in (("all off", PLAIN), (plan.fast_name, plan.fast)):
        work = Probe(plan.where, plan.size, how)
        yield measure_step(work, flags)
        yield from measure_evaluation(work, flags)
        del work
        forget_models()
