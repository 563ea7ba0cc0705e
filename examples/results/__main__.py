"""Compare methods on a long-tailed data set over several seeds, and write a page of results.

    python -m examples.results                 # Fashion-MNIST, docs/results.md; takes hours
    python -m examples.results digits          # the digits
    python -m examples.results MY.ini --plan   # list what your own plan would run

A plan (such as examples/results/fashion.ini, which is commented) names the data, methods
and seeds. Runs are kept in runs/results_NAME. If interrupted, run the same command again
to continue; --page writes the page of the runs that have finished.
"""

import shlex
import signal
import sys
from pathlib import Path

from examples.results import page
from examples.results.plan import Plan
from examples.results.plan_file import read_plan
from examples.results.running import run_all, wait_for_others
from examples.results.study import TUNING, Study
from examples.results.trials import left_of
from utils import errors
from utils.devices import check_device, device_named
from utils.distributed import say
from utils.measure.results import markdown
from utils.parser import Parser, positive_int
from utils.run.folder import lock_run_dir
from utils.run.launch import usable_cores

DEFAULT = "fashion"
ON_A_GPU = 4  # runs at a time, because one small network leaves most of a GPU idle


def get_args_parser() -> Parser:
    parser = Parser(description=__doc__)
    parser.add_argument(
        "plan", nargs="?", default=DEFAULT, metavar="PLAN", help="Name of a plan in examples/results, or an .ini file."
    )
    parser.add_argument("--plan", dest="show", action="store_true", help="List the runs of the plan, and run nothing.")
    parser.add_argument("--page", action="store_true", help="Write the page of the finished seeds, and run nothing.")
    parser.add_argument(
        "--block",
        action="store_true",
        help="Rewrite the summary of the page and of README from the page's CSV table, and run nothing.",
    )
    parser.add_argument("--seeds", type=positive_int, metavar="N", help="Number of seeds, instead of the plan's.")
    parser.add_argument(
        "--jobs",
        type=positive_int,
        metavar="N",
        help=f"Number of runs at a time (default: the number of cores, or {ON_A_GPU} on a GPU).",
    )
    parser.add_argument("--device", default="auto", help="Device of all runs, such as cpu or cuda.")
    parser.add_argument("--folder", metavar="DIR", help="Folder for the runs (default: runs/results_NAME).")
    parser.add_argument("--output", default="docs", metavar="DIR", help="Folder for the page, table and figures.")
    return parser


def main(argv: list[str] | None = None) -> None:
    args = get_args_parser().parse_args(argv)
    plan = read_plan(args.plan)
    if args.seeds == 1:
        raise errors.InputError("--seeds 1: expected 2 or more (one seed has no standard deviation)")
    plan = plan._replace(seeds=args.seeds, more_seeds=args.seeds) if args.seeds else plan
    if args.block:
        say(f"wrote {', '.join(map(str, page.write_block(plan, Path(args.output))))}")
        return
    check_device(args.device, 1)
    folder = Path(args.folder or f"runs/results_{plan.name}")
    study = Study(plan, folder, device_named(args.device))
    if args.show:
        say(described(plan, study))
        return
    if not args.page:
        run(study, args.jobs or (usable_cores() if study.device.type == "cpu" else ON_A_GPU))
    # The page shows only the flags that affect its numbers, not --output or --jobs.
    asked = [args.plan] if args.plan != DEFAULT else []
    asked += ["--seeds", str(args.seeds)] if args.seeds else []
    command = shlex.join(["python", "-m", "examples.results", *asked])
    written = page.write(study.results(), Path(args.output), command)
    say(f"wrote {', '.join(map(str, written))}; the runs are in {folder}")


def run(study: Study, jobs: int) -> None:
    """Run all stages of the study. Each stage depends on the results of the previous ones."""
    for number in (signal.SIGTERM, signal.SIGUSR1):  # as for Ctrl-C, run_all then stops its runs
        signal.signal(number, lambda number, _: sys.exit(errors.EXIT_CODES[number]))
    with lock_run_dir(study.folder):
        study.prepare()
        for what, trials in study.stages():
            waiting = [left for trial in trials if (left := left_of(trial)).commands]
            if waiting:
                wait_for_others(waiting)
                say(f"{what}: {len(waiting)} of {len(trials)} trials to run, {jobs} at a time")
                run_all(waiting, jobs)
            if what == TUNING:
                say(
                    f"rates selected on validation: {', '.join(f'{key} {rate}' for key, rate in study.rates().items())}"
                )


def described(plan: Plan, study: Study) -> str:
    """Describe the stages of a study and the remaining trials of each, without seeds that may be added at the end."""
    rows, seen, hours, assumed = [], set(), 0.0, False
    for what, trials in study.stages():
        new = [trial for trial in trials if trial.run_dir not in seen]  # a sweep shares runs with the methods
        seen |= {trial.run_dir for trial in new}
        left = new if assumed else [trial for trial in new if left_of(trial).commands]
        hours += study.hours(left)
        rows.append([what, str(len(new)), str(len(left)), f"{study.hours(left):.1f}"])
        if left and what == TUNING:
            study.assume_rates()
            assumed = True
    rows.append(["all", str(len(seen)), str(sum(int(row[2]) for row in rows)), f"{hours:.1f}"])
    lines = [f"{plan.title}: {study.folder}, on {study.device}", ""]
    lines.append(markdown(["stage", "trials", "to run", "hours of training, one at a time"], rows))
    lines += ["", "methods: " + "; ".join(method.title for method in plan.methods.values())]
    lines.append("hours: estimated from the training in the folder (0.0 without any); classifiers take seconds more")
    return "\n".join(lines)


if __name__ == "__main__":
    errors.run(main, "run the same command again to continue")
