"""The page and the picture of examples/results.py: nothing here runs, all is read from run folders."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from examples.results_plan import BALANCED, METHODS
from utils.files import write_text
from utils.measure.features import neighbours_of_a_class
from utils.measure.monitor import SPREAD
from utils.measure.results import CHOICES, SHOT_NOTE, SHOTS, markdown, percent
from utils.report.style import LIGHT
from utils.report.trials import Group, mean_and_std, with_interval

Groups = dict[tuple[int, str], Group]  # (imbalance, method) -> its trials, one a seed
SETTINGS = tuple(method.title for method in METHODS)
COMPARED = (("TSC", "KCL"), ("KCL", BALANCED))  # the first minus the second
MEASURES = SPREAD | {"knn_few": "kNN, few", "knn_top1": "kNN, all"}
FACTS = ["cosine after the switch", "cosine at the end", "last change of a target"]
BY_VALIDATION = "chosen by validation"
HEADS_TEXT = (
    "Top-1 over all classes ± standard deviation over seeds / over few. Heads of `--compare-heads` on the features of "
    "the last checkpoint, their values (l2, t, tau) chosen on the 140 validation images, 14 a class; probe (trained): "
    "the class-balanced linear probe; own: the network's own last layer. Last row: the head that validation chose, a "
    "seed at a time, `selected` of its results.json."
)


def write_page(groups: Groups, output: Path, command: str) -> Path:
    """Write results.md and results.png; command: what makes them again."""
    output.mkdir(parents=True, exist_ok=True)
    draw(groups, output / "results.png")
    parts = ["# Results on long-tailed handwritten digits", "![accuracy and uniformity](results.png)"]
    parts += [about(groups, command), *meaning(groups)]
    for choice in ("selected", "last"):
        parts += [f"## Test accuracy, {choice}", f"{CHOICES[choice]}.".capitalize()]
        parts.append(accuracy_table(groups, choice))
    parts += ["## Features of the validation split", feature_table(groups)]
    parts += ["## All heads", HEADS_TEXT, *head_tables(groups)]
    parts += ["## Each seed, over all classes, selected", seed_table(groups)]
    write_text(output / "results.md", "\n\n".join(parts) + "\n")
    return output / "results.md"


def about(groups: Groups, command: str) -> str:
    runs = [run for group in groups.values() for run in group.runs]
    stages = [stage for run in runs for stage in run.stages.values()]
    commits = sorted({str(stage.about["git"]) for stage in stages})
    machines = sorted({f"{s.about['machine'].split('-')[0]}, PyTorch {s.about['versions']['torch']}" for s in stages})
    minutes = sum(record["seconds"] for stage in stages for record in stage.epochs) / 60
    return (
        f"`{command}`: {len(runs)} trials, {minutes:.0f} minutes of training on one core in all, "
        f"on {'; '.join(machines)}, commit {' and '.join(commits)}."
    )


def meaning(groups: Groups) -> list[str]:
    counts = {imbalance: group.runs[0].results["train_counts"] for (imbalance, _), group in groups.items()}
    sizes = "; ".join(f"{imbalance}: {', '.join(map(str, of_class))}" for imbalance, of_class in counts.items())
    return [
        "Top-1 in percent on 400 test images, 40 a class; ± is the standard deviation over seeds. Differences are of "
        "the same seed, with Student's 95 % interval of their mean: one that holds 0 says nothing of which is better.",
        "CE, cross-entropy, is the same network in one stage, for as many epochs as pre-training and probe together: "
        "on the class-balanced batches of the probe, by balanced softmax, and as it comes.",
        f"Training images of the classes, by imbalance: {sizes}. {SHOT_NOTE}.",
    ]


def imbalances(groups: Groups) -> list[int]:
    return sorted({imbalance for imbalance, _ in groups})


def accuracy_table(groups: Groups, choice: str) -> str:
    rows = []
    for imbalance in imbalances(groups):
        values = {name: groups[imbalance, name].accuracy(choice) for name in SETTINGS}
        rows += [[str(imbalance), name, *map(mean_and_std, values[name].T)] for name in SETTINGS]
        for one, other in COMPARED:
            rows.append([str(imbalance), f"{one} − {other}", *map(with_interval, (values[one] - values[other]).T)])
    return markdown(["imbalance", "method", *SHOTS, "all"], rows, words=2)


def measured(group: Group, name: str) -> np.ndarray:
    """(trials,) of the last epoch of stage 1."""
    return np.array([run.pretraining.epochs[-1]["val"][name] for run in group.runs])


def facts(group: Group) -> list[str]:
    """Of TSC: cosine of centroid and target in its first and its last epoch, and until when classes change targets."""
    if group.runs[0].pretraining.epochs[-1].get("target_cosine") is None:
        return ["–"] * 3
    cosines, changes = [], []
    for run in group.runs:
        epochs = [record for record in run.pretraining.epochs if record["target_cosine"] is not None]
        cosines.append([epochs[0]["target_cosine"], epochs[-1]["target_cosine"]])
        changes.append(max((record["epoch"] for record in epochs if record["target_changed"]), default=0))
    return [*map(mean_and_std, np.array(cosines).T), f"{min(changes)}–{max(changes)}"]


def feature_table(groups: Groups) -> str:
    rows, differences = [], []
    for (imbalance, name), group in sorted(groups.items(), key=lambda item: item[0][0]):
        if not group.runs[0].pretraining:
            continue
        values = {measure: measured(group, measure) for measure in MEASURES}
        rows.append([str(imbalance), name, *map(mean_and_std, values.values()), *facts(group)])
        if name == "TSC":
            kcl = groups[imbalance, "KCL"]
            cells = (with_interval(own - measured(kcl, what)) for what, own in values.items())
            differences.append([str(imbalance), "TSC − KCL", *cells, *[""] * len(FACTS)])
    near = neighbours_of_a_class(len(group.runs[0].results["train_counts"]))
    text = (
        f"By the last checkpoint of stage 1: alignment A (lower is tighter), uniformity U and U_k, k = {near} (higher "
        "is more even), neural collapse NC1 and NC2 (0 is full), top-1 of a kNN vote. Cosine: of a class's running "
        "centroid and its target, mean over the classes, in the first and in the last epoch of TSC. Last change: the "
        "epoch after which no class changed its target again, first and last of the seeds; 0 if none ever did."
    )
    return f"{text}\n\n" + markdown(["imbalance", "method", *MEASURES.values(), *FACTS], rows + differences, words=2)


def head_tables(groups: Groups) -> list[str]:
    """For each imbalance all heads on all methods, over all classes and over few; and what validation chose."""
    parts = []
    for imbalance in imbalances(groups):
        of_method = {name: [run.heads for run in groups[imbalance, name].runs] for name in SETTINGS}
        titles = dict.fromkeys(title for runs in of_method.values() for title in runs[0]["heads"])
        rows = [[title, *(head_cell(runs, title) for runs in of_method.values())] for title in titles]
        rows.append([BY_VALIDATION, *(all_and_few([run["selected"] for run in runs]) for runs in of_method.values())])
        parts += [f"### Imbalance {imbalance}", markdown(["head", *SETTINGS], rows)]
    return parts


def head_cell(runs: list[dict], title: str) -> str:
    """runs: the results.json of --compare-heads of each seed."""
    if title not in runs[0]["heads"]:
        return "–"
    return all_and_few([run["heads"][title] for run in runs])


def all_and_few(entries: list[dict]) -> str:
    """Of the entries of a results.json, one a seed."""
    over_all, few = (np.array([entry[what] for entry in entries]) for what in ("acc1", "few"))
    return f"{mean_and_std(over_all)} / {few.mean():.1f}"


def seed_table(groups: Groups) -> str:
    values = {cell: [run.results["selected"]["acc1"] for run in group.runs] for cell, group in groups.items()}
    rows = [[str(imbalance), name, *map(percent, of_seeds)] for (imbalance, name), of_seeds in values.items()]
    seeds = [f"seed {run.seeds[0]}" for run in next(iter(groups.values())).runs]
    return markdown(["imbalance", "method", *seeds], rows, words=2)


def draw(groups: Groups, path: Path) -> None:
    """Accuracy over all and over few, and uniformity, over the imbalance: a dot a seed, a line at their mean."""
    panels = {"test accuracy, all, %": -1, "test accuracy, few, %": -2, "uniformity U": "uniformity"}
    figure, axes = plt.subplots(1, len(panels), figsize=(10.5, 3.6), layout="constrained")
    for panel, (label, what) in zip(axes, panels.items(), strict=True):
        names = [name for name in SETTINGS if what != "uniformity" or not name.startswith("CE")]
        for place, name in enumerate(names):
            dots(panel, groups, name, what, 0.8 * ((place + 0.5) / len(names) - 0.5))
        panel.set(xlabel="imbalance, largest class ÷ smallest", ylabel=label)
        panel.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def dots(axes: Axes, groups: Groups, name: str, what: int | str, shift: float) -> None:
    """A method's seeds at each imbalance. what: a column of `Group.accuracy`, or the name of a measure."""
    colour, ticks = LIGHT[SETTINGS.index(name)], imbalances(groups)
    for place, imbalance in enumerate(ticks):
        group = groups[imbalance, name]
        values = measured(group, what) if isinstance(what, str) else group.accuracy("selected")[:, what]
        x = place + shift
        axes.scatter(np.full(len(values), x), values, s=18, color=colour, alpha=0.6, linewidth=0)
        label = {"label": f"{name} (a dot a seed)"} if place == 0 else {}
        axes.plot([x - 0.06, x + 0.06], [values.mean()] * 2, color=colour, linewidth=2.5, **label)
    axes.set_xticks(range(len(ticks)), ticks)
