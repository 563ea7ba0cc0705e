"""The sections of a report."""

from collections.abc import Callable

import numpy as np

from utils.errors import InputError
from utils.measure.feature_file import RunFeatures, read_features
from utils.measure.feature_measures import class_centres
from utils.measure.monitor import GEOMETRY_MEASURES, measure_geometry
from utils.measure.results import CHOICES, HEADS_NOTE, SHOT_NOTE, best_head, heads_rows, results_rows
from utils.report import figures as plots
from utils.report.page import Section, Table
from utils.report.runs import Run, Stage, differences, transpose
from utils.report.style import draw
from utils.report.typed import typed_flags
from utils.run.logger import flatten_record

MAX_MAP_IMAGES, MIN_MAP_IMAGES = 2000, 10  # number of validation images in the map
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
    commit = str(stage.about.get("git", "unknown"))
    short = commit[:10] + ("-dirty" if commit.endswith("-dirty") else "")
    return [str(stage.args["seed"]), f"{len(stage.epochs)}/{stage.args.get('epochs', '?')}", f"{minutes:.1f}", short]


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
    done = {}
    for run in runs:
        done |= {run.name: run.results} if run.results else {}
        done |= {f"{run.name}, {best_head(run.heads['heads'])}": run.heads} if run.heads else {}
    if not done:
        return Section("Test accuracy", ("No classifier has finished yet (no results.json found).",))
    text = (f"Top-1 in percent. {SHOT_NOTE}.", *(f"{choice}: {meaning}." for choice, meaning in CHOICES.items()))
    table = Table(*results_rows(done, tuple(CHOICES)), text_columns=2)
    # Runs on different data have no common axis of classes, so only those with the first run's classes are drawn.
    counts = next(iter(done.values()))["train_counts"]
    per_class = {name: r["selected"]["per_class"] for name, r in done.items() if r["train_counts"] == counts}
    caption = "Test accuracy of each class (selected) over its number of training images"
    if len(per_class) < len(done):
        caption += f"; only {', '.join(per_class)}, because the classes of the other runs differ"
    picture = draw("accuracy", caption, plots.accuracy_against_count, per_class, np.array(counts))
    return Section("Test accuracy", text, (table,), (picture,))


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


def features(runs: list[Run]) -> list[Section]:
    """Return the sections on stage 1's features of the validation split; for missing ones, the reason and command."""
    features_by_run, names, reasons = {}, {run.name: run.class_names for run in runs}, []
    for run in runs:
        if run.pretraining is None:
            reasons.append(f"{run.name}: not shown, its stage-1 folder was not found")
            continue
        try:
            features_by_run[run.name] = read_features(run.pretraining.folder)
        except InputError as error:
            command = run.pretraining.about.get("command", "its command")
            reasons.append(f"{run.name}: not shown, {error}. To write it: `{command} --resume auto --monitor-freq 1`")
    return [make(features_by_run, names, reasons) for make in (_centres, _targets, _map)]


def _by_frequency(run: RunFeatures, names: list[str] | None) -> tuple[list[int], list[str]]:
    """Return the classes as numbers and as names, those with the most training images first."""
    order = run.class_counts.argsort(descending=True, stable=True).tolist()
    return order, [names[c] if names and len(names) == len(order) else str(c) for c in order]


def _centres(found: dict[str, RunFeatures], names: dict[str, list[str] | None], reasons: list[str]) -> Section:
    rows, pictures = [], []
    for name, run in found.items():
        values = measure_geometry(run.features, run.labels, len(run.class_counts))
        rows.append([name, str(run.epoch), *("–" if v is None else f"{v:.3f}" for v in values.values())])
        order, classes = _by_frequency(run, names[name])
        centres = class_centres(run.features, run.labels, len(order))[order]
        cosines = (centres @ centres.T).numpy()
        caption = f"{name}, epoch {run.epoch}: cosines of the class centres of the validation images"
        pictures.append(draw(f"centres_{len(pictures)}", caption, plots.centre_similarities, cosines, classes))
    text = (
        "Computed from the normalised output of the projection head for the validation images, after the epoch shown. "
        "A: mean distance of two images of a class (lower: tighter). U: mean distance of two class centres (higher: "
        "more even). U_k: mean distance of a centre to its k nearest ones; k = 10, or a third of the other classes if "
        "there are fewer than 31. NC1 and NC2: neural collapse, of the variance within classes and of the class means "
        "towards a simplex; 0 is full collapse.",
    )
    tables = (Table(["run", "epoch", *GEOMETRY_MEASURES.values()], rows),) if rows else ()
    return Section("Class centres", (*(text if rows else ()), *reasons), tables, tuple(pictures))


def _targets(found: dict[str, RunFeatures], names: dict[str, list[str] | None], reasons: list[str]) -> Section:
    pictures, without = [], []
    for name, run in found.items():
        if run.targets is None:
            without.append(f"{name}: no targets, because epoch {run.epoch} belongs to KCL.")
            continue
        order, classes = _by_frequency(run, names[name])
        image_cosines = (class_centres(run.features, run.labels, len(order)) * run.targets).sum(dim=1)
        cosines = {"running centroid": run.centroid_cosines, "validation images": image_cosines}
        cosines = {what: values.numpy()[order] for what, values in cosines.items()}
        what = "cosine of each class's running centroid, and of its validation centre, to its target"
        caption = f"{name}, epoch {run.epoch}: {what}"
        pictures.append(draw(f"targets_{len(pictures)}", caption, plots.cosines_to_targets, cosines, classes))
    return Section("Classes and their targets", (*without, *reasons), pictures=tuple(pictures))


def _map(found: dict[str, RunFeatures], names: dict[str, list[str] | None], reasons: list[str]) -> Section:
    pictures = []
    for name, run in found.items():
        if len(run.labels) < MIN_MAP_IMAGES:
            reasons = [*reasons, f"{name}: no map, because {len(run.labels)} validation images are too few."]
            continue
        order, classes = _by_frequency(run, names[name])
        indices = spread_out(len(run.labels), MAX_MAP_IMAGES)
        points, method = in_two_dimensions(run.features.numpy()[indices])
        ranks = np.argsort(order)[run.labels.numpy()[indices]]
        caption = f"{name}, epoch {run.epoch}: {len(indices)} validation images, {method}; labels are classes"
        arguments = points, ranks, classes, method == "as they are"
        pictures.append(draw(f"map_{len(pictures)}", caption, plots.feature_map, *arguments))
    text = (
        "Nearby points have similar features. Blue: classes with many training images; red: with few. In a t-SNE map, "
        "distances between groups and sizes of groups have little meaning.",
    )
    return Section("Map of the features", (*(text if found else ()), *reasons), pictures=tuple(pictures))


def spread_out(total: int, at_most: int) -> np.ndarray:
    """Return at most `at_most` indices, spread evenly over all rows, because lists are often sorted by class."""
    return np.unique(np.linspace(0, total - 1, min(total, at_most)).astype(int))


def in_two_dimensions(features: np.ndarray) -> tuple[np.ndarray, str]:
    """Map features (n, D) to points (n, 2), and return the points and the method.

    Features with D = 2 stay "as they are"; others are mapped by t-SNE (scikit-learn).
    """
    if features.shape[1] == 2:
        return features, "as they are"
    from sklearn.manifold import TSNE  # imported here because it takes a second

    perplexity = min(30.0, (len(features) - 1) / 3)  # t-SNE needs fewer neighbours than images
    tsne = TSNE(perplexity=perplexity, init="pca", random_state=0)
    return tsne.fit_transform(features.astype(np.float64)), f"t-SNE of perplexity {perplexity:g}"
