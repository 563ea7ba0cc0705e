"""Comparison of all classifiers that a checkpoint supports: a table, a figure and results.json."""

from pathlib import Path

from moco.heads import HEADS
from moco.heads.data import HeadData
from moco.heads.head_flags import compared_settings
from moco.heads.selection import head_title, select_head
from utils.distributed import log
from utils.errors import InputError
from utils.files import write_text
from utils.measure.results import HEADS_NOTE, SHOT_NOTE, best_head, format_markdown_table, heads_rows
from utils.report.figures import heads_picture
from utils.report.runs import find_probes
from utils.run.evaluation import write_results
from utils.run.logger import RunLog

TABLE, PICTURE = "heads.md", "heads.png"
LIST_DIGEST_KEYS = ("train_list", "val_list", "test_list")  # arguments in args.json that hold the hashes of the lists
# Keys of an entry of `heads` that the entry `selected` of results.json does not have.
COMPARISON_KEYS = ("head", "sampling", "logit_adjustment", "from", "folder", "seconds")


def run(run_dir: Path, args: dict, data: HeadData) -> None:
    """Fit all heads that the checkpoint supports; write the table, the figure and results.json.

    Args:
        args: Arguments of the run, as in args.json. pretrained is None if the features are not from a checkpoint.

    Raises:
        InputError: No head could be fitted.
    """
    heads = compare(data)
    if not heads:
        raise InputError(f"{args['pretrained'] or run_dir}: no classifier could be fitted; see the messages above")
    RunLog(run_dir, args, (), 0)
    table = write(run_dir, args, heads, data)  # first, so that nothing in another run's folder can lose these results
    try:
        if args["pretrained"]:
            probes = nearby_probes(Path(args["pretrained"]), {name: args[name] for name in LIST_DIGEST_KEYS})
            heads |= probes
            table = write(run_dir, args, heads, data) if probes else table
    finally:
        heads_picture(heads, run_dir / PICTURE)
    log("\n" + table + "\n")
    log(f"wrote {run_dir}: args.json, results.json, {TABLE}, {PICTURE}")


def write(run_dir: Path, args: dict, heads: dict[str, dict], data: HeadData) -> str:
    """Write results.json and the table of these heads (title -> entry). Return the table."""
    best = {name: value for name, value in heads[best_head(heads)].items() if name not in COMPARISON_KEYS}
    heads = {title: {k: v for k, v in entry.items() if k != "confusion"} for title, entry in heads.items()}
    chosen = {"on": data.selection_split, "from": {"head": [*heads]}}
    names = data.described.get("class_names")
    write_results(run_dir, args, {"selected": best, "heads": heads}, data.counts.tolist(), chosen, names)
    header, rows = heads_rows(heads, data.selection_split)
    table = format_markdown_table(header, rows, text_columns=2)
    write_text(run_dir / TABLE, f"{HEADS_NOTE}\n\n{SHOT_NOTE}.\n\n{table}\n")
    return table


def compare(data: HeadData) -> dict[str, dict]:
    """Fit every head that the checkpoint supports. Return a dict that maps titles to entries, in the order of HEADS."""
    entries = {}
    for name, head in HEADS.items():
        if not head.is_fitted:
            continue
        if head.needs in data.lacks:
            log(f"skipped: {name} ({data.lacks[head.needs]})")
            continue
        for sampling, adjustment in compared_settings(head):
            title = head_title(name, sampling, adjustment)
            try:
                selected = select_head(name, sampling, adjustment, data)
            except InputError as error:  # other heads can still be fitted
                log(f"skipped: {error}")
                continue
            settings = {"head": name, "sampling": sampling, "logit_adjustment": adjustment, "from": selected.tried}
            entries[title] = entry = {**settings, **selected.entry, "seconds": round(selected.seconds, 2)}
            log(f"{title}: {data.selection_split} {entry['val_balanced']:.2f}  test {entry['acc1']:.2f}")
    return entries


def nearby_probes(checkpoint: Path, lists: dict[str, str]) -> dict[str, dict]:
    """Find the probes that were trained on this checkpoint, in folders next to it.

    Return a dict that maps their titles to their selected entries.

    lists: hashes of the lists. Probes that used other lists are not comparable and are omitted.
    """
    entries = {}
    for folder, results in find_probes(checkpoint, lists).items():
        source = {"head": "trained", "folder": str(folder), "from": results.get("chosen", {}).get("from", {})}
        entry = results["selected"]
        default = {"val_balanced": entry["val_acc1"]}  # for older runs, which lack it; their val split was balanced
        entries[f"{folder.name} (trained)"] = {**source, **default, **entry, "seconds": None}
    return entries
