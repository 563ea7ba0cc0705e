"""Select results, and format accuracies as tables and lines."""

from itertools import product

from utils.distributed import log
from utils.errors import short_repr
from utils.measure.metrics import FEW_BELOW, MANY_ABOVE
from utils.safe_load import is_count, is_number

SHOTS = ("many", "medium", "few")
SHOT_NOTE = f"many: > {MANY_ABOVE} training images of the class, medium: {FEW_BELOW}-{MANY_ABOVE}, few: < {FEW_BELOW}"
RULE = (
    "the best class-balanced accuracy on the validation split; ties are broken by the earlier epoch (probe) or the "
    "lower validation loss (fitted head)"
)
CHOICES = {
    "selected": "the epoch of the probe, or the values of a fitted head, with the best validation accuracy",
    "last": "the last epoch of the probe",
    "best_on_test": "the epoch with the best test accuracy, as the TSC authors' code selects; biased upwards",
}


REQUIRED_KEYS = ("acc1", "per_class", *SHOTS)  # of every entry
# Keys of percentages. Some of them can be None: if a shot group has no classes, or if logits have no scale.
NEVER_NONE_KEYS = ("acc1", "acc5", "val_acc1", "val_balanced")
PERCENT_KEYS = (*NEVER_NONE_KEYS, *SHOTS, "balanced", "worst", "harmonic", "spread", "ece")


def format_percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def entry_problem(entry: object) -> str | None:
    """Return why `entry` is not an entry of results.json or of a checkpoint's results, or None if it is one."""
    if not isinstance(entry, dict):
        return f"is {short_repr(entry)}, expected a dict"
    missing = [name for name in REQUIRED_KEYS if name not in entry]
    missing += [] if {"epoch", "values"} & entry.keys() else ["epoch"]
    if missing:
        return f"has no {', '.join(missing)}, expected an entry written by stage 2"
    for name in PERCENT_KEYS:
        if name in entry and not (_is_percent(entry[name]) or (entry[name] is None and name not in NEVER_NONE_KEYS)):
            return f"{name} is {short_repr(entry[name])}, expected a percentage"
    if not isinstance(entry["per_class"], list) or not all(v is None or _is_percent(v) for v in entry["per_class"]):
        return f"per_class is {short_repr(entry['per_class'])}, expected a percentage for each class"
    if not is_count(entry.get("epoch", 0)) or not (entry.get("seconds") is None or is_number(entry["seconds"])):
        return (
            f"epoch {short_repr(entry.get('epoch'))} and seconds {short_repr(entry.get('seconds'))}, expected numbers"
        )
    values = entry.get("values", {})
    if not isinstance(values, dict) or not all(isinstance(k, str) and is_number(v) for k, v in values.items()):
        return f"values is {short_repr(values)}, expected numbers by name"
    return None


def _is_percent(value: object) -> bool:
    return is_number(value) and 0 <= value <= 100 + 1e-6


def results_problem(results: dict) -> str | None:
    """Return why a checkpoint's results are invalid, or None if they are empty or contain all of CHOICES."""
    for choice in CHOICES if results else ():
        entry = results.get(choice)
        missing = [] if not isinstance(entry, dict) else [n for n in ("epoch", "acc5", "val_acc1") if n not in entry]
        if problem := entry_problem(entry) or (f"has no {', '.join(missing)}" if missing else None):
            return f"results: '{choice}' {problem}"
    return None


def accuracies(entry: dict) -> list[float | None]:
    """Return the accuracies of an entry of results.json: many, medium, few, all."""
    return [*(entry[shot] for shot in SHOTS), entry["acc1"]]


def format_settings(entry: dict) -> str:
    """Format the epoch of a probe's entry, or the values of a fitted head's hyperparameters."""
    if "values" not in entry:
        return str(entry["epoch"])
    return ", ".join(f"{name} {value:g}" for name, value in entry["values"].items()) or "–"


def format_choice(choice: str, record: dict) -> str:
    """Format the label of a choice in results.json, such as `selected (8)`, or `selected on test (8)`."""
    selected_on_test = choice == "selected" and record.get("chosen", {}).get("on") == "test"
    return f"{choice}{' on test' if selected_on_test else ''} ({format_settings(record[choice])})"


