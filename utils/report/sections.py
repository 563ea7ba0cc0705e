"""The sections of a report, from runs that were read."""

from collections.abc import Callable

import numpy as np

from utils.errors import InputError
from utils.measure.feature_file import RunFeatures, read_features
from utils.measure.features import class_centres
from utils.measure.monitor import SPREAD, spread
from utils.measure.results import CHOICES, HEADS_NOTE, SHOT_NOTE, heads_rows, results_rows
from utils.report import figures as plots
from utils.report.page import Section, Table
from utils.report.runs import Run, Stage, beside, differences
from utils.report.style import draw
from utils.report.typed import typed
from utils.run.logger import flat

MAPPED, FEWEST_MAPPED = 2000, 10  # validation images in the map, at most and at least
# Of stage 1: columns of epochs.csv, and what they are called.
CURVES = {
    "loss": "loss",
    "top1": "contrastive top-1, %",
    "val_knn_top1": "validation kNN top-1, %",
    "val_probe_top1": "validation top-1 of the online probe, %",
    "val_alignment": "alignment A (lower: tighter)",
    "val_uniformity": "uniformity U (higher: more even)",
    "val_uniformity_k": "neighbourhood uniformity U_k",
    "val_nc1": "neural collapse NC1 (0: full)",
    "val_reasonability": "reasonability R of the targets (lower: near in meaning)",
    "target_cosine": "cosine of centroid and target",
    "target_changed": "classes whose target changed, %",
    "lr": "learning rate",
    "images_per_s": "images/s",
}


def overview(runs: list[Run]) -> Section:
    rows = [[run.name, str(n), str(s.folder), *_facts(s)] for run in runs for n, s in run.stages.items()]
    return Section("Runs", tables=(Table(["run", "stage", "folder", "seed", "epochs", "minutes", "commit"], rows, 3),))


def commands(runs: list[Run]) -> Section:
    return Section("Commands", _by_stage(runs, lambda command: command))


def _by_stage(runs: list[Run], shown: Callable[[str], str]) -> tuple[str, ...]:
    """A line a stage, of its command."""
    return tuple(f"{run.name}, stage {n}: `{shown(s.command)}`" for run in runs for n, s in run.stages.items())


def _facts(stage: Stage) -> list[str]:
    """Seed, epochs done of those asked for, minutes of training, commit."""
    minutes = sum(record.get("seconds") or 0 for record in stage.epochs) / 60
    commit = str(stage.about.get("git", "unknown"))
    short = commit[:10] + ("-dirty" if commit.endswith("-dirty") else "")
    return [str(stage.args["seed"]), f"{len(stage.epochs)}/{stage.args.get('epochs', '?')}", f"{minutes:.1f}", short]


def arguments(runs: list[Run]) -> Section:
    """What was typed of those that decide the result, which of them differ; all there are, folded away."""
    what = "Typed, of the arguments that decide the result besides the seed; the others have their defaults."
    text, differing = (what, *_by_stage(runs, typed)), differences(runs)
    if len(runs) > 1 and not differing:
        text += ("The runs differ in nothing but the seed.",)

    def table(columns: dict[str, list], title: str) -> Table:
        rows = [[name, *map(_value, values)] for name, values in columns.items()]
        return Table(["argument", *(run.name for run in runs)], rows, 1 + len(runs), title)

    tables = (table(differing, "Those that differ"),) if differing else ()
    whole = table(beside([run.arguments() for run in runs]), "All arguments, typed or not")
    return Section("Arguments", text, tables, folded=(whole,))


