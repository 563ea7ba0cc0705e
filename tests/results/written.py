"""Write run folders as a trial leaves them, without training."""

import json
from pathlib import Path

import torch

from examples.results.study import Study
from examples.results.trials import Cell, resolve_args, script_parser
from utils.measure.feature_file import RunFeatures, write_features

COUNTS = [120, 50, 2]


def entry(acc1: float, val: float) -> dict:
    """Return an entry of results.json whose few-shot accuracy is 10 points below the overall accuracy."""
    return {
        **{"values": {"l2": 0.1}, "acc1": acc1, "many": 99.0, "medium": None, "few": acc1 - 10},
        **{"val_acc1": val, "val_balanced": val, "per_class": [99.0, acc1, acc1 - 10]},
    }


def write_run(study: Study, cell: Cell, seed: int, acc1: float, val: float, uniformity: float = 1.0) -> None:
    """Write the files of a finished trial, with the arguments of its own commands and class sizes COUNTS."""
    trial = study.trial(cell, seed)
    heads = {"logistic, post": entry(acc1, val), "ncm": entry(acc1 - 5, val - 5)}
    heads |= {"own, post": entry(acc1 - 1, val - 1)} if cell.method.stage1 == "cross-entropy" else {}
    results = {"selected": entry(acc1, val), "heads": heads, "train_counts": COUNTS, "chosen": {"on": "val"}}
    record = {"git": "c0ffee", "machine": "box-1", "processor": "Fast CPU", "versions": {"torch": "2"}}
    for number, command in enumerate(trial.commands):
        script, *flags = command[1:] if command[0] == "-m" else command
        args = vars(resolve_args(script, script_parser(script).parse_args(flags), {}))
        folder = Path(args["run_dir"])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "args.json").write_text(json.dumps(record | {"args": args}))
        if number == len(trial.commands) - 1:
            (folder / "results.json").write_text(json.dumps(results))
        if number == 0 and cell.method.stage1 != "pixels":
            write_log(folder, args["epochs"], uniformity)
            torch.save({"epoch": args["epochs"], "state_dict": {}}, folder / "last.pth.tar")
        if cell.method.stage1 == "cross-entropy":
            (folder / "results.json").write_text(json.dumps(results))
        if number == 0 and cell.method.stage1 == "contrast":
            write_features(folder, features(args["targeted"]))


def write_log(folder: Path, epochs: int, uniformity: float) -> None:
    val = {"alignment": 0.2, "uniformity": uniformity, "uniformity_k": 0.9, "nc1": 2.0, "nc2": 0.1}
    lines = [{"epoch": epoch, "seconds": 30, "val": val} for epoch in range(1, epochs + 1)]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def features(targeted: bool) -> RunFeatures:
    """Return features of classes on the axes of R³. Targets 1 and 2 are exchanged, so one of three matches."""
    axes = torch.eye(3)
    labels = torch.tensor([0, 0, 1, 2])
    targets = axes[[0, 2, 1]]
    target_fields = (targets, torch.tensor([1.0, 0.0, 0.0])) if targeted else ()
    return RunFeatures(axes[labels], labels, torch.tensor(COUNTS), 2, *target_fields)
