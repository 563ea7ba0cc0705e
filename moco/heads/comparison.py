"""Comparison of all classifiers that a checkpoint supports: a table, a figure and results.json."""

from pathlib import Path

from moco.heads import HEADS
from moco.heads.choice import Task, choose, titled
from moco.heads.flags import ways
from utils.distributed import say
from utils.errors import InputError
from utils.files import write_text
from utils.measure.results import HEADS_NOTE, SHOT_NOTE, best_of, heads_rows, markdown
from utils.report.figures import heads_picture
from utils.report.runs import probes_of
from utils.run.evaluation import write_results

TABLE, PICTURE = "heads.md", "heads.png"
LISTS = ("train_list", "val_list", "test_list")  # hashes of the lists, in args.json
OF_COMPARISON = (
    "head",
    "sampling",
    "logit_adjustment",
    "from",
    "folder",
    "seconds",
)  # keys in `heads` that a plain entry does not have


def run(run_dir: Path, args: dict, task: Task) -> None:
    """Fit all heads that the checkpoint supports; write the table, the figure and results.json.

    Args:
        args: Arguments of the run, as in args.json. pretrained is None if the features are not from a checkpoint.

    Raises:
        InputError: No head could be fitted.
    """
    heads = compare(task)
    if not heads:
        raise InputError(f"{args['pretrained'] or run_dir}: no classifier could be fitted; see the messages above")
    if args["pretrained"]:
        heads |= beside(Path(args["pretrained"]), {name: args[name] for name in LISTS})
    best = {name: value for name, value in heads[best_of(heads)].items() if name not in OF_COMPARISON}
    chosen = {"on": task.chosen_on, "from": {"head": [*heads]}}
    write_results(run_dir, args, {"selected": best, "heads": heads}, task.counts, chosen)
    header, rows = heads_rows(heads, task.chosen_on)
    table = markdown(header, rows, words=2)
    write_text(run_dir / TABLE, f"{HEADS_NOTE}\n\n{SHOT_NOTE}.\n\n{table}\n")
    heads_picture(heads, run_dir / PICTURE)
    say("\n" + table + "\n")
    say(f"wrote {run_dir}: args.json, results.json, {TABLE}, {PICTURE}")


def compare(task: Task) -> dict[str, dict]:
    """Return title -> entry of each fitted head, in the order of HEADS, with the values tried."""
    found, lacks = {}, task.problem.lacks
    for name, head in HEADS.items():
        if head.fit is None:
            continue
        if head.needs in lacks:
            say(f"skipped: {name} ({lacks[head.needs]})")
            continue
        for sampling, adjustment in ways(head):
            title = titled(name, sampling, adjustment)
            try:
                chosen = choose(name, sampling, adjustment, task)
            except InputError as error:  # other heads can still be fitted
                say(f"skipped: {error}")
                continue
            about = {"head": name, "sampling": sampling, "logit_adjustment": adjustment, "from": chosen.tried}
            found[title] = {**about, **chosen.entry, "seconds": round(chosen.seconds, 2)}
            say(f"{title}: {task.chosen_on} {chosen.entry['val_balanced']:.2f}  test {chosen.entry['acc1']:.2f}")
    return found


def beside(checkpoint: Path, lists: dict[str, str]) -> dict[str, dict]:
    """Return title -> selected entry of each probe that was trained on this checkpoint, in folders next to it.

    lists: hashes of the lists. Probes that used other lists are not comparable and are omitted.
    """
    found = {}
    for folder, results in probes_of(checkpoint, lists).items():
        about = {"head": "trained", "folder": str(folder), "from": results.get("chosen", {}).get("from", {})}
        entry = results["selected"]
        before = {"val_balanced": entry["val_acc1"]}  # older runs lack it; their val split was balanced
        found[f"{folder.name} (trained)"] = {**about, **before, **entry, "seconds": None}
    return found
