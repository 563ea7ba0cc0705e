"""Run the GPU tests and benchmarks. They take at most 40 minutes on one modern GPU.

    python -m benchmarks.gpu

The results are written to benchmarks/RESULTS-gpu.md when all parts have finished. Finished
parts are stored in runs/gpu/, separately for each version of the code, GPU and PyTorch. If
interrupted, run the same command again to continue.
"""

import signal
import sys
import time
from collections import ChainMap
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks import common
from benchmarks.gpu import agreement, data, probe, steps, suite, syncs
from benchmarks.gpu.device import require_cuda
from benchmarks.gpu.part_store import PartStore, code_version, machine_key
from benchmarks.gpu.plan import FAST_NAME, REFERENCE_NAME, Plan, free_memory, full_plan, smoke_plan
from utils import errors
from utils.cli.parser import Parser
from utils.distributed import log
from utils.files import write_text
from utils.run.compute import ComputeConfig

PAGE = Path(__file__).parent.parent / "RESULTS-gpu.md"
FOLDER = Path("runs") / "gpu"
SMOKE_NOTE = "Smoke test on the CPU at tiny sizes. It shows that all parts run; its numbers are meaningless."


class Part(NamedTuple):
    """One part of the benchmark.

    Attributes:
        name: Name of its file in the part store.
        title: Title of its section.
        minutes: Approximate time on a modern GPU.
        measure: Function of (plan, metrics) that yields the lines of the section and adds to the metrics.
    """

    name: str
    title: str
    minutes: float
    measure: Callable[[Plan, dict], Iterator[str]]


PARTS = (
    Part("tests", "Tests", 8, suite.run_gpu_tests),
    Part("encoders", "Stage 1: the step compared with its encoders only", 6, steps.compare_with_encoders),
    Part("implementations", "Stage 1: the step compared with the authors' code", 8, steps.compare_implementations),
    Part("syncs", "Where the host waits for the GPU", 1, syncs.measure_syncs),
    Part("probe", "Stage 2 compared with its encoder only", 3, probe.measure_probe),
    Part("agreement", "The same step on CPU and GPU", 1, agreement.compare_devices),
    Part("loader", "The loader", 1.5, data.measure_loader),
    Part("epochs", "An epoch", 0.1, data.estimate_epochs),
    Part("real_sizes", "Both stages at the real sizes", 8, data.measure_real_sizes),
)


def get_args_parser() -> Parser:
    parser = Parser(description=__doc__)
    parser.add_argument("--fresh", action="store_true", help="Measure all parts again, including finished ones.")
    parser.add_argument(
        "--rehearse",
        action="store_true",
        help="Smoke test: run all parts on the CPU at tiny sizes. Writes no file.",
    )
    return parser


def main(argv: list[str] | None = None) -> None:
    args = get_args_parser().parse_args(argv)
    if args.rehearse:
        plan = smoke_plan()
        log(SMOKE_NOTE)
        log(render_page(measure_all(plan, None), plan, SMOKE_NOTE))
        return
    require_cuda()
    # Handle SIGTERM like Ctrl-C, so that the parts terminate their processes.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(errors.EXIT_CODES[number]))
    store = PartStore(FOLDER / machine_key())
    if args.fresh:
        store.clear()
    plan = full_plan()
    records = measure_all(plan, store)
    if missing := [part.name for part in PARTS if part.name not in records]:
        log(f"failed: {', '.join(missing)} (see above). The page was not written; run the same command to retry")
        sys.exit(1)
    write_text(PAGE, render_page(records, plan, f"Code {code_version()}."))
    log(f"wrote {PAGE.relative_to(PAGE.parent.parent)}; finished parts are stored in {store.folder}")


def measure_all(plan: Plan, store: PartStore | None) -> dict[str, dict]:
    """Measure all parts that are not stored yet. Return part name -> record (lines, metrics, seconds).

    Parts that fail have no record.
    """
    records = {part.name: store.load(part.name) for part in PARTS} if store else {}
    records = {name: record for name, record in records.items() if record}
    elapsed = planned = 0.0
    for number, part in enumerate(PARTS, start=1):
        if part.name in records:
            log(f"[{number}/{len(PARTS)}] {part.title}: finished in an earlier run, not measured again")
            continue
        remaining = 60 * sum(other.minutes for other in PARTS[number - 1 :] if other.name not in records)
        eta = timedelta(seconds=round(remaining * (elapsed / planned if planned else 1)))
        log(f"[{number}/{len(PARTS)}] {part.title}" + ("" if plan.smoke_test else f"; about {eta} remaining"))
        metrics = ChainMap({}, *(record["metrics"] for record in records.values()))
        started = time.monotonic()
        try:
            lines = measure(part, plan, metrics)
        except Exception as error:  # continue with the other parts
            if store is None:
                raise
            log(f"error: {part.title}: {type(error).__name__}: {errors.first_line(error)}")
            continue
        seconds = time.monotonic() - started
        elapsed, planned = elapsed + seconds, planned + 60 * part.minutes
        records[part.name] = {"lines": lines, "metrics": metrics.maps[0], "seconds": round(seconds, 1)}
        if store:
            store.save(part.name, records[part.name])
    return records


def measure(part: Part, plan: Plan, metrics: ChainMap) -> list[str]:
    """Measure one part. Print its lines and return them."""
    free_memory()
    torch.manual_seed(0)
    lines = []
    with ComputeConfig(plan.device).precision_context():
        for line in part.measure(plan, metrics):
            if not plan.smoke_test:  # a smoke test prints the whole page at the end
                log(line)
            lines.append(line)
    return lines


def render_page(records: dict[str, dict], plan: Plan, note: str) -> str:
    """Return the page: the goals, then one section per part."""
    arch, pixels, batch = plan.size
    size = f"Steps: {arch}, {pixels} px, batch {batch}, queue {plan.queue}, {plan.classes} classes."
    head = f"# Benchmarks on a GPU\n\n`make gpu`, {date.today()}. {note}\n{size}\n\n{common.describe_machine()}\n"
    sections = [] if plan.smoke_test else [f"\n{goals_table(records)}\n"]  # a smoke test has no goals
    for part in PARTS:
        lines, elapsed = records[part.name]["lines"], timedelta(seconds=round(records[part.name]["seconds"]))
        sections.append(f"\n## {part.title}\n\n" + "\n".join(lines) + f"\n\nTime: {elapsed}.\n")
    return head + "".join(sections)


def goals_table(records: dict[str, dict]) -> str:
    """Return a Markdown table with one row per goal: measured value, goal, and whether it is met."""
    metrics = ChainMap(*(record["metrics"] for record in records.values()))
    rows = [(f"step ÷ encoders only, {name}", v, "≤ 1.05", v <= 1.05) for name, v in metrics["encoder_ratios"].items()]
    rows += [(f"images/s, {FAST_NAME} ÷ all off, {name}", v, "≥ 3", v >= 3) for name, v in metrics["speedups"].items()]
    counts = [(name, count) for name, count in metrics["syncs"].items() if REFERENCE_NAME not in name]
    rows += [(f"waits outside the assignment, {name}", count, "0", count == 0) for name, count in counts]
    lines = [f"| {name} | {value:.3g} | {goal} | {'yes' if met else 'no'} |" for name, value, goal, met in rows]
    return "\n".join(["| | measured | goal | met |", "|---|--:|--:|---|", *lines])


if __name__ == "__main__":
    errors.run(main, "finished parts are stored; run the same command again to continue")