def show_accuracies(title: str, entry: dict) -> None:
    """Print the accuracies of an entry as one line: top-1, top-5, many, medium, few."""
    shots = "  ".join(f"{shot} {format_percent(entry[shot])}" for shot in SHOTS)
    log(f"{title}: top-1 {format_percent(entry['acc1'])}  top-5 {format_percent(entry['acc5'])}  {shots}")


def format_markdown_table(header: list[str], rows: list[list[str]], text_columns: int = 1) -> str:
    """Format a Markdown table. The first `text_columns` columns contain text, the others numbers, aligned right."""
    lines = [header, ["---" if i < text_columns else "--:" for i in range(len(header))], *rows]
    return "\n".join("| " + " | ".join(map(_escape_cell, line)) + " |" for line in lines)


def _escape_cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def results_rows(results: dict[str, dict], choices: tuple[str, ...]) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of test accuracies.

    Args:
        results: maps the name of a method to the contents of its results.json.
        choices: the keys of CHOICES to show.
    """
    rows = []
    for (method, record), choice in product(results.items(), choices):
        if choice in record:
            rows.append([method, format_choice(choice, record), *map(format_percent, accuracies(record[choice]))])
    return ["method", "epoch or values", *SHOTS, "all"], rows


HEADS_NOTE = (
    "Heads on the features of one encoder, top-1 test accuracy in percent. Values are selected by "
    f"{RULE}. ✓ marks the head that this rule selects. balanced: mean over classes; worst: the worst class; "
    "harmonic: harmonic mean over classes; spread: standard deviation over classes, in points; "
    "ECE: expected calibration error with 15 bins, for heads with a scale."
)
HEADS_HEADER = [*SHOTS, "all", "balanced", "worst", "harmonic", "spread", "ECE"]


def best_head(heads: dict[str, dict]) -> str:
    """Return the title of the head with the best balanced validation accuracy; the first one in case of a tie."""
    return max(heads, key=lambda title: heads[title]["val_balanced"])


def heads_rows(heads: dict[str, dict], selection_split: str) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of a comparison of heads.

    Args:
        heads: the entry "heads" of a results.json, which maps titles to entries.
        selection_split: see `DataConfig.selection_split`.
    """
    best = best_head(heads)
    rows = []
    for title, entry in heads.items():
        numbers = [
            *accuracies(entry),
            *(entry.get(name) for name in ("balanced", "worst", "harmonic", "spread", "ece")),
        ]
        numbers += [entry["val_balanced"]]
        seconds = "–" if entry.get("seconds") is None else f"{entry['seconds']:.1f}"
        rows.append(
            [f"{title}{' ✓' if title == best else ''}", format_settings(entry), *map(format_percent, numbers), seconds]
        )
    return ["head", f"chosen on {selection_split}", *HEADS_HEADER, selection_split, "s"], rows


def format_results_table(results: dict[str, dict]) -> str:
    """Return the results as a Markdown table, without the selection on the test split."""
    return format_markdown_table(*results_rows(results, ("selected", "last")), text_columns=2)


def update_results(results: dict, epoch: int, measured: dict[str, dict]) -> bool:
    """Store an epoch's test accuracies under each of CHOICES that they qualify for. Return whether it is selected.

    Only the entry `selected` contains the confusion of the classes, which is large.

    Args:
        results: the entries so far, by choice; updated in place.
        measured: accuracies of val and test; empty if the epoch was not evaluated.
    """
    if not measured:
        return False
    entry = {"epoch": epoch, **measured["test"], "val_acc1": measured["val"]["acc1"]}
    entry["val_balanced"] = measured["val"].get("balanced", entry["val_acc1"])
    confusion = {"confusion": entry.pop("confusion")} if "confusion" in entry else {}
    results["last"] = entry
    if "best_on_test" not in results or entry["acc1"] > results["best_on_test"]["acc1"]:
        results["best_on_test"] = entry
    previous = results.get("selected")  # old checkpoints have no val_balanced, but a balanced validation split
    if previous and entry["val_balanced"] <= previous.get("val_balanced", previous["val_acc1"]):
        return False
    results["selected"] = entry | confusion
    return True
