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

from utils import startup  # before imports that take seconds

# isort: split

import argparse
import math
import shlex
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from utils import errors
from utils.cli.numbers import positive_float, positive_int
from utils.cli.parser import Parser
from utils.distributed import log
from utils.files import file_problem

if TYPE_CHECKING:
    from examples.results.reading import Results
    from examples.results.study import Study

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
        help="Stop the runs after M minutes. Unfinished runs save a checkpoint; the page shows the finished runs.",
    )
    parser.add_argument(
        "--archive",
        type=Path,
        metavar="FILE",
        help="Zip file for all results and the checkpoints of unfinished runs, written at the end. If the file exists, "
        "the study continues from it. Use it to continue on another machine. With --page: only read the results from "
        "it.",
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


def check_flags(args: argparse.Namespace) -> None:
    """Raise InputError if flags contradict each other, or if the archive to read does not exist."""
    if args.seeds == 1:
        raise errors.InputError("--seeds 1: expected 2 or more (one seed has no standard deviation)")
    for name in ("hours", "minutes"):
        if getattr(args, name) and (args.show or args.page or args.block):
            raise errors.InputError(f"--{name}: not supported with --plan, --page and --block, which run nothing")
    if args.archive and (args.show or args.block):
        raise errors.InputError("--archive: not supported with --plan and --block")
    if args.archive and args.page and (problem := file_problem(args.archive)):
        raise errors.InputError(f"--archive {args.archive}: {problem}")


def run_study(planned: "Study", args: argparse.Namespace) -> "Study":
    """Run what is left of a study. Return the study, which is smaller with --hours."""
    from examples.results import budget, running
    from utils import devices

    if not Path("main_moco_supcon_imba.py").is_file():
        raise errors.InputError(
            f"{Path.cwd()}: not this project's folder; start the study in {Path(__file__).parents[2]}"
        )
    most_jobs = GPU_JOBS if planned.device.type == "cuda" else math.inf
    jobs = args.jobs or min(devices.usable_cores(), most_jobs)
    with running.open_study(planned, args.archive):
        planned = budget.fit_to_hours(planned, args.hours, jobs) if args.hours else planned
        running.run_stages(planned, jobs, args.minutes)
    return planned


def archived_results(planned: "Study", archive: Path) -> "Results | None":
    """Return the results of a study's archive, or None if they are not enough for a page. Nothing is changed."""
    from examples.results import running, study

    with tempfile.TemporaryDirectory() as folder:
        archived = study.Study(planned.plan, Path(folder), planned.device)
        running.unpack_archive(archive, archived)
        return archived.page_results()


def main(argv: list[str] | None = None) -> None:
    args = get_args_parser().parse_args(argv)
    with startup.slow_imports():
        from examples.results import budget, page, plan_file, study
        from utils import devices

    plan = plan_file.read_plan(args.plan)
    check_flags(args)
    if args.seeds:
        lengths = dict.fromkeys(plan.lengths, args.seeds)
        plan = plan._replace(seeds=args.seeds, more_seeds=args.seeds, lengths=lengths)
    if args.block:
        log(f"wrote {', '.join(map(str, page.write_block(plan, Path(args.output))))}")
        return
    folder = Path(args.folder or f"runs/results_{plan.name}")
    planned = study.Study(plan, folder, devices.pick_device(args.device))
    if args.show:
        log(budget.describe_plan(planned))
        return
    if args.page and args.archive:
        results, folder = archived_results(planned, args.archive), args.archive
    else:
        planned = planned if args.page else run_study(planned, args)
        results = planned.page_results() if args.minutes else planned.results()
    if results is None:
        log(f"no page yet, because a method has fewer than two finished seeds; the runs are in {folder}")
        return
    # The page shows only the flags that affect its numbers, not --output or --jobs.
    shown_flags = [args.plan] if args.plan != DEFAULT else []
    shown_flags += ["--seeds", str(args.seeds)] if args.seeds else []
    shown_flags += ["--hours", f"{args.hours:g}"] if args.hours else []
    command = shlex.join(["python", "-m", "examples.results", *shown_flags])
    written = page.write(results, Path(args.output), command)
    log(f"wrote {', '.join(map(str, written))}; the runs are in {folder}")


if __name__ == "__main__":
    errors.run(main, "run the same command again to continue")
