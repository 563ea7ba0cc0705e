"""The Slurm scripts of docs/cluster.md requeue themselves when they should. A few small scripts imitate Slurm.

`make test-cluster` runs them under a real Slurm.
"""

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from tests import ROOT

PAGE_SCRIPTS = re.findall(r"```bash\n(#!/bin/bash\n.*?)```", (ROOT / "docs" / "cluster.md").read_text(), re.DOTALL)
TORCHRUN, ARRAY, DIRECT = "torchrun", "--array", "srun alone"
SCRIPTS = {next((word for word in (TORCHRUN, ARRAY) if word in script), DIRECT): script for script in PAGE_SCRIPTS}
SLURM = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_CPUS_PER_TASK": "64"}
SLURM |= {"SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "2"}
# As in Slurm 22.05, SIGTERM to srun kills the step at once, and `scancel --signal=TERM` lets it end by itself.
COMMANDS = {
    "srun": 'trap "kill -KILL %1" TERM; "${@:2}" & echo $! > step; wait; wait',
    "scancel": '[ "$*" = "--signal=TERM 7.0" ] && kill -TERM $(cat step)',
    "scontrol": '[ "$1" = show ] && echo first || echo $*',
    "torchrun": 'trap "sleep 0.3; echo saved; exit" TERM; echo started on $FIRST; while sleep 0.05; do :; done',
}


def start(script: str, commands: dict[str, str], folder: Path, more: dict[str, str]) -> subprocess.Popen:
    """Start a script of the page, with these commands first in PATH."""
    for name, text in commands.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    environment = os.environ | SLURM | {"PATH": f"{folder}:{os.environ['PATH']}"} | more
    command = ["bash", "-c", SCRIPTS[script]]
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)


def test_torchrun_job_saves_and_then_requeues_itself(tmp_path):
    job = start(TORCHRUN, COMMANDS, tmp_path, {})
    assert job.stdout.readline() == "started on first\n"
    job.send_signal(signal.SIGUSR1)  # `--signal=B:USR1@120` signals only the script
    assert job.communicate(timeout=20)[0] == "saved\nrequeue 7\n"


@pytest.mark.parametrize(
    ("script", "code", "restarts", "output"),
    [
        (DIRECT, 143, "200", "requeue 7\n"),
        (DIRECT, 0, "0", ""),
        (DIRECT, 2, "0", ""),
        (DIRECT, 1, "9", "requeue 7\n"),
        (DIRECT, 137, "", "requeue 7\n"),
        (DIRECT, 1, "10", ""),
        (ARRAY, 143, "200", "requeue 5_2\n"),
        (ARRAY, 1, "0", ""),
        (ARRAY, 0, "0", ""),
    ],
)
def test_job_requeues_itself_depending_on_exit_code(script, code, restarts, output, tmp_path):
    commands = {"srun": f"exit {code}", "scontrol": "echo $*"}
    job = start(script, commands, tmp_path, {"SLURM_RESTART_COUNT": restarts})
    assert job.communicate(timeout=20)[0] == output
    assert job.returncode == code
