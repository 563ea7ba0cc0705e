"""Write the page of a study, its table of trials (CSV), its figures, and the same summary in README."""

from pathlib import Path

import numpy as np

from examples.results import figures, reading, tables
from examples.results.plan import VIEWS, Plan, Sweep
from examples.results.reading import Results
from utils.errors import InputError
from utils.files import csv_text, write_text
from utils.measure.results import SHOT_NOTE, SHOTS, best_of
from utils.report.trials import CONFIDENCE

BEGIN, END = "<!-- {}: written by python -m examples.results -->", "<!-- end of {} -->"
README = "README.md"
SWEEPS_A_FIGURE = 4


def write(results: Results, output: Path, command: str) -> list[Path]:
    """Write NAME.md, NAME.csv and the figures. If README in the parent folder has the page's block, replace it.

    Args:
        command: Command that reproduces the page, printed on it.

    Returns:
        The files written.

    Raises:
        InputError: Some method has fewer than two finished seeds.
    """
    plan = results.plan
    ways = {key: method.way for key, method in plan.methods.items()}
    if min(len(runs) + (ways[key] not in VIEWS) for (_, key), runs in results.groups.items()) < 2:
        raise InputError(f"{plan.title}: expected 2 finished seeds of each method. Run the plan without --page first")
    output.mkdir(parents=True, exist_ok=True)
    most = max(plan.imbalances)
    drawn = {
        "accuracy": (
            figures.accuracy(results),
            "Test accuracy with the classifier selected on validation, one dot per seed.",
        ),
        "differences": (
            figures.differences(results),
            f"Paired differences with {CONFIDENCE:.0%} confidence intervals.",
        ),
    }
    if any(run.reached for runs in results.groups.values() for run in runs):
        caption = f"Classes at ρ = {most:g}: how closely TSC's targets are reached, and test accuracy."
        drawn["mechanism"] = figures.mechanism(results, most), caption
    drawn["heads"] = figures.heads(results, most), "Accuracy of each classifier on the same features, mean over seeds."
    swept = swept_of(results)
    for number, first in enumerate(range(0, len(swept), SWEEPS_A_FIGURE), start=1):
        part = swept[first : first + SWEEPS_A_FIGURE]
        drawn[f"sweeps_{number}"] = figures.sweeps(results, part), " ".join(sweep.caption for sweep in part)
    pictures = []
    for name, (figure, caption) in drawn.items():
        pictures.append((output / f"{plan.page}_{name}.png", caption))
        figures.save(figure, pictures[-1][0])
    page, table = output / f"{plan.page}.md", output / f"{plan.page}.csv"
    write_text(page, text(results, pictures, command))
    write_text(table, trials(results))
    readme = output.resolve().parent / README
    return [page, table, *(path for path, _ in pictures), *_replace_block(results, readme)]


def write_block(plan: Plan, output: Path) -> list[Path]:
    """Rewrite the summary and its sentences, on the page and in README, from the page's own table.

    Raises InputError: the page or its table does not exist.
    """
    results, page = reading.read_table(plan, output / f"{plan.page}.csv"), output / f"{plan.page}.md"
    written = _replace_block(results, page)
    if not written:
        raise InputError(f"{page}: no such page, or it has no summary; --page writes it from the runs")
    return [*written, *_replace_block(results, output.resolve().parent / README)]


def swept_of(results: Results) -> list[Sweep]:
    """Return the sweeps in which at least one method has finished runs for two values."""

    def ended(sweep: Sweep, key: str) -> int:
        return sum(bool(runs) for (method, _), runs in results.sweeps[sweep.key].items() if method == key)

    return [sweep for sweep in results.plan.sweeps if any(ended(sweep, key) > 1 for key in sweep.methods)]


def text(results: Results, pictures: list[tuple[Path, str]], command: str) -> str:
    plan = results.plan
    parts = [f"# {plan.title}", about(results, command), block(results)]
    parts += [f"![{caption}]({path.name})\n\n{caption}" for path, caption in pictures]
    parts += [folded("Paired differences", tables.differences(results))]
    parts += [folded("Features", FEATURES + "\n\n" + tables.feature_table(results))]
    parts += [folded(f"All classifiers, ρ = {rho:g}", tables.head_table(results, rho)) for rho in plan.imbalances]
    parts += [
        folded(f"{sweep.caption} ρ = {sweep.imbalance:g}", tables.sweep_table(results, sweep))
        for sweep in swept_of(results)
    ]
    parts += [folded("Accuracy of each seed", tables.seed_table(results))]
    return "\n\n".join(parts) + "\n"


FEATURES = (
    "Measures of the validation features in the last epoch of stage 1: alignment A (lower is tighter), uniformity U "
    "and U_k (higher is more even), neural collapse NC1 and NC2 (0 is complete). For TSC: the cosine of each class "
    "centre and its target, averaged over all and over few-shot classes, and the share of images whose nearest target "
    "is their own."
)


