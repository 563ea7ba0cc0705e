"""Tables over runs."""

from imagenet_inat.datasets import FEW_BELOW, MANY_ABOVE
from utils.logger import say

SHOTS = ("many", "medium", "few")
SHOT_NOTE = f"many: > {MANY_ABOVE} training images of the class, medium: {FEW_BELOW}-{MANY_ABOVE}, few: < {FEW_BELOW}"


def percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def show_accuracies(title: str, accuracies: dict) -> None:
    """One console line: all, top-5, many, medium, few."""
    parts = [f"{shot} {percent(accuracies[shot])}" for shot in SHOTS]
    say(f"{title}: top-1 {percent(accuracies['acc1'])}  top-5 {percent(accuracies['acc5'])}  " + "  ".join(parts))


def results_table(results: dict[str, dict]) -> str:
    """A Markdown table of test accuracies: a row for each method and way to choose the epoch.

    Args:
        results: method name -> the contents of its results.json.
    """
    lines = ["| method | epoch | many | medium | few | all |", "|---|---|--:|--:|--:|--:|"]
    for method, record in results.items():
        for choice in ("selected", "last"):
            entry = record[choice]
            cells = [percent(entry[shot]) for shot in SHOTS] + [percent(entry["acc1"])]
            lines.append(f"| {method} | {choice} ({entry['epoch']}) | " + " | ".join(cells) + " |")
    return "\n".join(lines)
