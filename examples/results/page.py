"""Write the page of a study: its text, table of trials (CSV) and figures, and the summary in README."""

import textwrap
from pathlib import Path

from examples.results import figures, lengths, reading, tables
from examples.results.plan import Plan, Sweep, sets_rate
from examples.results.reading import Results
from utils.errors import InputError
from utils.files import write_text
from utils.measure.results import SHOT_NOTE, format_markdown_table
from utils.report.runs import Stage, short_commit
from utils.report.trials import CONFIDENCE

BEGIN, END = "<!-- {}: written by python -m examples.results -->", "<!-- end of {} -->"
README = "README.md"
SWEEPS_PER_FIGURE = 4
IMAGES = {  # value of split_per_seed -> what differs between seeds
    False: "All seeds use the same training and validation images.",
    True: "Each seed also selects its own images (`--split-seed`), the same ones for all methods.",
}


def write(results: Results, output: Path, command: str) -> list[Path]:
    """Write NAME.md, NAME.csv and the figures. If README in the parent folder has the page's summary, replace it.

    Args:
        command: Command that reproduces the page. The page shows it.

    Returns:
        The files written.

    Raises:
        InputError: Some method has fewer than two finished seeds.
    """
    plan = results.plan
    if not reading.enough_seeds(plan, results.groups):
        raise InputError(f"{plan.title}: expected 2 finished seeds of each method. Run the plan without --page first")
    output.mkdir(parents=True, exist_ok=True)
    largest = max(plan.imbalances)
    drawn_figures = {"lengths": (lengths.accuracy(results), lengths.CAPTION)} if len(results.lengths) > 1 else {}
    drawn_figures |= {
        "accuracy": (
            figures.accuracy(results),
            "Test accuracy with the classifier selected on validation, one dot per seed.",
        ),
        "differences": (
            figures.differences(results),
            f"Paired differences with {CONFIDENCE:.0%} confidence intervals.",
        ),
    }
    if any(run.target_match for runs in results.groups.values() for run in runs):
        caption = f"Classes at ρ = {largest:g}: how closely TSC's targets are reached, and test accuracy."
        drawn_figures["mechanism"] = figures.mechanism(results, largest), caption
    caption = "Accuracy of each classifier on the same features, mean over seeds."
    drawn_figures["heads"] = figures.heads(results, largest), caption
    sweeps = finished_sweeps(results)
    for number, first in enumerate(range(0, len(sweeps), SWEEPS_PER_FIGURE), start=1):
        group = sweeps[first : first + SWEEPS_PER_FIGURE]
        drawn_figures[f"sweeps_{number}"] = figures.sweeps(results, group), " ".join(map(describe_sweep, group))
    figure_files = []
    for name, (figure, caption) in drawn_figures.items():
        figure_files.append((output / f"{plan.page}_{name}.png", caption))
        figures.save(figure, figure_files[-1][0])
    page, table = output / f"{plan.page}.md", output / f"{plan.page}.csv"
    write_text(page, page_text(results, figure_files, command))
    write_text(table, reading.csv_table(results))
    readme = output.resolve().parent / README
    return [page, table, *(path for path, _ in figure_files), *_replace_block(results, readme)]


def write_block(plan: Plan, output: Path) -> list[Path]:
    """Rewrite the summary on the page and in README, and two figures, from the CSV table of the page.

    Raises:
        InputError: The page or its table does not exist, or a method has fewer than two seeds in it.
    """
    results, page = reading.read_table(plan, output / f"{plan.page}.csv"), output / f"{plan.page}.md"
    if not reading.enough_seeds(results.plan, results.groups):
        raise InputError(
            f"{page.with_suffix('.csv')}: a method has fewer than two seeds. --page writes this table from the runs"
        )
    written = _replace_block(results, page)
    if not written:
        raise InputError(f"{page}: no such page, or the page has no summary. --page writes it from the runs")
    drawn = {"accuracy": figures.accuracy, "differences": figures.differences}
    drawn |= {"lengths": lengths.accuracy} if len(results.lengths) > 1 else {}
    files = [output / f"{plan.page}_{name}.png" for name in drawn]
    for file, draw in zip(files, drawn.values(), strict=True):
        figures.save(draw(results), file)
    return [*written, *_replace_block(results, output.resolve().parent / README), *files]


