"""The fault tests of tests/faults.py in small: `python -m tests.faults --kills 20` is the long form."""

from tests import faults, fuzz


def test_killed_runs_lose_nothing(capsys):
    assert faults.kills(3, processes=1, seed=1)
    assert "3 kills, 0 lost, equal: True" in capsys.readouterr().out


def test_damaged_files_train_or_are_refused(capsys):
    assert fuzz.fuzz(splits=40, checkpoints=16, seed=1)
    out = capsys.readouterr().out
    assert "40 damaged split lists" in out and "16 damaged checkpoints" in out
