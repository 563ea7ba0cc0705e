"""Damaged optimiser states are refused in one line."""

import pytest
import torch

from tests.hostile.table import parametrize
from utils.optimizers import LR_FACTOR_KEY, OPTIMIZERS
from utils.run import checkpoint


def trained_optimizer(name: str) -> tuple[torch.optim.Optimizer, dict]:
    """Return an optimiser after one step, and its state."""
    weights = [torch.nn.Parameter(torch.ones(2, 3)), torch.nn.Parameter(torch.ones(3))]
    optimizer = OPTIMIZERS[name](weights, 0.1, 0.9, 0.0)
    sum(weight.sum() for weight in weights).backward()
    optimizer.step()
    return optimizer, optimizer.state_dict()


def state_of(name: str):
    """Return a reader that changes the state of an optimiser of this name, and loads it."""

    def reader(change, folder, fixture):
        optimizer, state = trained_optimizer(name)
        change(state)
        return lambda: checkpoint.load_optimizer(optimizer, state, "bad.pth")

    return reader


CHANGES = [
    lambda state: state["param_groups"][0].update(lr=None),
    lambda state: state["param_groups"][0].update(lr=float("nan")),
    lambda state: state["param_groups"][0].update(lr="xy"),
    lambda state: state["state"].update({0: 5}),
    lambda state: state["state"].update({0: {}}),
    lambda state: state["state"][1].update(dict.fromkeys(state["state"][1], "x")),
    lambda state: state["state"][1].update(dict.fromkeys(state["state"][1], torch.zeros(2, 2))),
    lambda state: state["state"][0].update({[*state["state"][0]][-1]: torch.tensor(1.0)}),
    lambda state: state["state"][0].update({[*state["state"][0]][-1]: None}),
    lambda state: state["state"][0].pop([*state["state"][0]][-1]),
    lambda state: state.pop("param_groups"),
    lambda state: state.update(param_groups=5),
    lambda state: state.update(param_groups=[torch.ones(2)]),
    lambda state: state["param_groups"][0].update(params=torch.ones(2)),
    lambda state: state["param_groups"][0].update(params=True),
    lambda state: state.update(state=[1]),
    lambda state: state.update(state=torch.ones(2)),
    lambda state: state["state"].update({0: torch.ones(2)}),
]
ROWS = [
    *((name, state_of(name), change, "bad.pth") for name in OPTIMIZERS for change in CHANGES),
    *(
        (
            "sgd: numbers",
            state_of("sgd"),
            lambda s, bad=bad: s["state"][0].update(momentum_buffer=bad),
            "momentum_buffer",
        )
        for bad in (torch.full((2, 3), float("nan")), torch.zeros(2, 3).to(torch.complex64))
    ),
    # A tensor would print a warning about its index.
    ("sgd: group", state_of("sgd"), lambda s: s.update(param_groups=[torch.ones(2)]), "a dict"),
    # The next step would divide by 1 - beta ** 0.
    *(("adamw: step", state_of("adamw"), lambda s, bad=b: s["state"][0].update(step=bad), "step") for b in (-1, -1.0)),
]


@parametrize(ROWS)
def test_bad_optimizer_state_is_refused(reader, bad, facts, check):
    check(reader, bad, facts)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_unchanged_state_is_accepted(name):
    optimizer, state = trained_optimizer(name)
    checkpoint.load_optimizer(optimizer, state, "file")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_settings_of_the_file_are_not_used(name):
    """The entry "factor" would multiply the learning rate."""
    optimizer, state = trained_optimizer(name)
    own = [group | {} for group in optimizer.param_groups]
    changed = dict.fromkeys(own[0].keys() - {"params", "lr"}, torch.ones(2)) | {LR_FACTOR_KEY: 1000.0}
    checkpoint.load_optimizer(optimizer, state | {"param_groups": [state["param_groups"][0] | changed]}, "file")
    assert optimizer.param_groups == own
