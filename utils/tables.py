"""Tables and lines of accuracies."""

from imagenet_inat.datasets import FEW_BELOW, MANY_ABOVE
from utils.logger import say

SHOTS = ("many", "medium", "few")
SHOT_NOTE = f"many: > {MANY_ABOVE} training images of the class, medium: {FEW_BELOW}-{MANY_ABOVE}, few: < {FEW_BELOW}"
CHOICES = {
    "selected": "the epoch of the probe with the best validation accuracy",
    "last": "the last epoch of the probe",
    "best_on_test": "the epoch with the best test accuracy, the release's choice, which flatters",
}


def percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def accuracies(entry: dict) -> list[float | None]:
    """Many, medium, few, all of one entry of results.json."""
    return [*(entry[shot] for shot in SHOTS), entry["acc1"]]


def show_accuracies(title: str, entry: dict) -> None:
    """One console line: all, top-5, many, medium, few."""
    parts = [f"{shot} {percent(entry[shot])}" for shot in SHOTS]
    say(f"{title}: top-1 {percent(entry['acc1'])}  top-5 {percent(entry['acc5'])}  " + "  ".join(parts))


def markdown(header: list[str], rows: list[list[str]], words: int = 1) -> str:
    """A Markdown table; the first `words` columns are words, the others numbers, set to the right."""
    lines = [header, ["---" if i < words else "--:" for i in range(len(header))], *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def results_rows(results: dict[str, dict], choices: tuple[str, ...]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of test accuracies: a row for each method and way to choose the epoch.

    Args:
        results: method name -> the contents of its results.json.
    """
    rows = []
    for method, record in results.items():
        for choice in choices:
            entry = record[choice]
            rows.append([method, f"{choice} ({entry['epoch']})", *map(percent, accuracies(entry))])
    return ["method", "epoch", *SHOTS, "all"], rows


def results_table(results: dict[str, dict], choices: tuple[str, ...] = ("selected", "last")) -> str:
    """`results_rows` in Markdown."""
    return markdown(*results_rows(results, choices), words=2)
