"""Run the GPU tests and benchmarks. They take at most 40 minutes on one modern GPU.

    python -m benchmarks.gpu

The results are written to benchmarks/RESULTS-gpu.md, which names the parts that are missing.
Finished parts are stored in a file, separately for each version of the code, GPU and PyTorch.
If interrupted, run the same command again to continue. To continue on another machine with the
same GPU and PyTorch, copy the file. --minutes measures only the parts that fit, in order.
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
from utils.cli.flags import When
from utils.cli.numbers import positive_float
from utils.cli.parser import Parser, parse
from utils.distributed import log
from utils.files import write_text
from utils.run.compute import ComputeConfig

PAGE = Path(__file__).parent.parent / "RESULTS-gpu.md"
STORE = Path("runs") / "gpu.json"
SMOKE_NOTE = "Smoke test on the CPU at tiny sizes. It shows that all parts run; its numbers are meaningless."


class Part(NamedTuple):
    """One part of the benchmark.

    Attributes:
        name: Name in the part store.
        title: Title of its section.
        minutes: Approximate time on a modern GPU.
        measure: Function of (plan, metrics) that yields the lines of the section and adds to the metrics.
        needs: Names of the parts whose metrics it uses.
    """

    name: str
    title: str
    minutes: float
    measure: Callable[[Plan, dict], Iterator[str]]
    needs: tuple[str, ...] = ()


PARTS = (
    Part("tests", "Tests", 8, suite.run_gpu_tests),
    Part("encoders", "Stage 1: the step compared with its encoders only", 6, steps.compare_with_encoders),
    Part("implementations", "Stage 1: the step compared with the authors' code", 8, steps.compare_implementations),
    Part("syncs", "Where the host waits for the GPU", 1, syncs.measure_syncs),
    Part("probe", "Stage 2 compared with its encoder only", 3, probe.measure_probe),
    Part("agreement", "The same step on CPU and GPU", 1, agreement.compare_devices),
    Part("loader", "The loader", 1.5, data.measure_loader, ("implementations",)),
    Part("epochs", "An epoch", 0.1, data.estimate_epochs, ("implementations", "loader")),
    Part("real_sizes", "Both stages at the real sizes", 8, data.measure_real_sizes),
)


def get_args_parser() -> Parser:
    parser = Parser(description=__doc__)
    with_rehearse = When("with --rehearse", lambda args: args.rehearse)
    parser.add_argument(
        "--fresh",
        action="store_true",
        help="Measure all parts again, including finished ones.",
        refused=(with_rehearse,),
    )
    parser.add_argument(
        "--rehearse",
        action="store_true",
        help="Smoke test: run all parts on the CPU at tiny sizes. Writes no file.",
    )
    parser.add_argument(
        "--minutes", type=positive_float, metavar="M", help="Start only parts that should end within M minutes."
    )
    parser.add_argument(
        "--store",
        type=Path,
        default=STORE,
        metavar="FILE",
        help=f"File of the finished parts (default: {STORE}). A later run continues from it.",
        refused=(with_rehearse,),
    )
    return parser


def main(argv: list[str] | None = None) -> None:
    args = parse(get_args_parser(), argv)
    if args.rehearse:
        plan = smoke_plan()
        log(SMOKE_NOTE)
        log(render_page(measure_all(plan, None, args.minutes)[0], plan, SMOKE_NOTE))
        return
    require_cuda()
    # Handle SIGTERM like Ctrl-C, so that the parts terminate their processes.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(errors.EXIT_CODES[number]))
    store = PartStore(args.store, machine_key())
    if args.fresh:
        store.clear()
    plan = full_plan()
    records, failed = measure_all(plan, store, args.minutes)
    if records:
        write_text(PAGE, render_page(records, plan, f"Code {code_version()}."))
        log(f"wrote {PAGE.relative_to(PAGE.parent.parent)}; finished parts are stored in {store.file}")
    if missing := [part.name for part in PARTS if part.name not in records]:
        log(f"missing: {', '.join(missing)}. Run the command again to measure them")
    if failed:
        log(f"failed: {', '.join(failed)}; see the messages above")
        sys.exit(1)


def measure_all(plan: Plan, store: PartStore | None, minutes: float | None = None) -> tuple[dict[str, dict], list[str]]:
    """Measure all parts that are not stored yet and that fit the time.

    Returns:
        Part name -> record (lines, metrics, seconds), and the names of the parts that failed.
    """
    records, failed = dict(store.records) if store else {}, []
    started, planned = time.monotonic(), 0.0
    for number, part in enumerate(PARTS, start=1):
        label, elapsed = f"[{number}/{len(PARTS)}] {part.title}", time.monotonic() - started
        if part.name in records:
            log(f"{label}: finished in an earlier run, not measured again")
            continue
        if missing := [name for name in part.needs if name not in records]:
            log(f"{label}: postponed, because it needs {' and '.join(missing)}")
            continue
        slowdown = elapsed / planned if planned else 1.0  # measured ÷ planned seconds
        if minutes and elapsed + 60 * part.minutes * slowdown > 60 * minutes:
            log(f"{label}: postponed; it needs about {timedelta(seconds=round(60 * part.minutes * slowdown))}")
            continue
        remaining = 60 * slowdown * sum(other.minutes for other in PARTS[number - 1 :] if other.name not in records)
        log(label + ("" if plan.smoke_test else f"; about {timedelta(seconds=round(remaining))} remaining"))
        metrics = ChainMap({}, *(record["metrics"] for record in records.values()))
        part_started, planned = time.monotonic(), planned + 60 * part.minutes
        try:
            lines = measure(part, plan, metrics)
        except Exception as error:  # continue with the other parts
            if store is None:
                raise
            log(f"error: {part.title}: {type(error).__name__}: {errors.first_line(error)}")
            failed.append(part.name)
            continue
        seconds = round(time.monotonic() - part_started, 1)
        records[part.name] = {"lines": lines, "metrics": metrics.maps[0], "seconds": seconds}
        if store:
            store.save(part.name, records[part.name])
    return records, failed


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
    """Return the page: the goals, then one section per part. A part without a record is named as missing."""
    arch, pixels, batch = plan.size
    size = f"Steps: {arch}, {pixels} px, batch {batch}, queue {plan.queue}, {plan.classes} classes."
    head = f"# Benchmarks on a GPU\n\n`make gpu`, {date.today()}. {note}\n{size}\n\n{common.describe_machine()}\n"
    sections = [] if plan.smoke_test else [f"\n{goals_table(records)}\n"]  # a smoke test has no goals
    for part in PARTS:
        if part.name not in records:
            sections.append(f"\n## {part.title}\n\nNot measured yet.\n")
            continue
        lines, elapsed = records[part.name]["lines"], timedelta(seconds=round(records[part.name]["seconds"]))
        sections.append(f"\n## {part.title}\n\n" + "\n".join(lines) + f"\n\nTime: {elapsed}.\n")
    return head + "".join(sections)


def goals_table(records: dict[str, dict]) -> str:
    """Return a Markdown table with one row per measured goal: value, goal, and whether it is met."""
    metrics = ChainMap(*(record["metrics"] for record in records.values()))
    ratios, speedups, syncs = (metrics.get(name, {}) for name in ("encoder_ratios", "speedups", "syncs"))
    rows = [(f"step ÷ encoders only, {name}", v, "≤ 1.05", v <= 1.05) for name, v in ratios.items()]
    rows += [(f"images/s, {FAST_NAME} ÷ all off, {name}", v, "≥ 3", v >= 3) for name, v in speedups.items()]
    counts = [(name, count) for name, count in syncs.items() if REFERENCE_NAME not in name]
    rows += [(f"waits outside the assignment, {name}", count, "0", count == 0) for name, count in counts]
    lines = [f"| {name} | {value:.3g} | {goal} | {'yes' if met else 'no'} |" for name, value, goal, met in rows]
    return "\n".join(["| | measured | goal | met |", "|---|--:|--:|---|", *lines])


if __name__ == "__main__":
    errors.run(main, "finished parts are stored; run the same command again to continue")