def finished_sweeps(results: Results) -> list[Sweep]:
    """Return the sweeps in which at least one method has finished runs for two values."""

    def count_finished(sweep: Sweep, key: str) -> int:
        return sum(bool(runs) for (method, _), runs in results.sweeps[sweep.key].items() if method == key)

    return [sweep for sweep in results.plan.sweeps if any(count_finished(sweep, key) > 1 for key in sweep.methods)]


def describe_sweep(sweep: Sweep) -> str:
    """Return the caption of a sweep with its imbalance and length."""
    after = f", {sweep.length:,} epochs" if sweep.length else ""
    return f"{sweep.caption} ρ = {sweep.imbalance:g}{after}."


def page_text(results: Results, figure_files: list[tuple[Path, str]], command: str) -> str:
    """Return the page. figure_files: the file and the caption of each figure."""
    plan = results.plan
    parts = [f"# {plan.title}", introduction(results, command), block(results)]
    parts += [f"![{caption}]({path.name})" for path, caption in figure_files]
    parts += [details(f"Summary at {plan.length:,} epochs", tables.summary(results))] if results.lengths else []
    parts += [details("Paired differences", tables.differences(results))]
    parts += [details("Features", FEATURES + "\n\n" + tables.feature_table(results))]
    parts += [details(f"All classifiers, ρ = {rho:g}", tables.head_table(results, rho)) for rho in plan.imbalances]
    parts += [details(describe_sweep(sweep), tables.sweep_table(results, sweep)) for sweep in finished_sweeps(results)]
    parts += [details("Accuracy of each seed", tables.seed_table(results)), f"## {PROVENANCE}", provenance(results)]
    return "\n\n".join(parts) + "\n"


PROVENANCE = "How this page was made"
FEATURES = (
    "Measures of the validation features in the last epoch of stage 1: alignment A (lower is tighter), uniformity U "
    "and U_k (higher is more even), neural collapse NC1 and NC2 (0 is complete). [seeing.md](seeing.md#the-measures) "
    "has the formulas. The last three columns are for TSC: the cosine between each class centre and its target, "
    "averaged over all and over few-shot classes, and the share of images whose nearest target is that of their class."
)
BLOCK_DIFFERENCES = (
    f"The next table shows differences in test accuracy, in percentage points, with {CONFIDENCE:.0%} confidence "
    "intervals. **Bold** means that the interval does not contain 0, so the difference is significant. If no methods "
    "differed, one interval in 20 would still be bold:"
).replace("%", " %")


def block(results: Results) -> str:
    """Return the part of the page that README also shows: the summary table, its conclusion and the differences."""
    name = results.plan.page
    source = lengths if results.lengths else tables
    conclusion = " ".join([*source.sentences(results), BLOCK_DIFFERENCES])
    conclusion = textwrap.fill(conclusion, 120, break_long_words=False, break_on_hyphens=False)
    parts = [BEGIN.format(name), source.summary(results), conclusion, source.difference_summary(results)]
    return "\n\n".join([*parts, END.format(name)])


def introduction(results: Results, command: str) -> str:
    """Say what the page compares, how to repeat the study, and how to read the tables."""
    plan = results.plan
    counts = {rho: runs[0].heads["train_counts"] for (rho, _), runs in results.groups.items() if runs}
    sizes = [[f"{rho:g}", f"{sum(sizes):,}", ", ".join(map(str, sizes))] for rho, sizes in counts.items()]
    tuned = f"from {', '.join(plan.rates)} by one run per rate (seed {plan.tune_seed}, ρ = {plan.tune_imbalance:g})"
    tuned += ", averaged over each rate and its neighbours in the grid" if len(plan.rates) > 2 else ""
    tuned += " at each length" if len(results.lengths) > 1 else ""
    if results.lengths and plan.longest_tuned < plan.length:
        longest = f"{plan.longest_tuned:,} epochs"
        tuned += f" up to {longest}, and longer runs use the rate selected at {longest}"
    which = "each method whose flags set none" if any(map(sets_rate, plan.methods.values())) else "each method"
    rates = f" The learning rate of {which} is selected {tuned}." if len(plan.rates) > 1 else ""
    hours = (
        f"The training of the {len(training_runs(results))} networks in the tables took {training_hours(results):.1f}"
    )
    hours += " hours, without the runs that select learning rates" if rates else " hours"
    return "\n\n".join(
        [
            f"This page compares {len(plan.methods)} methods, with {describe_seeds(results)}. ρ is the imbalance: the "
            "number of training images of the largest class divided by that of the smallest. To repeat the study, run "
            f"`{command}`. {hours} ([machines and versions](#{PROVENANCE.lower().replace(' ', '-')})).",
            f"{plan.same} {IMAGES[plan.split_per_seed]}".strip(),
            *([lengths.describe(results)] if results.lengths else []),
            "The tables show test accuracy in percent, as mean ± standard deviation over seeds, with few-shot accuracy "
            f"in parentheses. {SHOT_NOTE}. They are accuracies of classifiers that are fitted to the features of the "
            "trained network, or were trained with it. In each run, the classifier and its hyperparameters with the "
            f"best validation accuracy are selected, from the same candidates for all methods.{rates} Intervals are "
            "those of the difference between two methods with the same seeds (Student's t distribution). An interval "
            "that contains 0 does not show which method is better.",
            format_markdown_table(["ρ", "training images", "images of each class"], sizes),
        ]
    )


