"""A Slurm of two nodes with one core each, run on this machine and in one folder by a context manager."""

import getpass
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import ROOT
from tests.processes import free_port

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel")
NEEDED = "needs Slurm, but cannot find {}. On Debian or Ubuntu, run as root: apt-get install -y slurm-wlm munge"
NODES = ("n1", "n2")
WAIT = 5  # seconds until a step's credential expires; a requeued job waits this long. Slurm's default is 120
CONFIGURATION = """
ClusterName=two
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire={wait}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SlurmdTimeout=15
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2,bf_interval=2
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1
PartitionName=all Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""


def wait_for(what: str, condition: Callable[[], object], seconds: float, details: Callable[[], str] = str) -> None:
    """Wait until condition() is true. After a timeout, fail with the text `what` and details()."""
    ends = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > ends:
            pytest.fail(f"after {seconds:.0f} seconds still not: {what}\n{details()}")
        time.sleep(0.2)


class TwoNodes:
    """A Slurm whose two nodes are both 127.0.0.1. As in some clusters, the names of the nodes do not resolve.

    Args:
        folder: for all files of this Slurm.
    """

    def __init__(self, folder: Path):
        # Daemons may be in folders that are not in a user's PATH.
        self.path = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin", "/usr/local/sbin"])
        missing = [name for name in PROGRAMS if not shutil.which(name, path=self.path)]
        assert not missing, NEEDED.format(", ".join(missing))
        self.folder, self.running = folder, {}
        self.environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": self.path}
        for name in [name for name in self.environment if name.startswith("SLURM_") and name != "SLURM_CONF"]:
            del self.environment[name]  # set by a cluster that runs these tests

    def __enter__(self) -> "TwoNodes":
        for name in ("munge", "state", *NODES):
            (self.folder / name).mkdir(mode=0o700, parents=True)
        key, options = self.folder / "munge" / "key", {"ports": [free_port() for _ in range(3)], "wait": WAIT}
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o400)
        options |= {"host": socket.gethostname().split(".")[0], "user": getpass.getuser(), "folder": self.folder}
        (self.folder / "slurm.conf").write_text(CONFIGURATION.format(**options))
        files = {"socket": "socket", "key-file": "key", "pid-file": "pid", "seed-file": "seed", "log-file": "log"}
        munge_flags = [f"--{flag}={self.folder / 'munge' / name}" for flag, name in files.items()]
        try:
            self.start("munged", "--foreground", "--force", *munge_flags)
            wait_for("munged answers", (self.folder / "munge" / "socket").exists, 30, self.logs)
            self.start("slurmctld", "-D")
            for node in NODES:
                self.start_node(node)
            wait_for("both nodes are idle", lambda: self.run("sinfo", "-h", "-o", "%D %t") == "2 idle", 60, self.logs)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_) -> None:
        for process in self.running.values():
            process.kill()  # they have nothing to save
            process.wait()
        self.kill(self.processes())

    def start(self, program: str, *flags: str, name: str = "") -> None:
        name = name or program
        command = [shutil.which(program, path=self.path), *flags]
        with (self.folder / f"{name}.log").open("ab") as log:
            options = {"stdout": log, "stderr": log, "env": self.environment, "cwd": self.folder}
            self.running[name] = subprocess.Popen(command, stdin=subprocess.DEVNULL, **options)

    def start_node(self, node: str) -> None:
        self.start("slurmd", "-D", "-N", node, name=node)

    def kill_node(self, node: str) -> None:
        """Kill a node's daemon and all steps that it started, by SIGKILL, so that nothing can report the end."""
        self.running[node].kill()
        self.running.pop(node).wait()
        self.kill(self.processes(f"SLURMD_NODENAME={node}"))

    def kill(self, tasks: list[int]) -> None:
        """Kill processes of jobs and the Slurm processes that supervise them."""
        parents = {parent_of(pid) for pid in tasks}
        for pid in {*tasks, *(pid for pid in parents if "slurmstepd" in read(f"/proc/{pid}/cmdline"))}:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue

    def processes(self, *variables: str) -> list[int]:
        """Return the processes of this Slurm's jobs that also have these variables in their environment."""
        found = [entry.name for entry in Path("/proc").glob("[0-9]*")]
        environments = {int(pid): {*read(f"/proc/{pid}/environ").split("\0")} for pid in found}
        required = {f"SLURM_CONF={self.folder / 'slurm.conf'}", *variables}
        return [pid for pid, words in environments.items() if required <= words and "SLURM_CLUSTER_NAME=two" in words]

    def run(self, *command: str) -> str:
        """Run a command of Slurm and return its output."""
        done = subprocess.run(command, env=self.environment, cwd=ROOT, capture_output=True, text=True, timeout=120)
        return (done.stdout + done.stderr).strip()

    def job_field(self, job: str, word: str) -> str:
        """Return a field of Slurm's record of a job: JobState, Restarts, ..."""
        fields = dict(field.split("=", 1) for field in self.run("scontrol", "show", "job", job).split() if "=" in field)
        return fields.get(word, "")

    def logs(self) -> str:
        return "\n".join(f"{log}:\n{log.read_text()[-2000:]}" for log in self.folder.glob("*.log"))


def read(file: str) -> str:
    try:
        return Path(file).read_text(errors="replace")
    except OSError:  # the process is gone, or another user's
        return ""


def parent_of(pid: int) -> int:
    stat = read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return int(stat[1]) if stat else 0
