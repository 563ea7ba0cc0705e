"""Checkpoints and features that were made to do harm, or damaged: refused in a line, at no cost."""

import io
import os
import pickle
import re
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch

from moco.methods import targets_of
from moco.pretrained import read_classifier, read_weights
from utils.errors import InputError
from utils.measure.feature_file import NAME, read_features
from utils.optimizers import OPTIMIZERS
from utils.run import checkpoint
from utils.run.state import RunState

HUGE = 10**15
ENTRY = {
    "epoch": 1,
    "acc1": 1.0,
    "acc5": 1.0,
    "many": None,
    "medium": 1.0,
    "few": 1.0,
    "per_class": [1.0],
    "val_acc1": 1.0,
}
RESULTS = dict.fromkeys(("selected", "last", "best_on_test"), ENTRY)


class Call:
    """What a pickle of it calls when it is read."""

    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize("save", [torch.save, lambda state, path: path.write_bytes(pickle.dumps(state))])
def test_code_is_named_and_not_run(save, tmp_path):
    """In words of this project: PyTorch's differ between its versions, and advise to read it all the same."""
    save({"state_dict": Call(os.mkdir, str(tmp_path / "made"))}, tmp_path / "f")
    with pytest.raises(InputError) as error:
        checkpoint.read(tmp_path / "f")
    why = "it holds 'posix.mkdir', which could run code and was not loaded; a state_dict() alone can be read"
    assert str(error.value) == f"checkpoint {tmp_path}/f: not a checkpoint of tensors and plain data: {why}"
    assert not (tmp_path / "made").exists()


