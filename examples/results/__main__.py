"""Compare methods on a long-tailed data set over several seeds, and write a page of results.

    python -m examples.results                 # Fashion-MNIST, docs/results.md; takes hours
    python -m examples.results digits          # the digits
    python -m examples.results length --hours 8   # accuracy over the length of training
    python -m examples.results MY.ini --plan   # list the runs of your own plan

A plan sets the data, methods and seeds; examples/results/fashion.ini is a commented
example. The runs are stored in runs/results_NAME. If interrupted, run the same command
again to continue. --hours chooses the seeds and lengths of training that fit. --page
writes the page from the runs that have finished.
"""

import math
import shlex
import signal
import sys
import time
from pathlib import Path

from examples.results import page
from examples.results.budget import fit_to_hours
from examples.results.plan import Plan
from examples.results.plan_file import read_plan
from examples.results.running import OutOfTimeError, run_all, unpack_archive, wait_for_earlier_runs, write_archive
from examples.results.study import TUNING, Study
from examples.results.trials import unfinished_part
from utils import errors
from utils.cli.numbers import positive_float, positive_int
from utils.cli.parser import Parser
from utils.devices import check_device, resolve_device
from utils.distributed import log
from utils.distributed.launch import usable_cores
from utils.measure.results import format_markdown_table
from utils.run.folder import lock_run_dir

DEFAULT = "fashion"
GPU_JOBS = 8  # simultaneous runs; one small network leaves most of a GPU idle


