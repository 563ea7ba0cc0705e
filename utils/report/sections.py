"""The sections of a report."""

from collections.abc import Callable

import numpy as np

from utils.measure.results import CHOICES, HEADS_NOTE, SHOT_NOTE, best_head, heads_rows, results_rows
from utils.report import figures as plots
from utils.report.page import Section, Table
from utils.report.runs import Run, Stage, differences, short_commit, transpose
from utils.report.style import LIGHT, draw
from utils.report.typed import typed_flags
from utils.run.logger import flatten_record

MAX_DRAWN = len(LIGHT)  # runs in a figure, each in its own colour, and in the sections with figures of single runs
# Columns of stage 1's epochs.csv -> axis labels.
CURVES = {
    "loss": "loss",
    "top1": "contrastive top-1, %",
    "val_knn_top1": "validation kNN top-1, %",
    "val_probe_top1": "validation top-1 of the online probe, %",
    "val_classifier_top1": "validation top-1 of the classifier trained with the encoder, %",
    "val_alignment": "alignment A (lower: tighter)",
    "val_uniformity": "uniformity U (higher: more even)",
    "val_uniformity_k": "neighbourhood uniformity U_k",
    "val_nc1": "neural collapse NC1 (0: full)",
    "val_reasonability": "reasonability R of the targets (lower: similar classes are closer)",
    "target_cosine": "cosine of centroid and target",
    "target_changed": "classes whose target changed, %",
    "lr": "learning rate",
    "images_per_s": "images/s",
}


def overview(runs: list[Run]) -> Section:
    rows = [[run.name, str(n), str(s.folder), *_facts(s)] for run in runs for n, s in run.stages.items()]
    return Section("Runs", tables=(Table(["run", "stage", "folder", "seed", "epochs", "minutes", "commit"], rows, 3),))


def commands(runs: list[Run]) -> Section:
    return Section("Commands", _list_commands(runs, lambda command: command))


def _list_commands(runs: list[Run], format_command: Callable[[str], str]) -> tuple[str, ...]:
    """Return one line per stage, with its command."""
    return tuple(f"{run.name}, stage {n}: `{format_command(s.command)}`" for run in runs for n, s in run.stages.items())


def _facts(stage: Stage) -> list[str]:
    """Return the seed, the epochs done of those requested, the minutes of training, and the commit."""
    minutes = sum(record.get("seconds") or 0 for record in stage.epochs) / 60
    epochs = f"{len(stage.epochs)}/{stage.args.get('epochs', '?')}"
    return [str(stage.args["seed"]), epochs, f"{minutes:.1f}", short_commit(stage.about)]


def arguments(runs: list[Run]) -> Section:
    """Return the typed arguments that affect the result, those that differ, and all arguments in a folded table."""
    heading = "Typed arguments that affect the result, except the seed. All others have their default values."
    text, differing = (heading, *_list_commands(runs, typed_flags)), differences(runs)
    if len(runs) > 1 and not differing:
        text += ("The runs differ only in the seed.",)

    def table(columns: dict[str, list], title: str) -> Table:
        rows = [[name, *map(_format_value, values)] for name, values in columns.items()]
        return Table(["argument", *(run.name for run in runs)], rows, 1 + len(runs), title)

    tables = (table(differing, "Arguments that differ"),) if differing else ()
    whole = table(transpose([run.arguments() for run in runs]), "All arguments, typed or not")
    return Section("Arguments", text, tables, folded=(whole,))


