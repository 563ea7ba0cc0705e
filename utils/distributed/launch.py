"""Start the processes of a run, assign devices and cores to them, and join them into a process group."""

import logging
import math
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from typing import NamedTuple

import torch
import torch.multiprocessing as mp

from utils import errors
from utils.configs import FromArgs
from utils.devices import check_device, check_gpus, resolve_device, usable_cores
from utils.distributed import launchers, log, rendezvous
from utils.distributed.launchers import under_srun, under_torchrun
from utils.errors import InputError
from utils.openmp import SpinGuard

GRACE_SECONDS = 20
FORWARD_SECONDS = 2  # to wait for the process that started this one to confirm that the job received a signal
MAX_WORKERS = 32  # default of the authors' code (the code released by the TSC authors)
PROCESSES_WITHOUT_GPU = 2  # of --multiprocessing-distributed on a machine without a GPU


@dataclass(frozen=True)
class LaunchConfig(FromArgs):
    """The flags that decide how many processes run, where, and how they connect; see --help."""

    device: str
    gpu: int | None
    workers: int | None
    multiprocessing_distributed: bool
    world_size: int
    rank: int
    dist_url: str
    dist_backend: str | None
    dist_timeout: int


class ProcessInfo(NamedTuple):
    """The device of a process, and its share of the machine's loader processes."""

    device: torch.device
    workers: int


def launch(worker: Callable, plan, config: LaunchConfig, shared: dict[str, object]) -> None:
    """Run worker(plan, process) in this process, in each process of torchrun or srun, or in one new process per GPU.

    `--multiprocessing-distributed` starts the processes as the authors' code does: --world-size is the number of
    machines, --rank the index of this machine, --dist-url the address of machine 0.

    Args:
        plan: what the worker needs; it must be picklable. shared: arguments that must be equal in all processes.
    """
    if _launcher_started_all(config):
        _run_launched_process(worker, plan, config, shared)
    elif config.multiprocessing_distributed:
        _spawn(worker, plan, config, shared, torch.cuda.device_count() or PROCESSES_WITHOUT_GPU)
    else:
        process = _process_info(config, 0, processes=1)
        with SpinGuard():
            worker(plan, process)


def _launcher_started_all(config) -> bool:
    """Whether a launcher has started every process of the job.

    With --multiprocessing-distributed, an srun task itself starts the processes of its machine.
    """
    return under_torchrun() or (under_srun() and not config.multiprocessing_distributed)


def _run_launched_process(worker: Callable, plan, config: LaunchConfig, shared: dict) -> None:
    ranks = launchers.job_ranks()
    process, prints_errors = _process_info(config, ranks.local_rank, ranks.local_world_size), ranks.local_rank == 0
    join_method = rendezvous.by_torchrun() if under_torchrun() else rendezvous.by_srun(ranks)
    with rendezvous.group(process.device, config.dist_backend, join_method, config.dist_timeout, prints_errors):
        rendezvous.check_same(shared, process.device, prints_errors)
        with SpinGuard():
            worker(plan, process)


def _run_spawned_process(
    local_rank: int, worker: Callable, plan, config: LaunchConfig, shared: dict, per_node: int, forwarded
) -> None:
    process = _process_info(config, local_rank, per_node)
    nodes, node = max(config.world_size, 1), max(config.rank, 0)
    join_method = rendezvous.by_url(config.dist_url, nodes * per_node, node * per_node + local_rank, several=nodes > 1)

    def join_and_run() -> None:
        try:
            with rendezvous.group(process.device, config.dist_backend, join_method, config.dist_timeout):
                rendezvous.check_same(shared, process.device, prints_errors=local_rank == 0)
                with SpinGuard():
                    worker(plan, process)
        except KeyboardInterrupt as error:
            # PyTorch ends this process by SIGTERM if another one has failed, and that one has printed the reason. A
            # signal to the whole job may arrive here earlier than in the process that forwards it.
            if errors.interrupting_signal(error) is signal.SIGTERM and not forwarded.wait(FORWARD_SECONDS):
                sys.exit(1)
            raise

    # Each spawned process prints its own errors. All receive a signal, but only the first one prints a line about it.
    errors.run(join_and_run, errors.UNSAVED if local_rank == 0 else "")


