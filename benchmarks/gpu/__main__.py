"""Run the GPU tests and benchmarks: at most 40 minutes on one modern GPU.

    python -m benchmarks.gpu

The results are written to benchmarks/RESULTS-gpu.md when all parts have finished. Finished
parts are kept in runs/gpu/ for this code, GPU and PyTorch version: if interrupted, run the
same command again to continue.
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
from benchmarks.gpu.device import need_cuda
from benchmarks.gpu.keeping import Kept, code_version, machine_key
from benchmarks.gpu.plan import FAST_NAME, Plan, forget_models, full, rehearsal
from utils import errors
from utils.distributed import say
from utils.files import write_text
from utils.parser import Parser
from utils.run.compute import ComputeConfig

PAGE = Path(__file__).parent.parent / "RESULTS-gpu.md"
FOLDER = Path("runs") / "gpu"
REHEARSAL = "Rehearsal on the CPU at tiny sizes. It shows that all parts run; the numbers below are not results."


class Part(NamedTuple):
    """One part of the benchmark.

    Attributes:
        title: title of its section. minutes: approximate time on a modern GPU.
        measure: called with (plan, facts); yields the lines of the section and adds to the facts.
    """

    name: str
    title: str
    minutes: float
    measure: Callable[[Plan, dict], Iterator[str]]


PARTS = (
    Part("tests", "Tests", 8, suite.tests),
    Part("encoders", "Stage 1: the step compared with the bare encoders", 6, steps.beside_encoders),
    Part("ways", "Stage 1: the same step in three ways", 8, steps.ways),
    Part("waits", "Where the host waits for the GPU", 1, syncs.synchronisations),
    Part("probe", "Stage 2 compared with the bare encoder", 3, probe.probe),
    Part("agreement", "The same step on CPU and GPU", 1, agreement.agreement),
    Part("loader", "The loader", 1.5, data.loader),
    Part("epochs", "An epoch", 0.1, data.epochs),
    Part("real_sizes", "Both stages at the real sizes", 8, data.real_sizes),
)


def get_args_parser() -> Parser:
    parser = Parser(description=__doc__)
    parser.add_argument("--fresh", action="store_true", help="Measure the finished parts again.")
    parser.add_argument(
        "--rehearse",
        action="store_true",
        help="Try all parts on the CPU at tiny sizes, to see that they run; nothing is written.",
    )
    return parser


def main(argv: list[str] | None = None) -> None:
    args = get_args_parser().parse_args(argv)
    if args.rehearse:
        plan = rehearsal()
        say(REHEARSAL)
        say(page(measure_all(plan, None), plan, REHEARSAL))
        return
    need_cuda()
    # Handle SIGTERM like Ctrl-C, so that the parts terminate their processes.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(errors.EXIT_CODES[number]))
    kept = Kept(FOLDER / machine_key())
    if args.fresh:
        kept.forget()
    plan = full()
    records = measure_all(plan, kept)
    if missing := [part.name for part in PARTS if part.name not in records]:
        say(f"failed: {', '.join(missing)} (see above). The page was not written; run the same command to retry")
        sys.exit(1)
    write_text(PAGE, page(records, plan, f"Code {code_version()}."))
    say(f"wrote {PAGE.relative_to(PAGE.parent.parent)}; finished parts are stored in {kept.folder}")


def measure_all(plan: Plan, kept: Kept | None) -> dict[str, dict]:
    """Measure all parts, except stored ones. Return the records (lines, facts, seconds) of the parts that succeed."""
    records = {part.name: kept.load(part.name) for part in PARTS} if kept else {}
    records = {name: record for name, record in records.items() if record}
    spent = planned = 0.0
    for number, part in enumerate(PARTS, start=1):
        if part.name in records:
            say(f"[{number}/{len(PARTS)}] {part.title}: finished in an earlier run, not measured again")
            continue
        left = 60 * sum(other.minutes for other in PARTS[number - 1 :] if other.name not in records)
        eta = timedelta(seconds=round(left * (spent / planned if planned else 1)))
        say(f"[{number}/{len(PARTS)}] {part.title}" + ("" if plan.rehearsal else f"; about {eta} left"))
        facts = ChainMap({}, *(record["facts"] for record in records.values()))
        started = time.monotonic()
        try:
            lines = measure(part, plan, facts)
        except Exception as error:  # continue with the other parts
            if kept is None:
                raise
            say(f"error: {part.title}: {type(error).__name__}: {errors.first_line(error)}")
            continue
        seconds = time.monotonic() - started
        spent, planned = spent + seconds, planned + 60 * part.minutes
        records[part.name] = {"lines": lines, "facts": facts.maps[0], "seconds": round(seconds, 1)}
        if kept:
            kept.save(part.name, records[part.name])
    return records


def measure(part: Part, plan: Plan, facts: ChainMap) -> list[str]:
    """Measure one part, after freeing the models of the previous part. Print its lines and return them."""
    forget_models()
    torch.manual_seed(0)
    lines = []
    with ComputeConfig(plan.where).arithmetic():
        for line in part.measure(plan, facts):
            if not plan.rehearsal:  # a rehearsal prints the whole page at the end
                say(line)
            lines.append(line)
    return lines


def page(records: dict[str, dict], plan: Plan, about: str) -> str:
    """Return the whole page: first the goals, then each part."""
    arch, pixels, batch = plan.size
    size = f"Steps: {arch}, {pixels} px, batch {batch}, queue {plan.queue}, {plan.classes} classes."
    head = f"# Benchmarks on a GPU\n\n`make gpu`, {date.today()}. {about}\n{size}\n\n{common.machine()}\n"
    sections = [] if plan.rehearsal else [f"\n{aims(records)}\n"]  # a rehearsal has no goals
    for part in PARTS:
        lines, spent = records[part.name]["lines"], timedelta(seconds=round(records[part.name]["seconds"]))
        sections.append(f"\n## {part.title}\n\n" + "\n".join(lines) + f"\n\n{spent} in all.\n")
    return head + "".join(sections)


def aims(records: dict[str, dict]) -> str:
    """Return a table of the goals: measured value, goal, and whether it was met."""
    facts = ChainMap(*(record["facts"] for record in records.values()))
    rows = [(f"step ÷ bare encoders, {name}", v, "≤ 1.05", v <= 1.05) for name, v in facts["beside"].items()]
    rows += [(f"images/s, {FAST_NAME} ÷ all off, {name}", v, "≥ 3", v >= 3) for name, v in facts["gains"].items()]
    ours = [(name, number) for name, number in facts["waits"].items() if "release" not in name]
    rows += [(f"waits outside the assignment, {name}", number, "0", number == 0) for name, number in ours]
    lines = [f"| {what} | {value:.3g} | {aim} | {'yes' if met else 'no'} |" for what, value, aim, met in rows]
    return "\n".join(["| | measured | aim | met |", "|---|--:|--:|---|", *lines])


if __name__ == "__main__":
    errors.run(main, "finished parts are stored; run the same command again to continue")