def get_args_parser() -> Parser:
    parser = Parser(description=__doc__)
    parser.add_argument(
        "plan", nargs="?", default=DEFAULT, metavar="PLAN", help="Name of a plan in examples/results, or an .ini file."
    )
    parser.add_argument("--plan", dest="show", action="store_true", help="List the runs of the plan. Runs nothing.")
    parser.add_argument("--page", action="store_true", help="Write the page from the finished seeds. Runs nothing.")
    parser.add_argument(
        "--block",
        action="store_true",
        help="Rewrite the summary on the page and in README from the page's CSV table. Runs nothing.",
    )
    parser.add_argument("--seeds", type=positive_int, metavar="N", help="Number of seeds (default: the plan's).")
    parser.add_argument(
        "--hours",
        type=positive_float,
        metavar="H",
        help="Run only the seeds, lengths and sweeps of the plan that fit H hours in total on this machine. The speed "
        "is measured first.",
    )
    parser.add_argument(
        "--minutes",
        type=positive_float,
        metavar="M",
        help="Stop after M minutes. Unfinished runs save a checkpoint, and the page shows what has finished.",
    )
    parser.add_argument(
        "--archive",
        type=Path,
        metavar="FILE",
        help="Zip file with all results and the checkpoints of unfinished runs. The study continues from it if it "
        "exists, also on another machine, and writes it at the end.",
    )
    parser.add_argument(
        "--jobs",
        type=positive_int,
        metavar="N",
        help=f"Number of simultaneous runs (default: the number of cores; on a GPU at most {GPU_JOBS}).",
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
    for name in ("hours", "minutes", "archive"):
        if getattr(args, name) and (args.show or args.page or args.block):
            raise errors.InputError(f"--{name}: not supported with --plan, --page and --block, which run nothing")
    if args.seeds:
        lengths = dict.fromkeys(plan.lengths, args.seeds)
        plan = plan._replace(seeds=args.seeds, more_seeds=args.seeds, lengths=lengths)
    if args.block:
        log(f"wrote {', '.join(map(str, page.write_block(plan, Path(args.output))))}")
        return
    check_device(args.device, 1)
    folder = Path(args.folder or f"runs/results_{plan.name}")
    study = Study(plan, folder, resolve_device(args.device))
    if args.show:
        log(describe_plan(plan, study))
        return
    if not args.page:
        if not Path("main_moco_supcon_imba.py").is_file():
            raise errors.InputError(
                f"{Path.cwd()}: not this project's folder; start the study in {Path(__file__).parents[2]}"
            )
        cores = usable_cores()
        run(
            study,
            args.jobs or (cores if study.device.type == "cpu" else min(cores, GPU_JOBS)),
            args.hours,
            args.minutes,
            args.archive,
        )
    if args.minutes and not study.has_page():
        log(f"no page yet, because a method has fewer than two finished seeds; the runs are in {folder}")
        return
    # The page shows only the flags that affect its numbers, not --output or --jobs.
    shown_flags = [args.plan] if args.plan != DEFAULT else []
    shown_flags += ["--seeds", str(args.seeds)] if args.seeds else []
    shown_flags += ["--hours", f"{args.hours:g}"] if args.hours else []
    command = shlex.join(["python", "-m", "examples.results", *shown_flags])
    written = page.write(study.results(), Path(args.output), command)
    log(f"wrote {', '.join(map(str, written))}; the runs are in {folder}")


def run(
    study: Study, jobs: int, hours: float | None = None, minutes: float | None = None, archive_file: Path | None = None
) -> None:
    """Run all stages of the study in order, or what fits the hours or minutes, and keep the results in the archive."""
    deadline = time.monotonic() + 60 * (minutes or math.inf)
    for number in errors.EXIT_CODES.keys() - {signal.SIGINT}:  # like Ctrl-C, so that run_all stops its runs
        signal.signal(number, lambda number, _: sys.exit(errors.EXIT_CODES[number]))
    with lock_run_dir(study.folder):
        if archive_file and archive_file.exists():
            unpack_archive(archive_file, study.folder)
        study.prepare()
        study = fit_to_hours(study, hours, jobs) if hours else study
        try:
            run_stages(study, jobs, deadline)
        except OutOfTimeError:
            log(f"--minutes {minutes:g}: stopped; run the same command again to continue")
        finally:
            if archive_file:
                write_archive(study.folder, archive_file)
                log(f"wrote {archive_file}: copy this file to continue on another machine")


def run_stages(study: Study, jobs: int, deadline: float) -> None:
    """Run all stages until the deadline. Stages can depend on the results of earlier ones."""
    for stage, trials in study.stages():
        unfinished = [remaining for trial in trials if (remaining := unfinished_part(trial)).commands]
        if unfinished:
            wait_for_earlier_runs(unfinished)
            log(f"{stage}: {len(unfinished)} of {len(trials)} trials to run, {jobs} at a time")
            run_all(unfinished, jobs, deadline)
        if stage.startswith(TUNING):
            log(study.describe_rates(stage))


def describe_plan(plan: Plan, study: Study) -> str:
    """Return a table of the stages of a study with the trials that remain. Seeds that may be added are not counted."""
    rows, seen, hours, assumed = [], set(), 0.0, False
    for stage, trials in study.stages():
        new_trials = [trial for trial in trials if trial.run_dir not in seen]  # a sweep shares runs with the methods
        seen |= {trial.run_dir for trial in new_trials}
        remaining = new_trials if assumed else [trial for trial in new_trials if unfinished_part(trial).commands]
        hours += study.hours(remaining)
        rows.append([stage, str(len(new_trials)), str(len(remaining)), f"{study.hours(remaining):.1f}"])
        if remaining and stage.startswith(TUNING):
            study.assume_rates()
            assumed = True
    rows.append(["all", str(len(seen)), str(sum(int(row[2]) for row in rows)), f"{hours:.1f}"])
    lines = [f"{plan.title}: {study.folder}, on {study.device}", ""]
    lines.append(format_markdown_table(["stage", "trials", "to run", "hours of training on one core"], rows))
    lines += ["", "methods: " + "; ".join(method.title for method in plan.methods.values())]
    lines.append(
        "hours: estimated from the runs in the folder (0.0 if there are none), without the fits of the classifiers"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    errors.run(main, "run the same command again to continue")
