"""Join the processes of a job into a process group, and end each process if another one is lost."""

import hashlib
import os
import platform
import re
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from multiprocessing.util import Finalize
from typing import NamedTuple
from urllib.parse import urlparse

import numpy as np
import torch
import torch.distributed as dist
import torchvision

from utils import distributed
from utils.distributed import launchers
from utils.distributed.interfaces import set_interface
from utils.errors import CannotConnect, InputError, PeerLost, first_line, short_repr

# The prefix of gloo's errors: file and line in its source. The text after it differs between versions. An error with
# another prefix, "[enforce fail at ...]", is a bug of this project.
GLOO_ERROR = re.compile(r"^\[\S*gloo/\S*:\d+\] ")

# Groups that this process has left, kept until it exits. PyTorch 2.4 joins a group's threads while it holds Python's
# lock when the last reference goes, and never returns if one of the threads needs the lock to free its last tensor.
_left_groups: list[dist.ProcessGroup] = []


class JoinMethod(NamedTuple):
    """A method of joining the processes.

    Attributes:
        where: the address, for messages.
        several: whether there is more than one machine.
        init_arguments: maps the time that processes wait for each other to the arguments of `init_process_group`.
    """

    where: str
    several: bool
    init_arguments: Callable[[timedelta], dict]


@contextmanager
def group(
    device: torch.device, backend: str | None, join_method: JoinMethod, timeout: float, prints_errors: bool = True
) -> Iterator[None]:
    """Join the process group of the job, and leave it when all processes have finished the block.

    Args:
        backend: --dist-backend; None: nccl for GPUs, gloo for CPUs.
        timeout: seconds to wait for the other processes, now and in all later collective operations.
        prints_errors: whether this process prints the error for all processes of its machine.

    Raises:
        CannotConnect: the processes cannot form a group.
        InputError: two processes have the same GPU.
        PeerLost: another process exited within the block, or did not respond for `timeout` seconds.
    """
    on_gpu = device.type == "cuda"
    backend = backend or ("nccl" if on_gpu else "gloo")
    if backend == "nccl":
        backend = "cpu:gloo,cuda:nccl"  # CPU tensors use gloo, which does not wait for the GPUs
    patience = timedelta(seconds=timeout)
    try:
        with _default_sigterm():
            dist.init_process_group(backend, timeout=patience, **join_method.init_arguments(patience))
        if on_gpu and "nccl" in backend:
            check_one_gpu_each(device)
    except (RuntimeError, ValueError) as error:
        advice = "; set GLOO_SOCKET_IFNAME=NAME on each machine to the network interface that reaches the others"
        line = f"the processes cannot connect at {join_method.where} over {backend}: {first_line(error)}"
        raise CannotConnect(line + advice * join_method.several) from None
    lost = False
    try:
        yield
        distributed.barrier()  # no process leaves while another still writes or prints
    except RuntimeError as error:
        lost = isinstance(error, dist.DistError) or GLOO_ERROR.match(str(error))
        if not lost:
            raise
        Finalize(None, _exit_immediately, exitpriority=-1)
        raise PeerLost(_lost_peer_message(error, timeout) if prints_errors else "") from None
    finally:
        if not lost:
            _left_groups.append(dist.group.WORLD)
            dist.destroy_process_group()


@contextmanager
def _default_sigterm() -> Iterator[None]:
    """Let SIGTERM end the process at once. A handler in Python would only run when all processes have joined."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)


def _lost_peer_message(error: RuntimeError, timeout: float) -> str:
    """Return the one-line message of a process that has lost another one."""
    why = GLOO_ERROR.sub("", first_line(error)).partition(". ")[0]  # without the advice that PyTorch appends
    return (
        f"process {distributed.rank()} of {distributed.world_size()} has lost another one ({why}), which exited, did "
        f"not respond for --dist-timeout {timeout:g} seconds, or is unreachable; resume from the last checkpoint with "
        "--resume auto"
    )


def _exit_immediately() -> None:
    """Exit immediately, because exit handlers of libraries may wait for the lost process."""
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(1)


def by_url(url: str, world_size: int, rank: int, several: bool) -> JoinMethod:
    """Join at a URL (--dist-url) on the first machine, as in the authors' code (released by the TSC authors)."""

    def init_arguments(_: timedelta) -> dict:
        if several:
            set_interface(urlparse(url).hostname)
        return {"init_method": url, "world_size": world_size, "rank": rank}

    return JoinMethod(url, several, init_arguments)


