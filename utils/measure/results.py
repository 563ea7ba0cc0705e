"""Tables and lines of accuracies."""

from itertools import product

from utils.distributed import say
from utils.measure.metrics import FEW_BELOW, MANY_ABOVE

SHOTS = ("many", "medium", "few")
SHOT_NOTE = f"many: > {MANY_ABOVE} training images of the class, medium: {FEW_BELOW}-{MANY_ABOVE}, few: < {FEW_BELOW}"
RULE = (
    "the best class-balanced accuracy of the validation split; of those that tie the first epoch, or the values with "
    "the least loss"
)
CHOICES = {
    "selected": "the epoch of the probe, or the values of a fitted head, with the best validation accuracy",
    "last": "the last epoch of the probe",
    "best_on_test": "the epoch with the best test accuracy, the release's choice, which flatters",
}


def percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def accuracies(entry: dict) -> list[float | None]:
    """Many, medium, few, all of one entry of results.json."""
    return [*(entry[shot] for shot in SHOTS), entry["acc1"]]


def made_with(entry: dict) -> str:
    """Of an entry: its epoch, or the values of a head that was fitted."""
    if "values" not in entry:
        return str(entry["epoch"])
    return ", ".join(f"{name} {value:g}" for name, value in entry["values"].items()) or "–"


def choice_words(choice: str, record: dict) -> str:
    """`selected (8)` of the contents of a results.json; it says so where the test split has chosen."""
    flatters = choice == "selected" and record.get("chosen", {}).get("on") == "test"
    return f"{choice}{' on test' if flatters else ''} ({made_with(record[choice])})"


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
        if choice in record:
            rows.append([method, choice_words(choice, record), *map(percent, accuracies(record[choice]))])
    return ["method", "epoch or values", *SHOTS, "all"], rows


HEADS_NOTE = (
    "Heads on the features of one encoder, top-1 test accuracy in percent. Each value was chosen by "
    f"{RULE}; ✓ marks the head that this rule chooses. balanced: the mean over classes; worst: the worst class; "
    "harmonic: the harmonic mean over classes; ECE: the expected calibration error, 15 bins, of heads with a scale."
)
HEADS_HEADER = [*SHOTS, "all", "balanced", "worst", "harmonic", "ECE"]


def best_of(heads: dict[str, dict]) -> str:
    """The title of the one with the best balanced accuracy on validation, the first of those that tie."""
    return max(heads, key=lambda title: heads[title]["val_balanced"])


def heads_rows(heads: dict[str, dict], chosen_on: str) -> tuple[list[str], list[list[str]]]:
    """Header and rows of `heads` of a results.json: title -> entry. chosen_on: see `Data.chosen_on`."""
    best = best_of(heads)
    rows = []
    for title, entry in heads.items():
        numbers = [*accuracies(entry), *(entry.get(name) for name in ("balanced", "worst", "harmonic", "ece"))]
        numbers += [entry["val_balanced"]]
        seconds = "–" if entry.get("seconds") is None else f"{entry['seconds']:.1f}"
        rows.append([f"{title}{' ✓' if title == best else ''}", made_with(entry), *map(percent, numbers), seconds])
    return ["head", f"chosen on {chosen_on}", *HEADS_HEADER, chosen_on, "s"], rows


def results_table(results: dict[str, dict]) -> str:
    """In Markdown, without the choice that flatters."""
    return markdown(*results_rows(results, ("selected", "last")), words=2)


def choose(results: dict, epoch: int, measured: dict[str, dict]) -> bool:
    """Note an epoch's test accuracies, if it was measured, under those of CHOICES it earns; True if it is selected."""
    if not measured:
        return False
    entry = {"epoch": epoch, **measured["test"], "val_acc1": measured["val"]["acc1"]}
    entry["val_balanced"] = measured["val"].get("balanced", entry["val_acc1"])
    results["last"] = entry
    if "best_on_test" not in results or entry["acc1"] > results["best_on_test"]["acc1"]:
        results["best_on_test"] = entry
    before = results.get("selected")  # of a checkpoint of before, whose validation split was balanced anyway
    if before and entry["val_balanced"] <= before.get("val_balanced", before["val_acc1"]):
        return False
    results["selected"] = entry
    return True
