"""Measure training step and evaluation of stage 2 (bench_probe.py), compared with the frozen encoder only."""

from collections.abc import Iterator

from benchmarks import common
from benchmarks.bench_probe import Probe, measure_evaluation, measure_step
from benchmarks.bench_step import NO_FLAGS
from benchmarks.gpu.plan import Plan, free_memory


def measure_probe(plan: Plan, metrics: dict) -> Iterator[str]:
    """Yield a table of training step and evaluation, with all flags off and with the fast flags."""
    yield from common.HEADER.splitlines()
    for flags_name, flags in (("all off", NO_FLAGS), (plan.fast_name, plan.fast_flags)):
        probe = Probe(plan.device, plan.size, flags)
        yield measure_step(probe, flags_name)
        yield from measure_evaluation(probe, flags_name)
        del probe
        free_memory()