def by_srun(ranks: launchers.Ranks) -> JoinMethod:
    """Join under srun: the first process listens on the step's first node. Raise InputError if the port is in use."""
    where = launchers.slurm_address()
    if ranks.rank == 0:
        launchers.check_port(where, "MASTER_PORT")
    several = ranks.local_world_size < ranks.world_size
    return by_url(where, ranks.world_size, ranks.rank, several)


def by_torchrun() -> JoinMethod:
    """Join under torchrun, with a separate part of its store for each (re)start of the processes."""
    several = os.environ["LOCAL_WORLD_SIZE"] != os.environ["WORLD_SIZE"]

    def init_arguments(patience: timedelta) -> dict:
        if several:
            set_interface(os.environ["MASTER_ADDR"])
        store, rank, world = next(dist.rendezvous("env://", timeout=patience))
        return {"store": fresh_store(store, rank, world, patience), "rank": rank, "world_size": world}

    return JoinMethod("env://", several, init_arguments)


def fresh_store(store: dist.Store, rank: int, world: int, patience: timedelta) -> dist.Store:
    """Return a part of the store that only the current processes use, when all of them have agreed on it.

    torchrun keeps one store over all restarts, which still contains the addresses of killed processes. A new process
    that reads too early would try to connect to them, and the group would never form. The number of restarts cannot
    separate the parts, because it differs between machines. Each process therefore writes a random identifier, and
    rank 0 lists the identifiers until every process has confirmed the list.
    """
    own_id, deadline = uuid.uuid4().hex, time.monotonic() + patience.total_seconds()
    store.set(f"confirmed by {rank}", "")
    if rank == 0:
        store.set("agreed", "")
    store.set(f"here {rank}", own_id)
    while True:
        if rank == 0:
            present = " ".join(store.get(f"here {number}").decode() for number in range(world))
            store.set("present", present)
            if all(store.get(f"confirmed by {number}").decode() == present for number in range(1, world)):
                store.set("agreed", present)
                break
        elif own_id in (present := store.get("present").decode()):
            if store.get("agreed").decode() == present:
                break
            store.set(f"confirmed by {rank}", present)
        if time.monotonic() > deadline:
            raise RuntimeError(f"not all {world} processes joined within {patience.total_seconds():g} seconds")
        time.sleep(0.05)
    return dist.PrefixStore(hashlib.sha256(present.encode()).hexdigest(), store)


def check_same(job_args: dict, device: torch.device, prints_errors: bool) -> None:
    """Check that all machines run the same job.

    Args:
        job_args: the arguments that must be equal, including digests of lists and classes.
        prints_errors: see `group`.

    Raises:
        InputError: an argument, the device type or the version of a library differs; raised on every rank. The
            message is empty if this process does not print.
    """
    libraries = {library.__name__: library.__version__ for library in (torch, torchvision, np)}
    facts = {"host": platform.node()} | libraries | {"device": device.type} | job_args
    first, *others = distributed.gather_objects(facts)
    for number, other in enumerate(others, start=1):
        names = [name for name in first | other if name != "host" and first.get(name) != other.get(name)]
        if names:
            differences = ", ".join(
                f"{name} {short_repr(other.get(name))}, not {short_repr(first.get(name))}" for name in names
            )
            line = (
                f"process {number} on {other['host']} differs from process 0 on {first['host']}: {differences}; "
                "start all processes of a job with the same flags, lists and versions"
            )
            distributed.barrier()  # no process leaves while another still reads the gathered values
            raise InputError(line if prints_errors else "")


def check_one_gpu_each(device: torch.device) -> None:
    """Check that no two processes share a GPU, which NCCL does not support; its own error has forty lines.

    Raises:
        InputError: two processes have the same GPU; raised on every rank.
    """
    uuid_of_gpu = str(getattr(torch.cuda.get_device_properties(device), "uuid", distributed.rank()))  # not in torch 2.4
    uuids = distributed.gather_objects(uuid_of_gpu)
    if shared := sorted({gpu for gpu in uuids if uuids.count(gpu) > 1}):
        ranks = [number for number, gpu in enumerate(uuids) if gpu == shared[0]]
        raise InputError(
            f"processes {', '.join(map(str, ranks))} have the same GPU, {shared[0]}; start one process per GPU, "
            "or set CUDA_VISIBLE_DEVICES for each"
        )