def training_runs(results: Results) -> list[Stage]:
    """Return all runs that train a network, each once."""
    runs = [run for groups in (results.groups, *results.lengths.values()) for runs in groups.values() for run in runs]
    runs += [run for cells in results.sweeps.values() for runs in cells.values() for run in runs]
    return list({run.stage.folder: run.stage for run in runs if run.stage}.values())


def training_hours(results: Results) -> float:
    return sum(record["seconds"] for stage in training_runs(results) for record in stage.epochs) / 3600


def provenance(results: Results) -> str:
    """Describe the runs, the machines and the versions of the code."""
    stages = training_runs(results)
    machines = sorted(
        {
            f"{start['machine'].split('-')[0]}, {start.get('processor') or run.args['device']}, "
            f"PyTorch {start['versions']['torch']}"
            for run in stages
            for start in run.starts
        }
    )
    commits = sorted({short_commit(start) for stage in stages for start in stage.starts})
    return (
        f"{len(stages)} networks were trained in {training_hours(results):.1f} hours. Machines: {'; '.join(machines)}. "
        f"Commits: {' and '.join(commits)}."
    )


def describe_seeds(results: Results) -> str:
    """Return `5 seeds`, or `5 seeds at ρ = 100 and 3 at ρ = 10`. Add a sentence if the first pair has more seeds."""
    plan = results.plan
    num_seeds = {rho: tables.num_common_seeds(results, rho) for rho in plan.imbalances}
    first, *others = (f"{number} seeds at ρ = {rho:g}" for rho, number in num_seeds.items())
    text = f"{num_seeds[plan.imbalances[0]]} seeds"
    if len({*num_seeds.values()}) > 1:
        text = tables.listed([first, *(other.replace(" seeds", "") for other in others)])
    if len(results.lengths) > 1:
        text = lengths.describe_seeds(results)
    pairs = {rho: [results.groups[rho, key] for key in plan.pairs[0]] for rho in num_seeds} if plan.pairs else {}
    after = f" after {plan.length:,} epochs" if results.lengths else ""
    more = [
        f"{pair_seeds} seeds at ρ = {rho:g}{after}"
        for rho, pair in pairs.items()
        if (pair_seeds := min(map(len, pair))) > plan.seeds
    ]
    if not more:
        return text
    first, other = (plan.methods[key].title for key in plan.pairs[0])
    return (
        f"{text}. {first} and {other} have {' and '.join(more)}, because the interval of their difference was too wide "
        f"with {plan.seeds}. We added these seeds after seeing the interval, so its true coverage is below 95 %"
    )


def details(title: str, table: str) -> str:
    """Return a section that is folded until the reader opens it."""
    return f"<details>\n<summary>{title}</summary>\n\n{table}\n\n</details>"


def _replace_block(results: Results, file: Path) -> list[Path]:
    """Replace the block between its marks. Return [file], or [] if the file has no such marks."""
    begin, end = (mark.format(results.plan.page) for mark in (BEGIN, END))
    content = file.read_text(encoding="utf-8") if file.is_file() else ""
    if begin not in content or end not in content:
        return []
    before, rest = content.split(begin, 1)
    write_text(file, before + block(results) + rest.split(end, 1)[1])
    return [file]