def block(results: Results) -> str:
    """Return the part of the page that README also shows: the table and the sentences."""
    lines = "\n".join(f"- {sentence}" for sentence in tables.verdict(results))
    name = results.plan.page
    return f"{BEGIN.format(name)}\n\n{tables.summary(results)}\n\n{lines}\n\n{END.format(name)}"


def about(results: Results, command: str) -> str:
    """Describe what was run, on which machines, and how to read the table."""
    runs = [run for runs in results.groups.values() for run in runs]
    runs += [run for cells in results.sweeps.values() for runs in cells.values() for run in runs]
    stages = {run.stage.folder: run.stage for run in runs if run.stage}.values()
    machines = sorted(
        {
            f"{s.about['machine'].split('-')[0]}, {s.args['device']}, PyTorch {s.about['versions']['torch']}"
            for s in stages
        }
    )
    commits = sorted({str(stage.about["git"])[:10] for stage in stages})
    hours = sum(record["seconds"] for stage in stages for record in stage.epochs) / 3600
    counts = {rho: runs[0].heads["train_counts"] for (rho, _), runs in results.groups.items() if runs}
    sizes = "; ".join(f"ρ = {rho:g}: {sum(of)} ({', '.join(map(str, of))})" for rho, of in counts.items())
    plan = results.plan
    tuned = f"one run per rate (seed {plan.tune_seed}, ρ = {plan.tune_imbalance:g})"
    tuned += ", averaged over each rate and its neighbours in the grid" if len(plan.rates) > 2 else ""
    rates = f" The learning rate of each method is selected by {tuned}." if len(plan.rates) > 1 else ""
    return "\n\n".join(
        [
            f"`{command}` ran {len(stages)} trainings, {hours:.1f} hours in total, with {how_many_seeds(results)}. "
            f"Machines: {'; '.join(machines)}. Commits: {' and '.join(commits)}. {results.plan.same}",
            "The tables show test accuracy in percent, as mean ± standard deviation over seeds, with few-shot accuracy "
            f"in parentheses. {SHOT_NOTE}. In each run, the classifier and its hyperparameters are selected on the "
            f"validation split, by the same rule and from the same grid for all methods.{rates} Intervals are those of "
            "paired differences, by Student's t. An interval that contains 0 does not show which method is better. "
            f"Training images per class: {sizes}.",
        ]
    )


def how_many_seeds(results: Results) -> str:
    """Return `5 seeds` or `seeds: 5 at ρ = 100, 3 at ρ = 10`, and where the first pair has additional seeds."""
    plan, trained = results.plan, [key for key, method in results.plan.methods.items() if method.way in VIEWS]
    of = {rho: min(len(results.groups[rho, key]) for key in trained) for rho in plan.imbalances}
    parts = [f"{number} at ρ = {rho:g}" for rho, number in of.items()]
    text = f"{of[plan.imbalances[0]]} seeds" if len({*of.values()}) == 1 else "seeds: " + ", ".join(parts)
    pairs = {rho: [results.groups[rho, key] for key in plan.pairs[0]] for rho in of} if plan.pairs else {}
    more = [f"{most} at ρ = {rho:g}" for rho, pair in pairs.items() if (most := min(map(len, pair))) > plan.seeds]
    note = f" (first pair: {', '.join(more)}, as fewer did not resolve it; its interval covers less than 95 %)"
    return text + (note if more else "")


def folded(title: str, table: str) -> str:
    return f"<details>\n<summary>{title}</summary>\n\n{table}\n\n</details>"


def trials(results: Results) -> str:
    """Return the CSV table with one row per trial."""
    rows = [["imbalance", "method", "sweep", "seed", "head", *SHOTS, "all", "val", *tables.MEASURES, "seconds"]]
    cells = [((rho, key, ""), runs) for (rho, key), runs in results.groups.items()]
    for sweep in results.plan.sweeps:
        for (key, value), runs in results.sweeps[sweep.key].items():
            cells.append(((sweep.imbalance, key, f"{sweep.flag.lstrip('-')} {value}"), runs))
    for at, runs in cells:
        for run in runs:
            chosen = run.heads["selected"]
            head = best_of(run.heads["heads"])
            numbers = [*reading.accuracy([run])[0], chosen["val_balanced"], *(run.measure(m) for m in tables.MEASURES)]
            shown = ["" if n is None or np.isnan(n) else f"{n:.4g}" for n in numbers]
            rows.append([*at, run.seed, head, *shown, f"{run.seconds:.0f}"])
    return csv_text(rows)


def _replace_block(results: Results, file: Path) -> list[Path]:
    """Replace the block between its marks. Return the file, or nothing if it has no such marks."""
    begin, end = (mark.format(results.plan.page) for mark in (BEGIN, END))
    content = file.read_text(encoding="utf-8") if file.is_file() else ""
    if begin not in content or end not in content:
        return []
    before, rest = content.split(begin, 1)
    write_text(file, before + block(results) + rest.split(end, 1)[1])
    return [file]
