"""The sections of a report on the features of the validation images: class centres, targets and a map."""

import numpy as np

from utils.errors import InputError
from utils.measure.feature_file import RunFeatures, read_features
from utils.measure.feature_measures import class_centres
from utils.measure.monitor import GEOMETRY_MEASURES, measure_geometry
from utils.report import figures as plots
from utils.report.page import Section, Table
from utils.report.runs import Run
from utils.report.style import draw

MAX_MAP_IMAGES, MIN_MAP_IMAGES = 2000, 10  # number of validation images in a map
MAX_IMAGES_OF_ALL_MAPS = 4000  # a map of 1,000 images takes about five seconds


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
        indices = spread_out(len(run.labels), min(MAX_MAP_IMAGES, MAX_IMAGES_OF_ALL_MAPS // len(found)))
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
