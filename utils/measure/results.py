"""Select results, and format accuracies as tables and lines."""

from itertools import product

from utils.distributed import say
from utils.errors import brief
from utils.measure.metrics import FEW_BELOW, MANY_ABOVE
from utils.safe_load import is_count, is_number

SHOTS = ("many", "medium", "few")
SHOT_NOTE = f"many: > {MANY_ABOVE} training images of the class, medium: {FEW_BELOW}-{MANY_ABOVE}, few: < {FEW_BELOW}"
RULE = (
    "the best class-balanced accuracy on the validation split; ties are broken by the earlier epoch, or by the lower "
    "loss of the values"
)
CHOICES = {
    "selected": "the epoch of the probe, or the values of a fitted head, with the best validation accuracy",
    "last": "the last epoch of the probe",
    "best_on_test": "the epoch with the best test accuracy, as the TSC authors' code selects; biased upwards",
}


NEEDED = ("acc1", "per_class", *SHOTS)  # names in every entry
# Percentages of an entry. Those outside ALWAYS are None if they are undefined: no class of a shot, no logit scale.
ALWAYS = ("acc1", "acc5", "val_acc1", "val_balanced")
PERCENT = (*ALWAYS, *SHOTS, "balanced", "worst", "harmonic", "ece")


def percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def what_is_wrong_with_entry(entry: object) -> str | None:
    """Return why `entry` is not an entry of results.json or of a checkpoint's results; None if it is."""
    if not isinstance(entry, dict):
        return f"is {brief(entry)}, expected a dict"
    lacking = [name for name in NEEDED if name not in entry]
    lacking += [] if {"epoch", "values"} & entry.keys() else ["epoch"]
    if lacking:
        return f"has no {', '.join(lacking)}, expected an entry written by stage 2"
    for name in PERCENT:
        if name in entry and not (_is_percent(entry[name]) or (entry[name] is None and name not in ALWAYS)):
            return f"{name} is {brief(entry[name])}, expected a percentage"
    if not isinstance(entry["per_class"], list) or not all(v is None or _is_percent(v) for v in entry["per_class"]):
        return f"per_class is {brief(entry['per_class'])}, expected a percentage for each class"
    if not is_count(entry.get("epoch", 0)) or not (entry.get("seconds") is None or is_number(entry["seconds"])):
        return f"epoch {brief(entry.get('epoch'))} and seconds {brief(entry.get('seconds'))}, expected numbers"
    values = entry.get("values", {})
    if not isinstance(values, dict) or not all(isinstance(k, str) and is_number(v) for k, v in values.items()):
        return f"values is {brief(values)}, expected numbers by name"
    return None


def _is_percent(value: object) -> bool:
    return is_number(value) and 0 <= value <= 100 + 1e-6


def what_is_wrong_with_results(results: dict) -> str | None:
    """Return why `results` of a checkpoint are invalid; None if they are empty or have an entry for each of CHOICES."""
    for choice in CHOICES if results else ():
        entry = results.get(choice)
        lacking = [] if not isinstance(entry, dict) else [n for n in ("epoch", "acc5", "val_acc1") if n not in entry]
        if wrong := what_is_wrong_with_entry(entry) or (f"has no {', '.join(lacking)}" if lacking else None):
            return f"results: '{choice}' {wrong}"
    return None


def accuracies(entry: dict) -> list[float | None]:
    """Return the accuracies of an entry of results.json: many, medium, few, all."""
    return [*(entry[shot] for shot in SHOTS), entry["acc1"]]


def made_with(entry: dict) -> str:
    """Return the epoch of an entry, or the values of a fitted head, as text."""
    if "values" not in entry:
        return str(entry["epoch"])
    return ", ".join(f"{name} {value:g}" for name, value in entry["values"].items()) or "–"


