"""Tables and lines of accuracies."""

from itertools import product

from utils.distributed import say
from utils.measure.metrics import FEW_BELOW, MANY_ABOVE

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
    shots = "  ".join(f"{shot} {percent(entry[shot])}" for shot in SHOTS)
    say(f"{title}: top-1 {percent(entry['acc1'])}  top-5 {percent(entry['acc5'])}  {shots}")


def markdown(header: list[str], rows: list[list[str]], words: int = 1) -> str:
    """A Markdown table; the first `words` columns are words, the others numbers, set to the right."""
    lines = [header, ["---" if i < words else "--:" for i in range(len(header))], *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def results_rows(results: dict[str, dict], choices: tuple[str, ...]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of test accuracies: method name -> the contents of its results.json, and choices of the epoch."""
    rows = []
    for (method, record), choice in product(results.items(), choices):
        entry = record[choice]
        rows.append([method, f"{choice} ({entry['epoch']})", *map(percent, accuracies(entry))])
    return ["method", "epoch", *SHOTS, "all"], rows


def results_table(results: dict[str, dict]) -> str:
    """In Markdown, without the choice that flatters."""
    return markdown(*results_rows(results, ("selected", "last")), words=2)


def choose(results: dict, epoch: int, measured: dict[str, dict]) -> bool:
    """Note an epoch's test accuracies, if it was measured, under those of CHOICES it earns; True if it is selected."""
    if not measured:
        return False
    entry = {"epoch": epoch, **measured["test"], "val_acc1": measured["val"]["acc1"]}
    results["last"] = entry
    if "best_on_test" not in results or entry["acc1"] > results["best_on_test"]["acc1"]:
        results["best_on_test"] = entry
    if "selected" in results and entry["val_acc1"] <= results["selected"]["val_acc1"]:
        return False
    results["selected"] = entry
    return True
