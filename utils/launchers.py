"""Read the environment variables that torchrun or Slurm set for the processes they start."""

import os
import re
import socket
import subprocess
import sys
from typing import NamedTuple

from utils.errors import InputError

TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
SRUN = (
    "SLURM_LOCALID",
    "SLURM_NODEID",
    "SLURM_STEP_TASKS_PER_NODE",
    "SLURM_STEP_NODELIST",
    "SLURM_JOB_ID",
    "SLURM_STEP_ID",
)
PORTS = 12_000, 20_000  # first port and number of ports for Slurm jobs, below the system's range of client ports


class Numbers(NamedTuple):
    """Global and local rank of this process, from 0, and the number of processes of the job and of its machine."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int


def under_torchrun() -> bool:
    """Whether torchrun has started this process, possibly itself started by srun."""
    return "LOCAL_RANK" in os.environ


def under_srun() -> bool:
    """Whether srun has started this process as one of several tasks.

    In a job of several tasks, these processes are not such tasks:
    - the sbatch script, which has a rank but no step, or an inherited step of another size;
    - a salloc shell, which has no rank;
    - an interactive shell of `srun --pty`.
    """
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    of_this_step = "SLURM_PROCID" in os.environ and os.environ.get("SLURM_NTASKS", tasks) == tasks
    typed = "SLURM_PTY_PORT" in os.environ and sys.stdin is not None and sys.stdin.isatty()
    return tasks != "1" and of_this_step and not typed and not under_torchrun()


def is_one_of_many() -> bool:
    """Whether a launcher (torchrun or srun) has started this process."""
    return under_torchrun() or under_srun()


def first_of_job() -> bool:
    """Whether this is the first process of the job; always true without a launcher."""
    if under_torchrun():
        return os.environ.get("RANK", "0") == "0"
    return os.environ["SLURM_PROCID"] == "0" if under_srun() else True


def numbers() -> Numbers:
    """Return this process's numbers under torchrun or srun.

    Raises:
        InputError: a variable is missing, is not a number, or contradicts the others.
    """
    if under_torchrun():
        return _torchruns()
    return _sruns()


def _torchruns() -> Numbers:
    end = "start with torchrun, or unset LOCAL_RANK"
    if missing := [name for name in TORCHRUN if name not in os.environ]:
        raise InputError(f"LOCAL_RANK is set but {', '.join(missing)} is not, expected all of torchrun's; {end}")
    world = _whole("WORLD_SIZE", 1, None, end)
    local = _whole("LOCAL_WORLD_SIZE", 1, world, f"because WORLD_SIZE is {world}; {end}")
    rank = _whole("RANK", 0, world - 1, f"because WORLD_SIZE is {world}; {end}")
    local_rank = _whole("LOCAL_RANK", 0, local - 1, f"because LOCAL_WORLD_SIZE is {local}; {end}")
    _whole("MASTER_PORT", 1, 65535, end)
    return Numbers(rank, world, local_rank, local)


def _sruns() -> Numbers:
    end = "start with srun, or unset SLURM_STEP_NUM_TASKS"
    if missing := [name for name in SRUN if name not in os.environ]:
        raise InputError(f"SLURM_STEP_NUM_TASKS is set but {', '.join(missing)} is not, expected all of srun's; {end}")
    world = _whole("SLURM_STEP_NUM_TASKS", 1, None, end)
    rank = _whole("SLURM_PROCID", 0, world - 1, f"because SLURM_STEP_NUM_TASKS is {world}; {end}")
    per_node = _tasks_per_node(os.environ["SLURM_STEP_TASKS_PER_NODE"], end)
    local = per_node[_whole("SLURM_NODEID", 0, len(per_node) - 1, end)]
    return Numbers(rank, world, _whole("SLURM_LOCALID", 0, local - 1, end), local)


def _whole(name: str, least: int, most: int | None, end: str) -> int:
    text = os.environ[name]
    if re.fullmatch("[0-9]+", text) and least <= int(text) <= (int(text) if most is None else most):
        return int(text)
    expected = f"{least} or more" if most is None else f"{least} to {most}"
    raise InputError(f"{name}={text}: expected a whole number, {expected}, {end}")


def _tasks_per_node(text: str, end: str) -> list[int]:
    """Return the number of tasks of each node: `8(x2),4` -> [8, 8, 4]."""
    parts = [re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part) for part in text.split(",")]
    if not all(parts):
        raise InputError(f"SLURM_STEP_TASKS_PER_NODE={text}: expected numbers such as 8(x2),4; {end}")
    return [int(part[1]) for part in parts for _ in range(int(part[2] or 1))]


def slurm_address() -> str:
    """Return the address at which the processes of a step connect, tcp://NODE:PORT on its first node.

    MASTER_ADDR and MASTER_PORT override the node and the port.

    Raises:
        InputError: the node's name does not resolve, or MASTER_PORT is not a port.
    """
    host = os.environ.get("MASTER_ADDR") or _reachable(first_node(os.environ["SLURM_STEP_NODELIST"]))
    if "MASTER_PORT" in os.environ:
        return f"tcp://{host}:{_whole('MASTER_PORT', 1, 65535, 'or unset it')}"
    # Each job and each step gets its own port, because they may share a node.
    job, step = (_whole(name, 0, None, "as set by srun") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    return f"tcp://{host}:{PORTS[0] + (97 * job + step) % PORTS[1]}"


def first_node(nodes: str) -> str:
    """Return the first node of Slurm's node list: `gpu[03-05,09],big1` -> `gpu03`."""
    first = re.match(r"(?:[^\[,]|\[[^\]]*\])*", nodes)[0]
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first)


def _reachable(node: str) -> str:
    """Return the name of a node if it resolves, otherwise its address according to Slurm."""
    try:
        socket.getaddrinfo(node, None)
        return node
    except OSError:
        pass
    try:
        said = subprocess.run(["scontrol", "show", "node", node], capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.TimeoutExpired):
        said = ""
    if found := re.search(r"\bNodeAddr=(\S+)", said):
        return found[1]
    raise InputError(f"node {node}: its name does not resolve, and scontrol reports no address; set MASTER_ADDR")


def check_tasks(machines: int) -> None:
    """Check that with --multiprocessing-distributed srun has started one task for each of --world-size machines.

    Raises:
        InputError: srun has started another number of tasks, each of which would start a whole job.
    """
    tasks = numbers().world_size if under_srun() else machines
    if tasks != machines:
        raise InputError(
            f"--multiprocessing-distributed: srun has started {tasks} tasks, expected --world-size {machines}; "
            "omit the flag (each task is one process), or start one task per machine"
        )


def check_port(url: str, flag: str) -> None:
    """Raise InputError if the URL's port is in use on this machine; the library's own error has forty lines."""
    found = re.fullmatch(r"tcp://.*:(\d+)", url)
    if not found or not 0 < int(found[1]) < 65536:
        return  # the process group reports a bad URL
    try:
        socket.create_server(("", int(found[1]))).close()
    except OSError as error:
        raise InputError(f"{flag} {url}: port {found[1]} of this machine: {error.strerror}; choose another") from None


def cores_of_process(usable: int, processes: int) -> int:
    """Return a process's share of the `usable` cores; under srun, of the cores of its step, at most `usable`.

    Slurm may have bound each task to its own cores, which must not be divided again.
    """
    if under_srun():
        of_step = os.environ.get("SLURM_CPUS_ON_NODE", "")
        return max(1, min(usable, int(of_step) // processes if of_step.isdecimal() else usable))
    return max(1, usable // processes)
