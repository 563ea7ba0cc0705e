"""Run folders as a trial leaves them, written and not trained."""

import json
from pathlib import Path

import torch

from examples.results.study import Study
from examples.results.trials import Cell, parser_named, resolved
from utils.measure.feature_file import RunFeatures, write_features

COUNTS = [120, 50, 2]


def entry(acc1: float, val: float) -> dict:
    """An entry of results.json: few is 10 below all."""
    return {
        **{"values": {"l2": 0.1}, "acc1": acc1, "many": 99.0, "medium": None, "few": acc1 - 10},
        **{"val_acc1": val, "val_balanced": val, "per_class": [99.0, acc1, acc1 - 10]},
    }


def write_run(study: Study, cell: Cell, seed: int, acc1: float, val: float, uniformity: float = 1.0) -> None:
    """What a trial leaves that has ended, as its own command says, in classes of COUNTS."""
    trial = study.trial(cell, seed)
    heads = {"logistic, post": entry(acc1, val), "ncm": entry(acc1 - 5, val - 5)}
    heads |= {"own, post": entry(acc1 - 1, val - 1)} if cell.method.way == "cross-entropy" else {}
    results = {"selected": entry(acc1, val), "heads": heads, "train_counts": COUNTS, "chosen": {"on": "val"}}
    about = {"git": "c0ffee", "machine": "box-1", "versions": {"torch": "2"}}
    for number, command in enumerate(trial.commands):
        script, *flags = command[1:] if command[0] == "-m" else command
        args = vars(resolved(script, parser_named(script).parse_args(flags)))
        folder = Path(args["run_dir"])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "args.json").write_text(json.dumps(about | {"args": args}))
        if number == len(trial.commands) - 1:
            (folder / "results.json").write_text(json.dumps(results))
        if number == 0 and cell.method.way != "pixels":
            write_log(folder, args["epochs"], uniformity)
            torch.save({"epoch": args["epochs"], "state_dict": {}}, folder / "last.pth.tar")
        if cell.method.way == "cross-entropy":
            (folder / "results.json").write_text(json.dumps(results))
        if number == 0 and cell.method.way == "contrast":
            write_features(folder, features(args["targeted"]))


def write_log(folder: Path, epochs: int, uniformity: float) -> None:
    val = {"alignment": 0.2, "uniformity": uniformity, "uniformity_k": 0.9, "nc1": 2.0, "nc2": 0.1}
    lines = [{"epoch": epoch, "seconds": 30, "val": val} for epoch in range(1, epochs + 1)]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def features(targeted: bool) -> RunFeatures:
    """Classes 0, 1 and 2 on the axes of R³; the targets of 1 and 2 exchanged: one of three is reached."""
    axes = torch.eye(3)
    labels = torch.tensor([0, 0, 1, 2])
    targets = axes[[0, 2, 1]]
    of_targets = (targets, torch.tensor([1.0, 0.0, 0.0])) if targeted else ()
    return RunFeatures(axes[labels], labels, torch.tensor(COUNTS), 2, *of_targets)
