"""Damaged or malicious checkpoints are refused quickly, in one line."""

import io
import os
import pickle
import shutil
import zipfile
from argparse import Namespace
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch

import main_lincls_imba as stage2
import main_moco_supcon_imba as stage1
from moco.methods.loading import load_projection_and_targets
from moco.pretrained import read_classifier, read_state
from tests.hostile.table import parametrize
from tests.stopping import BATCH, FOUR_EPOCHS, QUEUE, STEPS
from utils.measure.feature_file import NAME, read_features
from utils.run import checkpoint
from utils.run.state import RunState

HUGE = 10**15
ENTRY = {"epoch": 1, "acc1": 1.0, "acc5": 1.0, "many": None, "medium": 1.0, "few": 1.0}
ENTRY |= {"per_class": [1.0], "val_acc1": 1.0}
RESULTS = dict.fromkeys(("selected", "last", "best_on_test"), ENTRY)
GOOD = {"state_dict": {}, "epoch": 1, "results": RESULTS, "args": {"lr": 0.1, "schedule": [1], "name": None}}
NAN = float("nan")


class Call:
    """An object whose pickle calls a function when it is read."""

    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


CODE = {"state_dict": Call(os.mkdir, "made")}
HIDDEN_CODE = {"args": Namespace(lr=np.float64(1)), "model": Call(os.mkdir, "made")}


def nested(depth: int) -> list:
    value: list = []
    for _ in range(depth):
        value = [value, value]
    return value


def to_bytes(state) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def zip_bomb(source: bytes, size: int) -> bytes:
    """Return the archive with its last entry replaced by this many zeros, compressed."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(source)) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist()[:-1]:
            new.writestr(entry.filename, old.read(entry))
        new.writestr(old.infolist()[-1].filename, bytes(size))
    return out.getvalue()


def reader_of(read):
    """Return a reader that writes the bad bytes, or saves the bad object, in bad.pth, and calls read(path)."""

    def reader(bad, folder, fixture):
        if bad is not None:
            (folder / "bad.pth").write_bytes(bad if isinstance(bad, bytes) else to_bytes(bad))
        return lambda: read(Path("bad.pth"))

    return reader


load = reader_of(checkpoint.read_checkpoint)


def features(bad, folder, fixture):
    buffer = io.BytesIO()
    np.savez(buffer, features=np.zeros((2, 2), np.float32))
    (folder / NAME).write_bytes(zip_bomb(buffer.getvalue(), bad))
    return lambda: read_features(folder)


def run_state(entries, folder, fixture):
    return lambda: RunState.from_dict(GOOD | entries, "bad.pth")


def arguments(args, folder, fixture):
    """Read the heads' targets with the arguments in the checkpoint."""
    state = checkpoint.read_checkpoint(fixture("tsc_run") / "last.pth.tar")
    return reader_of(load_projection_and_targets)(state | {"args": state["args"] | args}, folder, fixture)


def resumed(change, folder, fixture):
    """Resume a TSC run from a checkpoint with other entries, or other tensors ("module.…")."""
    state = checkpoint.read_checkpoint(fixture("uninterrupted_run") / "checkpoint_0003.pth.tar")
    for name, value in change.items():
        (state["state_dict"] if name.startswith("module.") else state)[name] = value
    words = [*fixture("flags"), *FOUR_EPOCHS, "--resume", "bad.pth", "--run-dir", "run"]
    return reader_of(lambda path: stage1.main(words))(state, folder, fixture)


def resumed_probe(entries, folder, fixture):
    state = checkpoint.read_checkpoint(fixture("probe_run") / "last.pth.tar") | entries
    pretrained = ["--pretrained", str(fixture("tsc_run") / "last.pth.tar")]
    words = [*fixture("probe_flags"), *pretrained, "--resume", "bad.pth", "--epochs", "2", "--run-dir", "run"]
    return reader_of(lambda path: stage2.main(words))(state, folder, fixture)


def filled(run: str, flag: str, name: str, at):
    """Return a reader: fill a part of a weight of the run's last checkpoint with the bad value, pass it to stage 2."""

    def reader(value, folder, fixture):
        state = checkpoint.read_checkpoint(fixture(run) / "last.pth.tar")
        state["state_dict"][name][at].fill_(value)
        words = [*fixture("probe_flags"), "--run-dir", "run", *flag.split(), "bad.pth"]
        return reader_of(lambda path: stage2.main(words))(state, folder, fixture)

    return reader


