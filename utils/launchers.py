"""What a launcher says in the environment of the processes it starts: torchrun's variables and Slurm's."""

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
PORTS = 12_000, 20_000  # of Slurm's jobs: the first, and how many; below those that the system gives to clients


class Numbers(NamedTuple):
    """Which of a job's processes this one is; the local ones count those of its machine. From 0."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int


def under_torchrun() -> bool:
    """Whether torchrun has started this process, once for each of the job; also where srun has started torchrun."""
    return "LOCAL_RANK" in os.environ


def under_srun() -> bool:
    """Whether srun has started this process as one of several tasks.

    Not so, though the job has several: the script of sbatch, which has a rank but no step, or one it has inherited, of
    another size, from where it was sent; a shell of salloc, without a rank; and one of `srun --pty`, where people type.
    """
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    of_this_step = "SLURM_PROCID" in os.environ and os.environ.get("SLURM_NTASKS", tasks) == tasks
    typed = "SLURM_PTY_PORT" in os.environ and sys.stdin is not None and sys.stdin.isatty()
    return tasks != "1" and of_this_step and not typed and not under_torchrun()


def is_one_of_many() -> bool:
    """Whether a launcher has started this process, and maybe others of its job."""
    return under_torchrun() or under_srun()


def first_of_job() -> bool:
    """Whether this is the first process of those that a launcher has started, or no launcher has."""
    if under_torchrun():
        return os.environ.get("RANK", "0") == "0"
    return os.environ["SLURM_PROCID"] == "0" if under_srun() else True


def numbers() -> Numbers:
    """This process's, under torchrun or srun.

    Raises:
        InputError: a variable is missing, is no number, or does not go with the others.
    """
    if under_torchrun():
        return _torchruns()
    return _sruns()


def _torchruns() -> Numbers:
    end = "start with torchrun, or unset LOCAL_RANK"
    if missing := [name for name in TORCHRUN if name not in os.environ]:
        raise InputError(f"LOCAL_RANK is set and {', '.join(missing)} not, expected all that torchrun sets; {end}")
    world = _whole("WORLD_SIZE", 1, None, end)
    local = _whole("LOCAL_WORLD_SIZE", 1, world, f"as WORLD_SIZE is {world}; {end}")
    rank = _whole("RANK", 0, world - 1, f"as WORLD_SIZE is {world}; {end}")
    local_rank = _whole("LOCAL_RANK", 0, local - 1, f"as LOCAL_WORLD_SIZE is {local}; {end}")
    _whole("MASTER_PORT", 1, 65535, end)
    return Numbers(rank, world, local_rank, local)


def _sruns() -> Numbers:
    end = "start with srun, or unset SLURM_STEP_NUM_TASKS"
    if missing := [name for name in SRUN if name not in os.environ]:
        raise InputError(
            f"SLURM_STEP_NUM_TASKS is set and {', '.join(missing)} not, expected all that srun sets; {end}"
        )
    world = _whole("SLURM_STEP_NUM_TASKS", 1, None, end)
    rank = _whole("SLURM_PROCID", 0, world - 1, f"as SLURM_STEP_NUM_TASKS is {world}; {end}")
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
    """`8(x2),4` -> 8, 8, 4."""
    parts = [re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part) for part in text.split(",")]
    if not all(parts):
        raise InputError(f"SLURM_STEP_TASKS_PER_NODE={text}: expected numbers as 8(x2),4; {end}")
    return [int(part[1]) for part in parts for _ in range(int(part[2] or 1))]


def slurm_address() -> str:
    """Where the processes of a step meet: tcp://NODE:PORT, on its first node; MASTER_ADDR and MASTER_PORT go before.

    Raises:
        InputError: the node's name has no address here, or MASTER_PORT is no port.
    """
    host = os.environ.get("MASTER_ADDR") or _reachable(first_node(os.environ["SLURM_STEP_NODELIST"]))
    if "MASTER_PORT" in os.environ:
        return f"tcp://{host}:{_whole('MASTER_PORT', 1, 65535, 'or unset it')}"
    # Jobs that share a node have other ports, and so have the steps of one job; a job that is queued again has its own.
    job, step = (_whole(name, 0, None, "as srun sets it") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    return f"tcp://{host}:{PORTS[0] + (97 * job + step) % PORTS[1]}"


def first_node(nodes: str) -> str:
    """Of Slurm's list: `gpu[03-05,09],big1` -> `gpu03`."""
    first = re.match(r"(?:[^\[,]|\[[^\]]*\])*", nodes)[0]
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first)


def _reachable(node: str) -> str:
    """The name of a node if it resolves here, else the address that Slurm has of it."""
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
    raise InputError(f"node {node}: its name has no address here, and scontrol says none; set MASTER_ADDR to one")


def check_tasks(machines: int) -> None:
    """Refuse --multiprocessing-distributed in other than one task of a step for each of --world-size machines.

    Raises:
        InputError: each task would start a whole job.
    """
    tasks = numbers().world_size if under_srun() else machines
    if tasks != machines:
        raise InputError(
            f"--multiprocessing-distributed: srun has started {tasks} tasks, of --world-size {machines} machines; "
            "leave it out, for each task to be one process, or start one task a machine"
        )


def check_port(url: str, flag: str) -> None:
    """Refuse a port of this machine that is taken, which the processes would say in forty lines.

    Raises:
        InputError: it is.
    """
    found = re.fullmatch(r"tcp://.*:(\d+)", url)
    if not found or not 0 < int(found[1]) < 65536:
        return  # the processes say what is wrong with it
    try:
        socket.create_server(("", int(found[1]))).close()
    except OSError as error:
        raise InputError(f"{flag} {url}: port {found[1]} of this machine: {error.strerror}; give another") from None


def cores_of_process(usable: int, processes: int) -> int:
    """A process's part of a machine's cores: of those that it may run on, or under srun of those that its step has.

    Slurm may have bound a task to its own cores: what it may run on is then no longer to be divided.
    """
    if under_srun():
        of_step = os.environ.get("SLURM_CPUS_ON_NODE", "")
        return max(1, min(usable, int(of_step) // processes if of_step.isdecimal() else usable))
    return max(1, usable // processes)
