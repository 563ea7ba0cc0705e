"""Stopping a run in the middle, and comparing what it becomes with a run that nothing disturbed."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from utils.errors import Stopped
from utils.measure.feature_file import read_features
from utils.run import checkpoint
from utils.run.checkpointer import Checkpointer
from utils.run.logger import read_log

# Runs with the fixture `flags`: images a step, steps an epoch, queue length.
BATCH, STEPS, QUEUE = 16, 5, 64
FOUR_EPOCHS = ["--epochs", "4", "--targeted", "--sep_t"]  # two of KCL and two of TSC


def log_of(run: Path) -> list[dict]:
    return read_log(run / "log.jsonl")


def stop_at(monkeypatch, step: int, number: int = signal.SIGUSR1) -> None:
    """This process gets the signal while it is in that step of its run (from 1)."""
    count, after_step = iter(range(1, 1000)), Checkpointer.after_step

    def signalled(checkpointer):
        if next(count) == step:
            signal.raise_signal(number)
        after_step(checkpointer)

    monkeypatch.setattr(Checkpointer, "after_step", signalled)


def stopped_run(main: Callable, words: list[str], monkeypatch, step: int, message: str = "SIGUSR1") -> None:
    """Call main(words), a run that is stopped in that step and saves itself."""
    with monkeypatch.context() as patch:
        stop_at(patch, step)
        with pytest.raises(Stopped, match=message):
            main(words)


def assert_same_end(run: Path, whole: Path) -> None:
    """Weights, optimiser and the last epoch of two runs are equal, to the bit."""
    ours, theirs = (checkpoint.load(folder / checkpoint.LAST) for folder in (run, whole))
    for part in ("state_dict", "optimizer"):
        torch.testing.assert_close(ours[part], theirs[part], rtol=0, atol=0)
    assert log_of(run)[-1]["epoch"] == log_of(whole)[-1]["epoch"]


def assert_stops_change_nothing(main: Callable, words: list[str], folder: Path, monkeypatch, steps: tuple) -> None:
    """A run in folder/run, stopped in these steps (each counted from where it went on), ends as one in folder/whole."""
    words = [*words, "--resume", "auto"]
    main([*words, "--run-dir", str(folder / "whole")])
    for step in steps:
        stopped_run(main, [*words, "--run-dir", str(folder / "run")], monkeypatch, step)
    main([*words, "--run-dir", str(folder / "run")])
    assert_same_end(folder / "run", folder / "whole")


def assert_same_features(run: Path, other: Path) -> None:
    """The files of two runs hold the same numbers, to the bit."""
    for ours, theirs in zip(read_features(run), read_features(other), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
