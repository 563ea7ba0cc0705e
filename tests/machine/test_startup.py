"""Commands answer --help and a mistyped flag without the libraries that take seconds to import."""

import subprocess
import sys

import pytest

from tests import ROOT

COMMANDS = (
    "main_moco_supcon_imba.py",
    "main_lincls_imba.py",
    "target_generation.py",
    "-m imagenet_inat.splits make SOURCE",
    "-m imagenet_inat.predict CLASSIFIER",
    "-m moco.export RUN OUT",
    "-m utils.report",
    "-m examples.results",
    "-m examples.cross_entropy",
    "-m examples.pixels",
    "-m examples.demo",
    "-m examples.figure1",
    "-m examples.views",
)
SLOW = {"torch", "torchvision", "scipy", "sklearn", "matplotlib"}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("flag", "exit_code", "answer"), [("--help", 0, "usage: "), ("--hepl", 2, "did you mean --help")]
)
def test_help_and_mistyped_flag_need_no_slow_library(command, flag, exit_code, answer):
    words = [sys.executable, "-X", "importtime", *command.split(), flag]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == exit_code and answer in done.stdout + done.stderr
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "argparse" in imported and not imported & SLOW


def test_script_that_another_command_imports_does_not_read_the_command_line(tmp_path):
    """examples.figure1 imports stage 1, which has no --folder."""
    (tmp_path / "file").touch()
    words = [sys.executable, "-m", "examples.figure1", "--folder", str(tmp_path / "file")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and str(tmp_path / "file") in done.stderr