def _spawn(worker: Callable, plan, config: LaunchConfig, shared: dict, processes: int) -> None:
    """Start processes for worker(plan, process), forward signals to them, and exit with their exit code."""
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)  # it warns of each process that it ends
    forwarded = mp.get_context("spawn").Event()
    inputs = (worker, plan, config, shared, processes, forwarded)
    context = mp.spawn(_run_spawned_process, inputs, nprocs=processes, join=False)

    def forward(number: int, _frame) -> None:
        forwarded.set()
        for process in context.processes:
            if process.is_alive():
                os.kill(process.pid, number)

    old_handlers = {number: signal.signal(number, forward) for number in errors.EXIT_CODES}
    # If one process fails, the others are ended; one that hangs, waiting for the failed process, is killed.
    grace = {"grace_period": GRACE_SECONDS} if "grace_period" in signature(context.join).parameters else {}
    try:
        while not context.join(**grace):
            pass
    except mp.ProcessRaisedException as error:
        if any(process.exitcode == 2 for process in context.processes):
            sys.exit(2)  # one process has printed the user's mistake; the others failed because it exited
        raise errors.job_error(error) from None
    except mp.ProcessExitedException as error:
        if error.exit_code > 0:
            sys.exit(error.exit_code)  # the process has printed the reason
        name = signal.Signals(-error.exit_code).name
        print(f"error: process {error.error_index} was killed by {name}; resume with --resume auto", file=sys.stderr)
        sys.exit(errors.EXIT_CODES.get(-error.exit_code, 128 - error.exit_code))
    finally:
        for number, handler in old_handlers.items():
            signal.signal(number, handler)


def _process_info(config, local_rank: int, processes: int) -> ProcessInfo:
    """Return the device and workers of one of a machine's processes, and make its GPU the current device."""
    device = _device(config, local_rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return ProcessInfo(device, _share_cores(device, config.workers, processes))


def _device(config, local_rank: int) -> torch.device:
    if config.gpu is not None:
        return torch.device("cuda", config.gpu)
    device = resolve_device(config.device)
    if device != torch.device("cuda"):
        return device
    # A launcher may show each process only its own GPU, as Slurm's --gpus-per-task does.
    return torch.device("cuda", 0 if torch.cuda.device_count() == 1 else local_rank)


def _share_cores(device: torch.device, workers: int | None, processes: int) -> int:
    """Set this process's number of threads, and return its number of loader workers.

    Without a GPU, workers and training compete for the cores, and a thread that spins while a worker uses its core
    slows both down. Each core therefore gets either a training thread or a worker.
    """
    cores = launchers.cores_of_process(usable_cores(), processes)
    on_cpu = device.type == "cpu"
    default = cores // 2 if on_cpu else min(cores, MAX_WORKERS)
    own_workers = default if workers is None else math.ceil(workers / processes)
    if own_workers > cores:
        log(f"note: -j {workers}: {own_workers} loading processes on {cores} cores; fewer are usually faster")
    if "OMP_NUM_THREADS" not in os.environ:  # torchrun sets it
        torch.set_num_threads(max(1, cores - own_workers) if on_cpu else cores)
    return own_workers


def check(config: LaunchConfig, batch_size: int = 0) -> int:
    """Check the flags of processes and devices, and return the total number of processes.

    Args:
        batch_size: --batch-size, or 0 if nothing is trained.

    Raises:
        InputError: --rank or --world-size is wrong, the port is in use, or the batch does not divide evenly over the
            processes; see also `expected_world_size` and `check_device`.
    """
    device = f"cuda:{config.gpu}" if config.gpu is not None else config.device
    check_device(device, world=1)
    if not _launcher_started_all(config):  # otherwise the launcher numbers the machines
        nodes = max(config.world_size, 1)
        if not config.multiprocessing_distributed and (config.world_size > 1 or config.rank > 0):
            raise InputError("--world-size and --rank count machines; add --multiprocessing-distributed")
        if config.rank >= nodes:
            raise InputError(f"--rank {config.rank}: expected 0 to {nodes - 1} for --world-size {nodes}")
        if config.multiprocessing_distributed:
            launchers.check_tasks(nodes)
            if config.rank <= 0:
                launchers.check_port(config.dist_url, "--dist-url")
    world = expected_world_size(config)
    if batch_size % world:
        raise InputError(f"--batch-size {batch_size}: does not divide over {world} processes; use a multiple")
    check_device(device, world)
    return world


def expected_world_size(config: LaunchConfig) -> int:
    """Return the number of processes that `launch` will start or join.

    Raises:
        InputError: the launcher's variables are incomplete or wrong, or it started more processes than GPUs exist.
    """
    if _launcher_started_all(config):
        ranks = launchers.job_ranks()
        check_gpus(resolve_device(config.device), ranks.local_world_size)
        return ranks.world_size
    if config.multiprocessing_distributed:
        return max(config.world_size, 1) * (torch.cuda.device_count() or PROCESSES_WITHOUT_GPU)
    return 1
