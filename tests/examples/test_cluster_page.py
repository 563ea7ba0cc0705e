"""The Slurm scripts of docs/cluster.md queue themselves again when they should; Slurm is played by a few small scripts.

`make test-cluster` runs them under a real one.
"""

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from tests import ROOT

FOUND = re.findall(r"```bash\n(#!/bin/bash\n.*?)```", (ROOT / "docs" / "cluster.md").read_text(), re.DOTALL)
TORCHRUN, ARRAY, DIRECT = "torchrun", "--array", "srun alone"
SCRIPTS = {next((word for word in (TORCHRUN, ARRAY) if word in script), DIRECT): script for script in FOUND}
SLURM = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_CPUS_PER_TASK": "64"}
SLURM |= {"SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "2"}
# As Slurm 22.05 does: SIGTERM to srun kills the step at once, `scancel --signal=TERM` lets it end by itself.
COMMANDS = {
    "srun": 'trap "kill -KILL %1" TERM; "${@:2}" & echo $! > step; wait; wait',
    "scancel": '[ "$*" = "--signal=TERM 7.0" ] && kill -TERM $(cat step)',
    "scontrol": '[ "$1" = show ] && echo first || echo $*',
    "torchrun": 'trap "sleep 0.3; echo saved; exit" TERM; echo started on $FIRST; while sleep 0.05; do :; done',
}


def start(script: str, commands: dict[str, str], folder: Path, more: dict[str, str]) -> subprocess.Popen:
    """A script of the page, with these commands before all others."""
    for name, text in commands.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    environment = os.environ | SLURM | {"PATH": f"{folder}:{os.environ['PATH']}"} | more
    command = ["bash", "-c", SCRIPTS[script]]
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)


def test_the_job_with_torchrun_saves_and_then_queues_itself_again(tmp_path):
    job = start(TORCHRUN, COMMANDS, tmp_path, {})
    assert job.stdout.readline() == "started on first\n"
    job.send_signal(signal.SIGUSR1)  # as `--signal=B:USR1@120` does, to the script alone
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
def test_a_job_queues_itself_again_by_its_exit_code(script, code, restarts, output, tmp_path):
    commands = {"srun": f"exit {code}", "scontrol": "echo $*"}
    job = start(script, commands, tmp_path, {"SLURM_RESTART_COUNT": restarts})
    assert job.communicate(timeout=20)[0] == output
    assert job.returncode == code