def damaged_in_place(entries, folder, fixture):
    """Damage the last checkpoint in the run folder, and resume from it."""
    shutil.copytree(fixture("uninterrupted_run"), folder / "run")
    checkpoint.save_last(
        folder / "run", checkpoint.read_checkpoint(folder / "run" / "checkpoint_0003.pth.tar") | entries
    )
    return lambda: stage1.main([*fixture("flags"), *FOUR_EPOCHS, "--resume", "auto", "-p", "7", "--run-dir", "run"])


def evaluated(entries, folder, fixture):
    """Evaluate a stage-1 checkpoint."""
    state = checkpoint.read_checkpoint(fixture("tsc_run") / "last.pth.tar") | entries
    return reader_of(lambda path: stage2.main([*fixture("probe_flags"), "--evaluate", "--resume", "bad.pth"]))(
        state, folder, fixture
    )


def without_a_weight(name, folder, fixture):
    state = checkpoint.read_checkpoint(fixture("tsc_run") / "last.pth.tar")
    del state["state_dict"][f"module.encoder_q.{name}"]
    words = [*fixture("probe_flags"), "--pretrained", "bad.pth", "--run-dir", "run"]
    return reader_of(lambda path: stage2.main(words))(state, folder, fixture)


FILES = [
    *(("bytes", content, "bad.pth") for content in (b"", b"hello", b"abc", b".", b"PK\x03\x04 and half a zip")),
    ("half a file", to_bytes({"state_dict": {"a": torch.zeros(99)}})[:600], "bad.pth"),
    ("no file", None, "bad.pth"),
    ("no weights", {"epoch": 1}, "bad.pth state_dict"),
    *(("state_dict", {"state_dict": bad}, "bad.pth state_dict") for bad in (5, {1: torch.zeros(1)}, {"queue": "x"})),
    ("code", CODE, "bad.pth posix.mkdir"),
    ("code beside arguments", HIDDEN_CODE, "bad.pth posix.mkdir"),
    ("code in a pickle", pickle.dumps(CODE), "bad.pth"),
    ("archive", zip_bomb(to_bytes({"state_dict": {"a": torch.zeros(9)}}), 10**7), "bad.pth 1000"),
    ("huge tensor", {"state_dict": {}, "args": {"a": [torch.zeros(1).expand(HUGE)]}}, f"bad.pth {HUGE}"),
    ("large tensor", {"state_dict": {}, "args": {"a": [torch.zeros(1).expand(2**20, 2**20)]}}, f"bad.pth {2**20}"),
    ("nested", {"state_dict": {}, "args": {"a": [nested(60)]}}, "bad.pth 20"),
]
STATES = [
    ({"epoch": 10**19}, "epoch 10000000000000000000"),
    ({"epoch": -1}, "epoch -1"),
    ({"step": 2**31}, "epoch step 2147483648"),
    ({"step": "5"}, "step '5' int"),
    ({"epoch": True}, "epoch True int"),
    ({"seed": -1}, "seed -1"),
    ({"seed": 2**63}, "seed 9223372036854775808"),
    ({"args": {5: 1}}, "5 1"),
    ({"args": {"lr": {"a": 1}}}, ("lr", "{'a': 1}")),
    ({"args": {"lr": NAN}}, "lr nan"),
    ({"means": {}}, "means {}"),
    ({"means": {"steps": "x", "count": 1.0, "sums": {}}}, "means steps count sums"),
    ({"means": {"steps": 1, "count": 1.0, "sums": {"loss": "x"}}}, "means"),
    ({"means": {"steps": 1, "count": float("inf"), "sums": {}}}, "means"),
    ({"results": {"last": {}}}, "results selected None"),
    ({"results": RESULTS | {"last": {}}}, "results last acc1 per_class"),
    ({"results": RESULTS | {"last": ENTRY | {"val_acc1": None}}}, "results last val_acc1 None"),
    ({"results": RESULTS | {"last": ENTRY | {"epoch": [1]}}}, "results last epoch [1]"),
    ({"results": RESULTS | {"selected": {k: v for k, v in ENTRY.items() if k != "acc5"}}}, "results selected acc5"),
]
HEADS = [
    {"fc.weight": torch.zeros(3, 4), "fc.bias": torch.tensor(1.0)},
    {"fc.weight": torch.zeros(4), "fc.bias": torch.zeros(3)},
    {"fc.weight": torch.zeros(2, 4), "fc.bias": torch.zeros(3)},
    {"fc.weight": torch.zeros(3, 4).fill_(NAN), "fc.bias": torch.zeros(3)},
    {"fc.weight": torch.zeros(3, 4, dtype=torch.int64), "fc.bias": torch.zeros(3)},
]
ARGS = [
    *({"arch": None}, {"num_classes": "x"}, {"num_classes": 10**9}, {"moco_k": -1}, {"moco_k": 10**9}),
    *({"moco_dim": 10**9}, {"moco_k": None}, {"loss_form": 0}, {"freeze": 1.5}, {"contrast": []}, {"tr": None}),
]
NOT_PERMUTATIONS = ([0, 1], [0, *range(9)], list(range(1, 11)), [0.0, *range(1, 10)], [], 3, [[*range(10)]])
RESUMED = [
    ({"module.queue_ptr": torch.tensor([7])}, f"queue_ptr 7 {QUEUE - 1} {BATCH}"),
    ({"module.queue_labels": torch.full((1, QUEUE), 10)}, f"{QUEUE} queue_labels 10 9"),
    ({"step": STEPS + 1}, f"{STEPS + 1} {STEPS}"),
    *(({"assignment": torch.tensor(values)}, "assignment 10") for values in NOT_PERMUTATIONS),
    ({"assignment": torch.randperm(10).to(torch.uint8)}, "assignment 10"),  # would be used as a mask
    *(({"assignment_before": v if isinstance(v, list) else [v]}, "assignment_before 10") for v in NOT_PERMUTATIONS),
]
ROWS = [
    *((name, load, content, facts) for name, content, facts in FILES),
    ("archive of features", features, 10**7, f"{NAME} 1000"),
    *((f"entries {' '.join(entries)}", run_state, entries, facts) for entries, facts in STATES),
    ("class names", run_state, {"class_names": ["a", 1]}, "class_names 1"),
    ("statistics", run_state, {"statistics": {"mean": [0, 0, 0], "std": [1, 1, 0]}}, "statistics mean std"),
    *(("classifier", reader_of(lambda path: read_classifier(path, 3)), OrderedDict(fc), "bad.pth fc") for fc in HEADS),
    ("arch", reader_of(read_state), {"state_dict": {}, "arch": ["x"]}, "bad.pth arch ['x']"),
    *((f"args {args}", arguments, args, f"bad.pth {'--contrast' if 'contrast' in args else 'args'}") for args in ARGS),
    *((f"resumed {' '.join(entries)}", resumed, entries, f"bad.pth {facts}") for entries, facts in RESUMED),
    ("resumed in place", damaged_in_place, {"optimizer": {"state": 5}}, "run/last.pth.tar"),
    ("probe: step", resumed_probe, {"epoch": 1, "step": 10**6}, f"bad.pth 1000000 {STEPS}"),
    *(
        ("probe: results", resumed_probe, {"results": bad}, "bad.pth results selected")
        for bad in ({"last": 5}, {"last": None}, {"selected": [1]})
    ),
    *(
        (
            "classifier weight",
            filled("probe_run", "--evaluate --resume", "module.fc.weight", 3),
            bad,
            "bad.pth fc.weight",
        )
        for bad in (NAN, float("inf"))
    ),
    ("encoder", filled("tsc_run", "--pretrained", "module.encoder_q.conv1.weight", 0), NAN, "bad.pth conv1.weight"),
    ("stage 1 evaluated", evaluated, {}, "bad.pth stage-1 --pretrained"),
    ("encoder without a weight", without_a_weight, "layer1.0.conv1.weight", "bad.pth layer1.0.conv1.weight"),
    # A batch-norm weight whose products overflow float32 is refused during evaluation.
    ("logits", filled("probe_run", "--evaluate --resume", "module.bn1.weight", ...), 3e38, "bad.pth val 40"),
]


@parametrize(ROWS)
def test_bad_checkpoint_is_refused(reader, bad, facts, check, capsys):
    check(reader, bad, facts)
    assert "top-1" not in capsys.readouterr().out


def test_unchanged_entries_are_accepted():
    assert RunState.from_dict(GOOD, "file").epoch == 1