def _value(value) -> str:
    return "–" if value is None else ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def accuracy(runs: list[Run]) -> Section:
    """Table of test accuracies, and accuracy against the size of the class."""
    done = {run.name: run.results for run in runs if run.results}
    if not done:
        return Section("Test accuracy", ("No probe has ended yet: there is no results.json.",))
    text = (f"Top-1 in percent. {SHOT_NOTE}.", *(f"{choice}: {meaning}." for choice, meaning in CHOICES.items()))
    table = Table(*results_rows(done, tuple(CHOICES)), words=2)
    # Runs on different data have no common axis of classes: the first one's stays.
    counts = next(iter(done.values()))["train_counts"]
    per_class = {name: r["selected"]["per_class"] for name, r in done.items() if r["train_counts"] == counts}
    caption = "Each class's test accuracy (selected) over its training images"
    if len(per_class) < len(done):
        caption += f"; only {', '.join(per_class)}, the others have other classes"
    picture = draw("accuracy", caption, plots.accuracy_against_count, per_class, np.array(counts))
    return Section("Test accuracy", text, (table,), (picture,))


def heads(runs: list[Run]) -> list[Section]:
    """The comparison of heads of each run that has one."""
    sections = []
    for number, run in enumerate(run for run in runs if run.heads):
        entries, on = run.heads["heads"], run.heads["chosen"]["on"]
        picture = draw(f"heads_{number}", f"{run.name}: test accuracy by each head", plots.heads_dots, entries)
        table = Table(*heads_rows(entries, on), words=2)
        sections.append(Section(f"Heads of {run.name}", (HEADS_NOTE,), (table,), (picture,)))
    return sections


def curves(runs: list[Run]) -> Section:
    """Values over the epochs of both stages; only those that some run has."""
    logs = {run.name: list(map(flat, run.pretraining.epochs)) for run in runs if run.pretraining}
    of_tsc = (record["epoch"] for log in logs.values() for record in log if record.get("phase") == "TSC")
    switch = next((epoch - 1 for epoch in of_tsc), None)
    pictures = []
    for column, label in CURVES.items():
        lines = {name: _series(log, column) for name, log in logs.items()}
        if any(epochs for epochs, _ in lines.values()):
            caption = f"{label}, pre-training"
            pictures.append(draw(column, caption, plots.curves, lines, label, switch, column == "lr"))
    lines = {}
    for run in runs:
        if run.probe and run.probe.epochs:
            log = list(map(flat, run.probe.epochs))
            lines |= {run.name: _series(log, "val_top1"), f"{run.name} (test)": _series(log, "test_top1")}
    if lines:
        caption = "Top-1 of the probe: validation, dashed test"
        pictures.append(draw("probe", caption, plots.curves, lines, "probe top-1, %", None))
    text = ("Pre-training, then the probe. Dotted: where TSC's targets join the loss.",) if switch else ()
    if not pictures:
        text = ("No epoch has ended yet: log.jsonl has no record.",)
    return Section("Curves", text, pictures=tuple(pictures))


def _series(log: list[dict], column: str) -> tuple[list[int], list[float]]:
    """Epochs and values where it was measured, of records that are `flat`."""
    points = [(record["epoch"], value) for record in log if (value := record.get(column)) is not None]
    return [epoch for epoch, _ in points], [value for _, value in points]


def features(runs: list[Run]) -> list[Section]:
    """What stage 1 makes of the validation split; where that is not to be had, why, and what to type."""
    found, reasons = {}, []
    for run in runs:
        if run.pretraining is None:
            reasons.append(f"{run.name}: not shown, its stage 1 is not here")
            continue
        try:
            found[run.name] = read_features(run.pretraining.folder)
        except InputError as error:
            command = run.pretraining.about.get("command", "its command")
            reasons.append(f"{run.name}: not shown, {error}. To write it: `{command} --resume auto --monitor-freq 1`")
    return [_centres(found, reasons), _targets(found, reasons), _map(found, reasons)]


def _by_frequency(run: RunFeatures) -> tuple[list[int], list[str]]:
    """The classes, most training images first: numbers and names."""
    order = run.class_counts.argsort(descending=True, stable=True).tolist()
    return order, list(map(str, order))


