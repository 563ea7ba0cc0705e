"""The sections of a report, from runs that were read."""

import numpy as np
import torch
from sklearn.manifold import TSNE

from utils import report_plots as plots
from utils.errors import InputError, one_line
from utils.feature_measures import class_centres
from utils.monitor import spread
from utils.plots import Picture, draw
from utils.report_page import Section, Table
from utils.run_features import RunFeatures, features_of
from utils.runs import Run, Stage, differences
from utils.tables import CHOICES, SHOT_NOTE, results_rows

MAPPED, FEWEST_MAPPED = 2000, 10  # validation images in the map, at most and at least
# Of log.jsonl of stage 1: where the value is, what it is called, whether its axis is logarithmic.
CURVES = (
    (("loss",), "loss", False),
    (("top1",), "contrastive top-1, %", False),
    (("val", "knn_top1"), "validation kNN top-1, %", False),
    (("val", "alignment"), "alignment A (lower: tighter)", False),
    (("val", "uniformity"), "uniformity U (higher: more even)", False),
    (("val", "uniformity_k"), "neighbourhood uniformity U_k", False),
    (("target_cosine",), "cosine of centroid and target", False),
    (("target_changed",), "classes whose target changed, %", False),
    (("lr",), "learning rate", True),
    (("images_per_s",), "images/s", False),
)


def run_sections(runs: list[Run]) -> list[Section]:
    """What needs the run folders alone."""
    return [overview(runs), arguments(runs), accuracy(runs), curves(runs)]


def overview(runs: list[Run]) -> Section:
    rows = [[*words, str(stage.folder), *_facts(stage)] for *words, stage in stages_of(runs)]
    return Section("Runs", tables=(Table(["run", "stage", "folder", "seed", "epochs", "minutes", "commit"], rows, 3),))


def commands(runs: list[Run]) -> Section:
    """What was typed."""
    lines = (f"{name}, stage {n}: `{stage.about.get('command', 'unknown')}`" for name, n, stage in stages_of(runs))
    return Section("Commands", tuple(lines))


def stages_of(runs: list[Run]) -> list[tuple[str, str, Stage]]:
    """Name of the run, number of the stage, and the stage, of all that are there."""
    found = [(run.name, str(n), stage) for run in runs for n, stage in ((1, run.pretraining), (2, run.probe))]
    return [row for row in found if row[2]]


def _facts(stage: Stage) -> list[str]:
    """Seed, epochs done of those asked for, minutes of training, commit."""
    minutes = sum(record.get("seconds", 0) for record in stage.epochs) / 60
    commit = str(stage.about.get("git", "unknown"))
    short = commit[:10] + ("-dirty" if commit.endswith("-dirty") else "")
    return [str(stage.args["seed"]), f"{len(stage.epochs)}/{stage.args.get('epochs', '?')}", f"{minutes:.1f}", short]


def arguments(runs: list[Run]) -> Section:
    """What the runs were not computed by alike; of one run everything that decides its result."""
    names = [run.name for run in runs]
    if len(runs) == 1:
        rows = [[name, _value(value)] for name, value in runs[0].computed_by().items()]
        return Section(
            "Arguments", ("Those that decide the result, besides the seed.",), (Table(["argument", names[0]], rows, 2),)
        )
    rows = [[name, *map(_value, values)] for name, values in differences(runs).items()]
    text = () if rows else ("Nothing but the seed.",)
    tables = (Table(["argument", *names], rows, words=1 + len(names)),) if rows else ()
    return Section("Arguments that differ", text, tables)


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


def curves(runs: list[Run]) -> Section:
    """Values over the epochs of both stages; only those that some run has."""
    stages = {run.name: run.pretraining for run in runs if run.pretraining}
    switches = [_switch(stage) for stage in stages.values()]
    switch = next((epoch for epoch in switches if epoch is not None), None)
    pictures = []
    for path, label, log in CURVES:
        lines = {name: _series(stage, path) for name, stage in stages.items()}
        if any(epochs for epochs, _ in lines.values()):
            pictures.append(draw("_".join(path), f"{label}, pre-training", plots.curves, lines, label, switch, log))
    if probes := {run.name: run.probe for run in runs if run.probe and run.probe.epochs}:
        pictures.append(_probe_curves(probes))
    text = "Pre-training, then the probe. Dotted: where TSC's targets join the loss." if switch else ""
    if not pictures:
        text = "No epoch has ended yet: log.jsonl has no record."
    return Section("Curves", (text,) if text else (), pictures=tuple(pictures))


