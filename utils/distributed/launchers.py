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


class Ranks(NamedTuple):
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

    False for processes of a job of several tasks that srun did not start as a task:
    - the sbatch script, which has a rank but no step, or an inherited step of another size;
    - a salloc shell, which has no rank;
    - an interactive shell of `srun --pty`.
    """
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    of_this_step = "SLURM_PROCID" in os.environ and os.environ.get("SLURM_NTASKS", tasks) == tasks
    interactive = "SLURM_PTY_PORT" in os.environ and sys.stdin is not None and sys.stdin.isatty()
    return tasks != "1" and of_this_step and not interactive and not under_torchrun()


def under_launcher() -> bool:
    """Whether a launcher (torchrun or srun) has started this process."""
    return under_torchrun() or under_srun()


def first_of_job() -> bool:
    """Whether this is the first process of the job; always true without a launcher."""
    if under_torchrun():
        return os.environ.get("RANK", "0") == "0"
    return os.environ["SLURM_PROCID"] == "0" if under_srun() else True


def job_ranks() -> Ranks:
    """Return this process's ranks under torchrun or srun.

    Raises:
        InputError: a variable is missing, is not a number, or contradicts the others.
    """
    if under_torchrun():
        return _torchrun_ranks()
    return _srun_ranks()


def _torchrun_ranks() -> Ranks:
    advice = "start with torchrun, or unset LOCAL_RANK"
    if missing := [name for name in TORCHRUN if name not in os.environ]:
        raise InputError(f"LOCAL_RANK is set but {', '.join(missing)} is not, expected all of torchrun's; {advice}")
    world = _integer_variable("WORLD_SIZE", 1, None, advice)
    local = _integer_variable("LOCAL_WORLD_SIZE", 1, world, f"because WORLD_SIZE is {world}; {advice}")
    rank = _integer_variable("RANK", 0, world - 1, f"because WORLD_SIZE is {world}; {advice}")
    local_rank = _integer_variable("LOCAL_RANK", 0, local - 1, f"because LOCAL_WORLD_SIZE is {local}; {advice}")
    _integer_variable("MASTER_PORT", 1, 65535, advice)
    return Ranks(rank, world, local_rank, local)


def _srun_ranks() -> Ranks:
    advice = "start with srun, or unset SLURM_STEP_NUM_TASKS"
    if missing := [name for name in SRUN if name not in os.environ]:
        raise InputError(
            f"SLURM_STEP_NUM_TASKS is set but {', '.join(missing)} is not, expected all of srun's; {advice}"
        )
    world = _integer_variable("SLURM_STEP_NUM_TASKS", 1, None, advice)
    rank = _integer_variable("SLURM_PROCID", 0, world - 1, f"because SLURM_STEP_NUM_TASKS is {world}; {advice}")
    per_node = _tasks_per_node(os.environ["SLURM_STEP_TASKS_PER_NODE"], advice)
    local = per_node[_integer_variable("SLURM_NODEID", 0, len(per_node) - 1, advice)]
    return Ranks(rank, world, _integer_variable("SLURM_LOCALID", 0, local - 1, advice), local)


def _integer_variable(name: str, least: int, most: int | None, advice: str) -> int:
    text = os.environ[name]
    if re.fullmatch("[0-9]+", text) and least <= int(text) <= (int(text) if most is None else most):
        return int(text)
    expected = f"{least} or more" if most is None else f"{least} to {most}"
    raise InputError(f"{name}={text}: expected a whole number, {expected}, {advice}")


def _tasks_per_node(text: str, advice: str) -> list[int]:
    """Return the number of tasks of each node: `8(x2),4` -> [8, 8, 4]."""
    matches = [re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", match) for match in text.split(",")]
    if not all(matches):
        raise InputError(f"SLURM_STEP_TASKS_PER_NODE={text}: expected numbers such as 8(x2),4; {advice}")
    return [int(match[1]) for match in matches for _ in range(int(match[2] or 1))]


def slurm_address() -> str:
    """Return the address at which the processes of a step connect, tcp://NODE:PORT on its first node.

    MASTER_ADDR and MASTER_PORT override the node and the port.

    Raises:
        InputError: the node's name does not resolve, or MASTER_PORT is not a port.
    """
    host = os.environ.get("MASTER_ADDR") or _resolvable_address(first_node(os.environ["SLURM_STEP_NODELIST"]))
    if "MASTER_PORT" in os.environ:
        return f"tcp://{host}:{_integer_variable('MASTER_PORT', 1, 65535, 'or unset it')}"
    # Each job and each step gets its own port, because they may share a node.
    job, step = (_integer_variable(name, 0, None, "as set by srun") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    return f"tcp://{host}:{PORTS[0] + (97 * job + step) % PORTS[1]}"


def first_node(nodes: str) -> str:
    """Return the first node of Slurm's node list: `gpu[03-05,09],big1` -> `gpu03`."""
    first = re.match(r"(?:[^\[,]|\[[^\]]*\])*", nodes)[0]
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first)


def _resolvable_address(node: str) -> str:
    """Return the name of a node if it resolves, otherwise its address according to Slurm."""
    try:
        socket.getaddrinfo(node, None)
        return node
    except OSError:
        pass
    try:
        printed = subprocess.run(["scontrol", "show", "node", node], capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.TimeoutExpired):
        printed = ""
    if match := re.search(r"\bNodeAddr=(\S+)", printed):
        return match[1]
    raise InputError(f"node {node}: its name does not resolve, and scontrol reports no address; set MASTER_ADDR")


def check_tasks(machines: int) -> None:
    """Check that with --multiprocessing-distributed srun has started one task for each of --world-size machines.

    Raises:
        InputError: srun has started another number of tasks, each of which would start a whole job.
    """
    tasks = job_ranks().world_size if under_srun() else machines
    if tasks != machines:
        raise InputError(
            f"--multiprocessing-distributed: srun has started {tasks} tasks, expected --world-size {machines}; "
            "omit the flag (each task is one process), or start one task per machine"
        )


def check_port(url: str, flag: str) -> None:
    """Raise InputError if the URL's port is in use on this machine; the library's own error has forty lines."""
    match = re.fullmatch(r"tcp://.*:(\d+)", url)
    if not match or not 0 < int(match[1]) < 65536:
        return  # the process group reports a bad URL
    try:
        socket.create_server(("", int(match[1]))).close()
    except OSError as error:
        raise InputError(f"{flag} {url}: port {match[1]} of this machine: {error.strerror}; choose another") from None


def cores_of_process(usable: int, processes: int) -> int:
    """Return the number of cores of one of a machine's processes: an equal share of the `usable` cores.

    Under srun it is an equal share of the step's cores, but at most `usable`, because Slurm may have bound each task to
    its own cores. These must not be divided again.
    """
    if under_srun():
        step_cores = os.environ.get("SLURM_CPUS_ON_NODE", "")
        return max(1, min(usable, int(step_cores) // processes if step_cores.isdecimal() else usable))
    return max(1, usable // processes)
