"""Flags of runs that fit a head."""

import shutil

import pytest


@pytest.fixture(scope="session")
def words(probe_flags, tsc_run, tmp_path_factory) -> list[str]:
    """Return flags of a head on a copy of the TSC run's checkpoint, alone in its folder."""
    folder = tmp_path_factory.mktemp("fitting")
    shutil.copy(tsc_run / "last.pth.tar", folder)
    without_lr = [word for word in probe_flags if word not in ("--lr", "1")]
    at = without_lr.index("--seed")
    return [*without_lr[:at], *without_lr[at + 1 :], "--pretrained", str(folder / "last.pth.tar")]