def _format_value(value) -> str:
    return "–" if value is None else ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def accuracy(runs: list[Run]) -> Section:
    """Return the table of test accuracies, and the figure of accuracy against class size."""
    with_results = [run for run in runs if run.results or run.heads]
    done = _results_by_name(with_results)
    if not done:
        return Section("Test accuracy", ("No classifier has finished yet (no results.json found).",))
    text = (f"Top-1 in percent. {SHOT_NOTE}.", *(f"{choice}: {meaning}." for choice, meaning in CHOICES.items()))
    table = Table(*results_rows(done, tuple(CHOICES)), text_columns=2)
    # Runs on different data have no common axis of classes, so only those with the first run's classes are drawn.
    counts = next(iter(done.values()))["train_counts"]
    drawn = [run for run in with_results if (run.results or run.heads)["train_counts"] == counts][:MAX_DRAWN]
    per_class = {name: r["selected"]["per_class"] for name, r in _results_by_name(drawn).items()}
    caption = "Test accuracy of each class (selected) over its number of training images"
    if len(per_class) < len(done):
        caption += f"; only {', '.join(per_class)}: at most {MAX_DRAWN} runs, all with the classes of the first one"
    picture = draw("accuracy", caption, plots.accuracy_against_count, per_class, np.array(counts))
    return Section("Test accuracy", text, (table,), (picture,))


def _results_by_name(runs: list[Run]) -> dict[str, dict]:
    """Return name -> results, of the probe and of the comparison of heads of each run."""
    found = {}
    for run in runs:
        found |= {run.name: run.results} if run.results else {}
        found |= {f"{run.name}, {best_head(run.heads['heads'])}": run.heads} if run.heads else {}
    return found


def drawn_runs(runs: list[Run]) -> list[Section]:
    """Return a section that names the runs of the sections with figures, or no section if these are all runs."""
    if len(runs) <= MAX_DRAWN:
        return []
    names = ", ".join(run.name for run in runs[:MAX_DRAWN])
    text = (
        f"The tables of accuracies, runs, commands and arguments list all {len(runs)} runs. "
        f"The curves, and the sections on heads, confused classes and features, show the first {MAX_DRAWN}: {names}. "
        "To see another run there, name it first."
    )
    return [Section("Runs in the figures", (text,))]


def heads(runs: list[Run]) -> list[Section]:
    """Return the comparison of heads for each run that has one."""
    sections = []
    for number, run in enumerate(run for run in runs if run.heads):
        entries, on = run.heads["heads"], run.heads["chosen"]["on"]
        picture = draw(f"heads_{number}", f"{run.name}: test accuracy by each head", plots.heads_dots, entries)
        table = Table(*heads_rows(entries, on), text_columns=2)
        sections.append(Section(f"Heads of {run.name}", (HEADS_NOTE,), (table,), (picture,)))
    return sections


def curves(runs: list[Run]) -> Section:
    """Return the curves over the epochs of both stages, for the values that at least one run has."""
    logs = {run.name: list(map(flatten_record, run.pretraining.epochs)) for run in runs if run.pretraining}
    tsc_epochs = (record["epoch"] for log in logs.values() for record in log if record.get("phase") == "TSC")
    switch = next((epoch - 1 for epoch in tsc_epochs), None)
    pictures = []
    for column, label in CURVES.items():
        lines = {name: _series(log, column) for name, log in logs.items()}
        if any(epochs for epochs, _ in lines.values()):
            caption = f"{label}, pre-training"
            pictures.append(draw(column, caption, plots.curves, lines, label, switch, column == "lr"))
    lines = {}
    for run in runs:
        if run.probe and run.probe.epochs:
            log = list(map(flatten_record, run.probe.epochs))
            lines |= {run.name: _series(log, "val_top1"), f"{run.name} (test)": _series(log, "test_top1")}
    if lines:
        caption = "Top-1 of the probe: validation, dashed test"
        pictures.append(draw("probe", caption, plots.curves, lines, "probe top-1, %", None))
    text = ("Pre-training, then the probe. The dotted line marks the start of TSC's targets.",) if switch else ()
    if not pictures:
        text = ("No epoch has finished yet (log.jsonl has no record).",)
    return Section("Curves", text, pictures=tuple(pictures))


def _series(log: list[dict], column: str) -> tuple[list[int], list[float]]:
    """Return the epochs and values of a column where it was measured; the records are flat."""
    points = [(record["epoch"], value) for record in log if (value := record.get(column)) is not None]
    return [epoch for epoch, _ in points], [value for _, value in points]
