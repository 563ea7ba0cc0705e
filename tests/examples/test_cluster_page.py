"""The Slurm script of docs/cluster.md saves before it queues itself again; Slurm is played by four small scripts."""

import os
import re
import signal
import subprocess

from tests import ROOT

PAGE = ROOT / "docs" / "cluster.md"
# As Slurm 22.05 does: SIGTERM to srun kills the step at once, `scancel --signal=TERM` lets it end by itself.
COMMANDS = {
    "srun": 'trap "kill -KILL %1" TERM; "${@:2}" & echo $! > step; wait; wait',
    "scancel": '[ "$*" = "--signal=TERM 7.0" ] && kill -TERM $(cat step)',
    "scontrol": '[ "$1" = show ] && echo first || echo $*',
    "torchrun": 'trap "sleep 0.3; echo saved; exit" TERM; echo started on $FIRST; while sleep 0.05; do :; done',
}


def test_the_job_saves_and_then_queues_itself_again(tmp_path):
    (script,) = re.findall(r"```bash\n(#!/bin/bash\n.*?)```", PAGE.read_text(), re.DOTALL)
    for name, text in COMMANDS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_CPUS_PER_TASK": "64"}
    environment = os.environ | slurm | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    job = subprocess.Popen(["bash", "-c", script], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
    assert job.stdout.readline() == "started on first\n"
    job.send_signal(signal.SIGUSR1)  # as `--signal=B:USR1@120` does, to the script alone
    assert job.communicate(timeout=20)[0] == "saved\nrequeue 7\n"