def _centres(found: dict[str, RunFeatures], reasons: list[str]) -> Section:
    rows, pictures = [], []
    for name, run in found.items():
        values = spread(run.features, run.labels, len(run.class_counts))
        rows.append([name, str(run.epoch), *("–" if v is None else f"{v:.3f}" for v in values.values())])
        order, classes = _by_frequency(run)
        centres = class_centres(run.features, run.labels, len(order))[order]
        cosines = (centres @ centres.T).numpy()
        caption = f"{name}, epoch {run.epoch}: cosines of the class centres of the validation images"
        pictures.append(draw(f"centres_{len(pictures)}", caption, plots.centre_similarities, cosines, classes))
    text = (
        "The head's unit output for the validation split in its evaluation view, by stage 1 after the epoch shown. "
        "A: mean distance of two images of a class, the lower the tighter. U: mean distance of two class centres, "
        "U_k: to its k nearest, k = 10, of fewer than 31 classes a third of the others; the higher the more even. NC1 "
        "and NC2: neural collapse, of the variance within classes and of the means towards a simplex; 0 is full.",
    )
    tables = (Table(["run", "epoch", *SPREAD.values()], rows),) if rows else ()
    return Section("Class centres", (*(text if rows else ()), *reasons), tables, tuple(pictures))


def _targets(found: dict[str, RunFeatures], reasons: list[str]) -> Section:
    pictures, without = [], []
    for name, run in found.items():
        if run.targets is None:
            without.append(f"{name}: no targets, epoch {run.epoch} is of KCL.")
            continue
        order, classes = _by_frequency(run)
        of_images = (class_centres(run.features, run.labels, len(order)) * run.targets).sum(dim=1)
        cosines = {"running centroid": run.centroid_cosines, "validation images": of_images}
        cosines = {what: values.numpy()[order] for what, values in cosines.items()}
        what = "cosine of each class's centroid, and of its centre in validation, to its target"
        caption = f"{name}, epoch {run.epoch}: {what}"
        pictures.append(draw(f"targets_{len(pictures)}", caption, plots.cosines_to_targets, cosines, classes))
    return Section("Classes and their targets", (*without, *reasons), pictures=tuple(pictures))


def _map(found: dict[str, RunFeatures], reasons: list[str]) -> Section:
    pictures = []
    for name, run in found.items():
        if len(run.labels) < FEWEST_MAPPED:
            reasons = [*reasons, f"{name}: no map, {len(run.labels)} validation images are too few."]
            continue
        order, classes = _by_frequency(run)
        chosen = spread_out(len(run.labels), MAPPED)
        points, how = in_two_dimensions(run.features.numpy()[chosen])
        ranks = np.argsort(order)[run.labels.numpy()[chosen]]
        caption = f"{name}, epoch {run.epoch}: {len(chosen)} validation images, {how}; numbers are classes"
        arguments = points, ranks, classes, how == "as they are"
        pictures.append(draw(f"map_{len(pictures)}", caption, plots.feature_map, *arguments))
    text = (
        "Near points have similar features. Blue: classes of many training images, red: of few. Distances between "
        "groups, and their sizes, mean little in a t-SNE map.",
    )
    return Section("Map of the features", (*(text if found else ()), *reasons), pictures=tuple(pictures))


def spread_out(total: int, at_most: int) -> np.ndarray:
    """Indices of at most so many rows, evenly over all of them; lists are often sorted by class."""
    return np.unique(np.linspace(0, total - 1, min(total, at_most)).astype(int))


def in_two_dimensions(features: np.ndarray) -> tuple[np.ndarray, str]:
    """(n, D) features as (n, 2) points and how: as they are for D = 2, else t-SNE (scikit-learn)."""
    if features.shape[1] == 2:
        return features, "as they are"
    from sklearn.manifold import TSNE  # a second of start-up, for who makes a map

    perplexity = min(30.0, (len(features) - 1) / 3)  # of a handful of images
    tsne = TSNE(perplexity=perplexity, init="pca", random_state=0)
    return tsne.fit_transform(features.astype(np.float64)), f"t-SNE of perplexity {perplexity:g}"