def blown_up(source: bytes, size: int) -> bytes:
    """The archive with its last entry replaced by so many zeros, compressed."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(source)) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist()[:-1]:
            new.writestr(entry.filename, old.read(entry))
        new.writestr(old.infolist()[-1].filename, bytes(size))
    return out.getvalue()


def test_an_archive_that_unpacks_to_more_than_it_is_is_not_unpacked(tmp_path):
    buffer = io.BytesIO()
    torch.save({"state_dict": {"a": torch.zeros(9)}}, buffer)
    (tmp_path / "f.pth").write_bytes(blown_up(buffer.getvalue(), 10**7))
    buffer = io.BytesIO()
    np.savez(buffer, features=np.zeros((2, 2), np.float32))
    (tmp_path / NAME).write_bytes(blown_up(buffer.getvalue(), 10**7))
    for read in (lambda: checkpoint.read(tmp_path / "f.pth"), lambda: read_features(tmp_path)):
        with pytest.raises(InputError, match=r"claims to hold 100\d+ bytes and has \d{4,5}; it was not written"):
            read()


def nested(depth: int) -> list:
    value: list = []
    for _ in range(depth):
        value = [value, value]
    return value


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.zeros(1).expand(HUGE), "a tensor of shape .1000000000000000,. is larger than the file"),
        (torch.zeros(1).expand(2**20, 2**20), "is larger than the file"),
        (nested(60), "its entries are nested more than 20 deep"),
    ],
)
def test_a_checkpoint_holds_no_more_than_its_file(value, message, tmp_path):
    torch.save({"state_dict": {}, "args": {"a": [value]}}, tmp_path / "f")
    with pytest.raises(InputError, match=f"{message}; it is damaged"):
        checkpoint.read(tmp_path / "f")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"epoch": 10**19}, "epoch 10000000000000000000 and step 0, expected 0 or more"),
        ({"epoch": -1}, "epoch -1 and step 0"),
        ({"step": 2**31}, "epoch 1 and step 2147483648"),
        ({"step": "5"}, "step is '5', expected int"),
        ({"epoch": True}, "epoch is True, expected int"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**63}, "seed is 9223372036854775808"),
        ({"processes": 0}, "processes is 0"),
        ({"args": {5: 1}}, "its argument 5 is 1"),
        ({"args": {"lr": {"a": 1}}}, r"its argument 'lr' is \{'a': 1\}"),
        ({"args": {"lr": float("nan")}}, "its argument 'lr' is nan"),
        ({"means": {}}, r"means is \{\}"),
        ({"means": {"steps": "x", "count": 1.0, "sums": {}}}, "means is .*, expected steps, count and sums"),
        ({"means": {"steps": 1, "count": 1.0, "sums": {"loss": "x"}}}, "means is"),
        ({"means": {"steps": 1, "count": float("inf"), "sums": {}}}, "means is"),
        ({"results": {"last": {}}}, "results: 'selected' is None, expected a table"),
        ({"results": RESULTS | {"last": {}}}, "results: 'last' lacks acc1, per_class"),
        ({"results": RESULTS | {"last": ENTRY | {"val_acc1": None}}}, "results: 'last' val_acc1 is None"),
        ({"results": RESULTS | {"last": ENTRY | {"epoch": [1]}}}, r"results: 'last' epoch \[1\]"),
        (
            {"results": RESULTS | {"selected": {k: v for k, v in ENTRY.items() if k != "acc5"}}},
            "results: 'selected' lacks acc5",
        ),
    ],
)
def test_a_place_that_no_run_stands_at_is_named(entries, message):
    good = {"state_dict": {}, "epoch": 1, "results": RESULTS, "args": {"lr": 0.1, "schedule": [1], "name": None}}
    assert RunState.from_dict(good, "file").epoch == 1
    with pytest.raises(InputError, match=f"checkpoint file: {message}"):
        RunState.from_dict(good | entries, "file")


def trained(name: str) -> tuple[torch.optim.Optimizer, dict]:
    """An optimiser after a step, and its state."""
    weights = [torch.nn.Parameter(torch.ones(2, 3)), torch.nn.Parameter(torch.ones(3))]
    optimizer = OPTIMIZERS[name](weights, 0.1, 0.9, 0.0)
    sum(weight.sum() for weight in weights).backward()
    optimizer.step()
    return optimizer, optimizer.state_dict()


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize(
    "change",
    [
        lambda state: state["param_groups"][0].update(weight_decay="x"),
        lambda state: state["param_groups"][0].update(lr=None),
        lambda state: state["param_groups"][0].update(lr=float("nan")),
        lambda state: state["param_groups"][0].update({"betas" if "betas" in state["param_groups"][0] else "lr": "xy"}),
        lambda state: state["state"].update({0: 5}),
        lambda state: state["state"].update({0: {}}),
        lambda state: state["state"][1].update(dict.fromkeys(state["state"][1], "x")),
        lambda state: state["state"][1].update(dict.fromkeys(state["state"][1], torch.zeros(2, 2))),
        lambda state: state["state"][0].update({[*state["state"][0]][-1]: torch.tensor(1.0)}),
        lambda state: state["state"][0].pop([*state["state"][0]][-1]),
        lambda state: state.pop("param_groups"),
        lambda state: state.update(param_groups=5),
        lambda state: state.update(param_groups=[torch.ones(2)]),
        lambda state: state["param_groups"][0].update(params=torch.ones(2)),
        lambda state: state["param_groups"][0].update(params=True),
        lambda state: state.update(state=[1]),
        lambda state: state.update(state=torch.ones(2)),
        lambda state: state["state"].update({0: torch.ones(2)}),
    ],
)
def test_an_optimiser_that_cannot_take_a_step_is_named(change, name):
    optimizer, state = trained(name)
    checkpoint.load_optimizer(optimizer, state, "file")
    change(state)
    with pytest.raises(InputError, match="checkpoint file: its optimiser does not fit the model") as error:
        checkpoint.load_optimizer(optimizer, state, "file")
    assert "\n" not in str(error.value)


def test_an_optimisers_parts_that_are_no_tables_are_shown():
    optimizer, state = trained("sgd")
    for part, value, said in (("state", [1], "state is [1]"), ("param_groups", 5, "param_groups are 5")):
        with pytest.raises(InputError, match=re.escape(f"(its {said}, expected ")):
            checkpoint.load_optimizer(optimizer, state | {part: value}, "file")


@pytest.mark.parametrize(
    "fc",
    [
        {"fc.weight": torch.zeros(3, 4), "fc.bias": torch.tensor(1.0)},
        {"fc.weight": torch.zeros(4), "fc.bias": torch.zeros(3)},
        {"fc.weight": torch.zeros(2, 4), "fc.bias": torch.zeros(3)},
        {"fc.weight": torch.zeros(3, 4).fill_(float("nan")), "fc.bias": torch.zeros(3)},
        {"fc.weight": torch.zeros(3, 4, dtype=torch.int64), "fc.bias": torch.zeros(3)},
    ],
)
def test_a_classifier_that_is_none_is_named(fc, tmp_path):
    torch.save({"state_dict": OrderedDict(fc)}, tmp_path / "f")
    with pytest.raises(InputError, match=r"checkpoint .*/f: (has fc with|fc\.weight)"):
        read_classifier(tmp_path / "f", 3)


def test_an_architecture_is_a_name(tmp_path):
    torch.save({"state_dict": {}, "arch": ["x"]}, tmp_path / "f")
    with pytest.raises(InputError, match=r"arch is \['x'\], expected the name of a network"):
        read_weights(tmp_path / "f")


@pytest.mark.parametrize(
    "args",
    [
        {"arch": None},
        {"num_classes": "x"},
        {"num_classes": 10**9},
        {"moco_k": -1},
        {"moco_k": 10**9},
        {"moco_dim": 10**9},
        {"moco_k": None},
        {"loss_form": 0},
        {"freeze": 1.5},
        {"contrast": []},
        {"tr": None},
    ],
    ids=str,
)
def test_arguments_that_make_no_model_are_named(args, tsc_run, tmp_path):
    """The heads' targets are read with the arguments that the checkpoint says."""
    state = checkpoint.load(tsc_run / "last.pth.tar")
    torch.save(state | {"args": state["args"] | args}, tmp_path / "f")
    with pytest.raises(InputError, match=r"checkpoint .*/f: (its args (say|are none)|--contrast \[\]).* stage.1"):
        targets_of(tmp_path / "f")
