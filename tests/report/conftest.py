"""A run folder with everything that a report shows."""

import shutil
from pathlib import Path

import pytest

import main_moco_supcon_imba as stage1


@pytest.fixture(scope="session")
def reported_run(tsc_run, probe_run, flags, tmp_path_factory) -> Path:
    """Copy `tsc_run` and its probe, and resume the finished run with --monitor-freq, which writes its features."""
    run = tmp_path_factory.mktemp("reported") / "run"
    shutil.copytree(tsc_run, run)
    tsc, resume = ["--targeted", "--sep_t", "--tw", "0.2"], ["--resume", "auto", "--monitor-freq", "1"]
    stage1.main([*flags, *tsc, *resume, "--epochs", "2", "--run-dir", str(run)])
    return run