def choice_words(choice: str, record: dict) -> str:
    """Return the label of a choice in results.json, such as `selected (8)`; selection on the test split is named."""
    flatters = choice == "selected" and record.get("chosen", {}).get("on") == "test"
    return f"{choice}{' on test' if flatters else ''} ({made_with(record[choice])})"


def show_accuracies(title: str, entry: dict) -> None:
    """Print the accuracies of an entry as one line: top-1, top-5, many, medium, few."""
    shots = "  ".join(f"{shot} {percent(entry[shot])}" for shot in SHOTS)
    say(f"{title}: top-1 {percent(entry['acc1'])}  top-5 {percent(entry['acc5'])}  {shots}")


def markdown(header: list[str], rows: list[list[str]], words: int = 1) -> str:
    """Return a Markdown table; the first `words` columns are text, the others are numbers, aligned right."""
    lines = [header, ["---" if i < words else "--:" for i in range(len(header))], *rows]
    return "\n".join("| " + " | ".join(map(_in_a_cell, line)) + " |" for line in lines)


def _in_a_cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def results_rows(results: dict[str, dict], choices: tuple[str, ...]) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of test accuracies.

    Args:
        results: method name -> contents of its results.json. choices: the keys of CHOICES to show.
    """
    rows = []
    for (method, record), choice in product(results.items(), choices):
        if choice in record:
            rows.append([method, choice_words(choice, record), *map(percent, accuracies(record[choice]))])
    return ["method", "epoch or values", *SHOTS, "all"], rows


HEADS_NOTE = (
    "Heads on the features of one encoder, top-1 test accuracy in percent. Values are selected by "
    f"{RULE}. ✓ marks the head that this rule selects. balanced: mean over classes; worst: the worst class; "
    "harmonic: harmonic mean over classes; ECE: expected calibration error with 15 bins, for heads with a scale."
)
HEADS_HEADER = [*SHOTS, "all", "balanced", "worst", "harmonic", "ECE"]


def best_of(heads: dict[str, dict]) -> str:
    """Return the title of the head with the best balanced validation accuracy; the first one in case of a tie."""
    return max(heads, key=lambda title: heads[title]["val_balanced"])


def heads_rows(heads: dict[str, dict], chosen_on: str) -> tuple[list[str], list[list[str]]]:
    """Return header and rows for `heads` of a results.json (title -> entry). chosen_on: see `Data.chosen_on`."""
    best = best_of(heads)
    rows = []
    for title, entry in heads.items():
        numbers = [*accuracies(entry), *(entry.get(name) for name in ("balanced", "worst", "harmonic", "ece"))]
        numbers += [entry["val_balanced"]]
        seconds = "–" if entry.get("seconds") is None else f"{entry['seconds']:.1f}"
        rows.append([f"{title}{' ✓' if title == best else ''}", made_with(entry), *map(percent, numbers), seconds])
    return ["head", f"chosen on {chosen_on}", *HEADS_HEADER, chosen_on, "s"], rows


def results_table(results: dict[str, dict]) -> str:
    """Return the results as a Markdown table, without the selection on the test split."""
    return markdown(*results_rows(results, ("selected", "last")), words=2)


def choose(results: dict, epoch: int, measured: dict[str, dict]) -> bool:
    """Store an epoch's test accuracies under each of CHOICES that they qualify for; return whether it is selected.

    Args:
        measured: accuracies of val and test; empty if the epoch was not evaluated.
    """
    if not measured:
        return False
    entry = {"epoch": epoch, **measured["test"], "val_acc1": measured["val"]["acc1"]}
    entry["val_balanced"] = measured["val"].get("balanced", entry["val_acc1"])
    results["last"] = entry
    if "best_on_test" not in results or entry["acc1"] > results["best_on_test"]["acc1"]:
        results["best_on_test"] = entry
    before = results.get("selected")  # old checkpoints have no val_balanced, but a balanced validation split
    if before and entry["val_balanced"] <= before.get("val_balanced", before["val_acc1"]):
        return False
    results["selected"] = entry
    return True
