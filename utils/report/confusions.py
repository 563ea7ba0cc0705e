"""The section of a report on confused classes: a matrix, and the most frequent errors."""

import numpy as np

from utils.measure.confusion import MAX_CLASSES, most_confused
from utils.report import figures as plots
from utils.report.page import Section, Table
from utils.report.runs import Run
from utils.report.style import draw

NUM_SHOWN = 10  # errors in the table
TEXT = (
    "Test images of the selected classifier. The row of the matrix is the class of an image, the column is the class "
    f"that was predicted. The tables list the {NUM_SHOWN} most frequent errors."
)
TOO_MANY = f"The matrix is drawn for at most {MAX_CLASSES} classes."


def confusions(runs: list[Run]) -> list[Section]:
    """Return the section on confused classes, or no section if no run stores its confusion."""
    tables, pictures, without_matrix = [], [], False
    for run in runs:
        results = run.results or run.heads
        confusion = results and results["selected"].get("confusion")
        if not confusion:
            continue
        names = results.get("class_names") or list(map(str, range(len(results["train_counts"]))))
        tables.append(_pairs_table(run.name, confusion, list(map(class_label, range(len(names)), names))))
        if "counts" not in confusion:
            without_matrix = True
            continue
        order = np.argsort(-np.array(results["train_counts"]), kind="stable")
        counts = np.array(confusion["counts"])[np.ix_(order, order)]
        caption = f"{run.name}: share of the test images of each class (row) that are classified as each class (column)"
        labels = [names[c] for c in order]
        pictures.append(draw(f"confusion_{len(pictures)}", caption, plots.confusion_matrix, counts, labels))
    text = (TEXT, TOO_MANY) if without_matrix else (TEXT,)
    return [Section("Confused classes", text, tuple(tables), tuple(pictures))] if tables else []


def class_label(number: int, name: str) -> str:
    """Return a class for a table: its number and, unless it is the same, its name."""
    return str(number) if name == str(number) else f"{number} {name}"


def _pairs_table(run_name: str, confusion: dict, labels: list[str]) -> Table:
    """Return the most frequent errors of a run. labels: the classes in label order, for the cells."""
    rows = []
    for pair in most_confused(confusion, NUM_SHOWN):
        share = f"{100 * pair.images / pair.total:.0f}"
        rows.append([labels[pair.label], labels[pair.predicted], f"{pair.images} of {pair.total}", share])
    return Table(["class", "predicted as", "images", "% of the class"], rows, 2, run_name)
