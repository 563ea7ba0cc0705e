"""Choose the seeds and lengths of a study that fit a number of hours on this machine, and describe its runs."""

import shutil
import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from examples.results.plan import TRAINS_NETWORK, Plan
from examples.results.running import run_all
from examples.results.study import TUNING, Study
from examples.results.trials import Cell, unfinished_part
from utils.distributed import log
from utils.errors import InputError
from utils.files import format_json, write_text
from utils.measure.results import format_markdown_table
from utils.report.runs import read_stage
from utils.safe_load import read_json

EPOCHS = 3  # epochs of the measured runs; the first one is not counted, because libraries start in it
FEWEST_SEEDS = 3  # a length is left out before a length has fewer seeds, except for the shortest one


class Speed(NamedTuple):
    """The measured speed of simultaneous runs.

    Attributes:
        jobs: Number of simultaneous runs.
        view: Seconds of training per view.
        run: Seconds of a run that do not depend on its length: start, features and classifiers.
    """

    jobs: int
    view: float
    run: float


def fit_to_hours(study: Study, hours: float, jobs: int) -> Study:
    """Return the study with the seeds, lengths and sweeps that fit, and log what is left out.

    Finished runs count, so that the same command continues the same study.

    Raises:
        InputError: Two seeds of the shortest length do not fit.
    """
    speed = measure_speed(study, jobs)
    for plan in smaller_plans(study.plan):
        smaller = Study(plan, study.folder, study.device)
        if (needed := estimate_hours(smaller, speed)) <= hours:
            log(f"--hours {hours:g}: {describe_choice(study.plan, plan)}. Estimate: {needed:.1f} hours")
            return smaller
    raise InputError(f"--hours {hours:g}: expected {needed:.1f} or more, for {describe_choice(study.plan, plan)}")


def measure_speed(study: Study, jobs: int) -> Speed:
    """Measure the speed with short runs of a method, contrastive if possible, or read it from the folder.

    Raises:
        InputError: The plan trains no network.
    """
    file, folder = study.folder / "speed.json", study.folder / "speed"
    if file.exists() and (stored := read_json(file)).keys() == {*Speed._fields} and stored["jobs"] == jobs:
        log(f"speed: read from {file}; delete this file to measure again")
        return Speed(**stored)
    trained = [method for method in study.plan.methods.values() if method.stage1 in TRAINS_NETWORK]
    if not trained:
        raise InputError(f"--hours: {study.plan.title} trains no network. Run the plan without --hours")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    measured = Study(study.plan, folder, study.device)
    measured.prepare()
    method = min(trained, key=lambda method: method.stage1 != "contrast")
    flags = ["--epochs", str(EPOCHS), *(["--monitor-freq", str(EPOCHS)] if method.stage1 == "contrast" else [])]
    flags += ["--lr", study.plan.rates[0]] if study.plan.rates else []
    flags += ["--warmup-epochs", "0"]  # a warm-up may be longer than the measured runs
    cell = Cell(study.plan.imbalances[0], method, tuple(flags))
    log(f"measuring the speed with {jobs} runs of {EPOCHS} epochs")
    runs, started = [measured.trial(cell, seed) for seed in range(jobs)], time.monotonic()
    run_all(runs, jobs)
    seconds = time.monotonic() - started
    epoch = np.mean([record["seconds"] for run in runs for record in read_stage(run.run_dir).epochs[1:]])
    speed = Speed(jobs, epoch * EPOCHS / measured.weight(cell), max(0.0, seconds - EPOCHS * epoch))
    write_text(file, format_json(speed._asdict()))
    return speed


def estimate_hours(study: Study, speed: Speed) -> float:
    """Return the hours of all runs of a study, including finished ones and seeds that may be added."""
    counts = study.most_runs()
    seconds = sum(count * (study.weight(cell) * speed.view + speed.run) for cell, count in counts.items())
    return seconds / speed.jobs / 3600


def smaller_plans(plan: Plan) -> Iterator[Plan]:
    """Yield the plan, then smaller ones: without added seeds, sweeps, some of the seeds, and the longest lengths."""
    yield plan
    plan = plan._replace(more_seeds=plan.seeds)
    for number in range(len(plan.sweeps), -1, -1):
        yield plan._replace(sweeps=plan.sweeps[:number])
    plan, lengths = plan._replace(sweeps=()), [*(plan.lengths or {None: plan.seeds}).items()]
    for number in range(len(lengths), 0, -1):
        kept = dict(lengths[:number])
        fewest = min(FEWEST_SEEDS, max(kept.values())) if number > 1 else 2
        for most in range(max(kept.values()), fewest - 1, -1):
            yield with_seeds(plan, {length: min(most, seeds) for length, seeds in kept.items()})


def with_seeds(plan: Plan, seeds: dict[int | None, int]) -> Plan:
    """Return the plan with length -> number of seeds (None: the plan has no lengths), without added seeds."""
    smaller = plan._replace(seeds=seeds[None]) if None in seeds else plan.with_lengths(seeds)
    return smaller._replace(more_seeds=smaller.seeds)


def describe_plan(study: Study) -> str:
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
    lines = [f"{study.plan.title}: {study.folder}, on {study.device}", ""]
    lines.append(format_markdown_table(["stage", "trials", "to run", "hours of training on one core"], rows))
    lines += ["", "methods: " + "; ".join(method.title for method in study.plan.methods.values())]
    lines.append(
        "hours: estimated from the runs in the folder (0.0 if there are none), without the fits of the classifiers"
    )
    return "\n".join(lines)


def describe_choice(plan: Plan, chosen: Plan) -> str:
    """Return what is chosen of a plan, as in `5 of 5 seeds at 30 epochs, 0 of 3 seeds at 1,000 epochs, no sweep tw`."""
    parts = [f"{chosen.seeds} of {plan.seeds} seeds"] if not plan.lengths else []
    parts += [
        f"{chosen.lengths.get(length, 0)} of {n} seeds at {length:,} epochs" for length, n in plan.lengths.items()
    ]
    parts += [f"no sweep {sweep.key}" for sweep in plan.sweeps if sweep not in chosen.sweeps]
    parts += ["no added seeds"] if plan.more_seeds > plan.seeds and chosen.more_seeds == chosen.seeds else []
    return ", ".join(parts)
