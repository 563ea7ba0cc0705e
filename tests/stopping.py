"""Stop a run, resume it, and compare the result with an uninterrupted run."""

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

# Runs with the fixture `flags`: images per step, steps per epoch, queue length.
BATCH, STEPS, QUEUE = 16, 5, 64
FOUR_EPOCHS = ["--epochs", "4", "--targeted", "--sep_t"]  # two of KCL and two of TSC


def log_of(run: Path) -> list[dict]:
    return read_log(run / "log.jsonl")


def send_signal_at_step(monkeypatch, step: int, number: int = signal.SIGUSR1) -> None:
    """Send this process the signal in the given step of its run, counted from 1."""
    count, after_step = iter(range(1, 1000)), Checkpointer.after_step

    def after_step_with_signal(checkpointer):
        if next(count) == step:
            signal.raise_signal(number)
        after_step(checkpointer)

    monkeypatch.setattr(Checkpointer, "after_step", after_step_with_signal)


def run_until_stopped(main: Callable, words: list[str], monkeypatch, step: int, message: str = "SIGUSR1") -> None:
    """Call main(words), stop the run in the given step, and check that it reports the signal."""
    with monkeypatch.context() as patch:
        send_signal_at_step(patch, step)
        with pytest.raises(Stopped, match=message):
            main(words)


def assert_same_checkpoint(run: Path, whole: Path) -> None:
    """Check that two runs end with bit-identical weights and optimiser states, after the same epoch."""
    ours, theirs = (checkpoint.read_checkpoint(folder / checkpoint.LAST) for folder in (run, whole))
    for part in ("state_dict", "optimizer"):
        torch.testing.assert_close(ours[part], theirs[part], rtol=0, atol=0)
    assert log_of(run)[-1]["epoch"] == log_of(whole)[-1]["epoch"]


def assert_resumes_bit_identical(main: Callable, words: list[str], folder: Path, monkeypatch, steps: tuple) -> None:
    """Check that a run stopped in these steps ends like one without stops. Each step counts from the last resume."""
    words = [*words, "--resume", "auto"]
    main([*words, "--run-dir", str(folder / "whole")])
    for step in steps:
        run_until_stopped(main, [*words, "--run-dir", str(folder / "run")], monkeypatch, step)
    main([*words, "--run-dir", str(folder / "run")])
    assert_same_checkpoint(folder / "run", folder / "whole")


def assert_same_features(run: Path, other: Path) -> None:
    """Check that the feature files of two runs are bit-identical."""
    for ours, theirs in zip(read_features(run), read_features(other), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