def _switch(stage: Stage) -> int | None:
    """The last epoch before TSC."""
    tsc = [record["epoch"] for record in stage.epochs if record.get("phase") == "TSC"]
    return tsc[0] - 1 if tsc else None


def _series(stage: Stage, path: tuple[str, ...]) -> tuple[list[int], list[float]]:
    """Epochs and values of a log where it was measured."""
    points = []
    for record in stage.epochs:
        value = record
        for name in path:
            value = (value or {}).get(name)
        if value is not None:
            points.append((record["epoch"], value))
    return [epoch for epoch, _ in points], [value for _, value in points]


def _probe_curves(probes: dict[str, Stage]) -> Picture:
    lines = {}
    for name, stage in probes.items():
        lines[name] = _series(stage, ("val", "top1"))
        lines[f"{name} (test)"] = _series(stage, ("test", "top1"))
    return draw("probe", "Top-1 of the probe: validation, dashed test", plots.curves, lines, "probe top-1, %", None)


def feature_sections(runs: list[Run], device: torch.device, data_root: str | None) -> list[Section]:
    """What the last checkpoints make of the validation split; where that is not to be had, why."""
    found, reasons = {}, []
    for run in runs:
        try:
            if run.pretraining is None:
                raise InputError("its stage 1 is not here")
            found[run.name] = features_of(run.pretraining, device, data_root)
        except InputError as error:
            reasons.append(f"{run.name}: not shown, {one_line(error)}")
    return [centres_section(found, reasons), targets_section(found, reasons), map_section(found, reasons)]


def by_frequency(features: RunFeatures) -> list[int]:
    """The classes, most training images first."""
    return np.argsort(-features.class_counts, kind="stable").tolist()


def centres_section(found: dict[str, RunFeatures], reasons: list[str]) -> Section:
    rows, pictures = [], []
    for name, run in found.items():
        values = spread(run.features, run.labels, len(run.class_counts))
        rows.append([name, str(run.epoch), *("–" if v is None else f"{v:.3f}" for v in values.values())])
        order = by_frequency(run)
        centres = class_centres(run.features, run.labels, len(order))[order]
        cosines = (centres @ centres.T).numpy()
        caption = f"{name}: cosines of the class centres of the validation images"
        pictures.append(
            draw(f"centres_{len(pictures)}", caption, plots.centre_similarities, cosines, list(map(str, order)))
        )
    text = (
        "The head's unit output for the validation split in its evaluation view, by the last checkpoint of stage 1. "
        "A: mean distance of two images of a class, the lower the tighter. U: mean distance of two class centres, "
        "U_k: to its k nearest, k = 10, of fewer than 31 classes a third of the others; the higher the more even.",
    )
    tables = (Table(["run", "epoch", "A", "U", "U_k"], rows),) if rows else ()
    return Section("Class centres", (*(text if rows else ()), *reasons), tables, tuple(pictures))


def targets_section(found: dict[str, RunFeatures], reasons: list[str]) -> Section:
    pictures, without = [], []
    for name, run in found.items():
        if run.targets is None:
            without.append(f"{name}: no targets, it ended in KCL.")
            continue
        order = by_frequency(run)
        centres = class_centres(run.features, run.labels, len(order))
        of_images = (centres * run.targets).sum(dim=1)
        values = {
            "running centroid": run.centroid_cosines.numpy()[order],
            "validation images": of_images.numpy()[order],
        }
        caption = f"{name}: cosine of each class's centroid, and of its centre in validation, to its target"
        pictures.append(
            draw(f"targets_{len(pictures)}", caption, plots.cosines_to_targets, values, list(map(str, order)))
        )
    return Section("Classes and their targets", (*without, *reasons), pictures=tuple(pictures))


def map_section(found: dict[str, RunFeatures], reasons: list[str]) -> Section:
    pictures = []
    for name, run in found.items():
        if len(run.labels) < FEWEST_MAPPED:
            reasons = [*reasons, f"{name}: no map, {len(run.labels)} validation images are too few."]
            continue
        order = by_frequency(run)
        rank_of_class = np.argsort(order)
        chosen = spread_out(len(run.labels), MAPPED)
        points, how = in_two_dimensions(run.features.numpy()[chosen])
        ranks = rank_of_class[run.labels.numpy()[chosen]]
        caption = f"{name}: {len(chosen)} validation images, {how}; numbers are classes"
        arguments = (points, ranks, list(map(str, order)), how == "as they are")
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
    perplexity = min(30.0, (len(features) - 1) / 3)  # of a handful of images
    tsne = TSNE(perplexity=perplexity, init="pca", random_state=0)
    return tsne.fit_transform(features.astype(np.float64)), f"t-SNE of perplexity {perplexity:g}"
