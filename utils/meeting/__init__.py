"""How the processes of a job meet, and how each ends when another is lost."""

import hashlib
import os
import platform
import re
import sys
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

from utils import distributed, launchers
from utils.errors import CannotMeet, InputError, PeerLost, brief, first_line
from utils.meeting.interfaces import settle_interface

# Where in gloo's source an error comes from, which stands before its words: they differ between versions. One of
# another form, "[enforce fail at ...]", is a fault of this program.
OF_GLOO = re.compile(r"^\[\S*gloo/\S*:\d+\] ")


class Way(NamedTuple):
    """How processes meet. where: as the user knows it. several: whether on more than one machine.

    meet: of the time that they wait for each other, makes what `init_process_group` takes.
    """

    where: str
    several: bool
    meet: Callable[[timedelta], dict]


@contextmanager
def group(device: torch.device, backend: str | None, way: Way, timeout: float, speaks: bool = True) -> Iterator[None]:
    """Join the process group of the job; leave it when all have done the block.

    backend: --dist-backend; None: nccl for GPUs, gloo for CPUs. timeout: seconds that the others are waited for, here
    and in all that follows. speaks: whether it is this process that says how those of its machine ended.

    Raises:
        CannotMeet: they do not come together. InputError: two have the same GPU.
        PeerLost: another process has ended within the block, or has not answered for so long.
    """
    on_gpu = device.type == "cuda"
    backend = backend or ("nccl" if on_gpu else "gloo")
    if backend == "nccl":
        backend = "cpu:gloo,cuda:nccl"  # what the hosts agree on does not wait for the devices
    patience = timedelta(seconds=timeout)
    try:
        dist.init_process_group(backend, timeout=patience, **way.meet(patience))
        if on_gpu and "nccl" in backend:
            check_one_gpu_each(device)
    except (RuntimeError, ValueError) as error:
        cure = "; GLOO_SOCKET_IFNAME=NAME, on each machine, names the interface that leads to the others"
        line = f"the processes cannot meet at {way.where} over {backend}: {first_line(error)}"
        raise CannotMeet(line + cure * way.several) from None
    lost = False
    try:
        yield
        distributed.barrier()  # nobody leaves while another still writes or speaks
    except RuntimeError as error:
        lost = isinstance(error, dist.DistError) or OF_GLOO.match(str(error))
        if not lost:
            raise
        Finalize(None, _end_at_once, exitpriority=-1)
        raise PeerLost(_farewell(error, timeout) if speaks else "") from None
    finally:
        if not lost:
            dist.destroy_process_group()


def _farewell(error: RuntimeError, timeout: float) -> str:
    """What a process says of the others' loss, in one line."""
    why = OF_GLOO.sub("", first_line(error)).partition(". ")[0]  # PyTorch adds advice
    return (
        f"process {distributed.rank()} of {distributed.world_size()} has lost another ({why}): it has ended, has not "
        f"answered for --dist-timeout {timeout:g} seconds, or the network has failed; --resume auto goes on from the "
        "last checkpoint"
    )


def _end_at_once() -> None:
    """The last thing at exit: what libraries do after it may wait for a process that is no more."""
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(1)


def by_url(url: str, world_size: int, rank: int, several: bool) -> Way:
    """The release's way: --dist-url says where the first machine is."""

    def meet(_: timedelta) -> dict:
        if several:
            settle_interface(urlparse(url).hostname)
        return {"init_method": url, "world_size": world_size, "rank": rank}

    return Way(url, several, meet)


def by_srun(numbers: launchers.Numbers) -> Way:
    """Slurm's: the first process listens on the step's first node. Raises InputError: see `check_port`."""
    where = launchers.slurm_address()
    if numbers.rank == 0:
        launchers.check_port(where, "MASTER_PORT")
    several = numbers.local_world_size < numbers.world_size
    return by_url(where, numbers.world_size, numbers.rank, several)


def by_torchrun() -> Way:
    """torchrun's, with a store of its own for each start."""
    several = os.environ["LOCAL_WORLD_SIZE"] != os.environ["WORLD_SIZE"]

    def meet(patience: timedelta) -> dict:
        if several:
            settle_interface(os.environ["MASTER_ADDR"])
        store, rank, world = next(dist.rendezvous("env://", timeout=patience))
        return {"store": fresh_part(store, rank, world, patience), "rank": rank, "world_size": world}

    return Way("env://", several, meet)


def fresh_part(store: dist.Store, rank: int, world: int, patience: timedelta) -> dist.Store:
    """A part of the store that only the processes use which are here now; returns when all have agreed on it.

    torchrun serves one store for all restarts, in which the addresses of killed processes still stand: a new process
    that reads too soon would try to reach them, and the group never meet. How often they have started is not the same
    on all machines. So each writes who it is, and the first lists them until every one has confirmed the list.
    """
    me, until = uuid.uuid4().hex, time.monotonic() + patience.total_seconds()
    store.set(f"confirmed by {rank}", "")
    if rank == 0:
        store.set("agreed", "")
    store.set(f"here {rank}", me)
    while True:
        if rank == 0:
            present = " ".join(store.get(f"here {number}").decode() for number in range(world))
            store.set("present", present)
            if all(store.get(f"confirmed by {number}").decode() == present for number in range(1, world)):
                store.set("agreed", present)
                break
        elif me in (present := store.get("present").decode()):
            if store.get("agreed").decode() == present:
                break
            store.set(f"confirmed by {rank}", present)
        if time.monotonic() > until:
            raise RuntimeError(f"not all {world} processes have come in {patience.total_seconds():g} seconds")
        time.sleep(0.05)
    return dist.PrefixStore(hashlib.sha256(present.encode()).hexdigest(), store)


def check_same(mine: dict, device: torch.device, speaks: bool) -> None:
    """Refuse machines that do not run the same.

    mine: the arguments that all must share, lists and classes among them. speaks: as of `group`.

    Raises:
        InputError: they differ in one, in the kind of device or in the version of a library; on every rank. The
            message is empty where this process does not speak.
    """
    libraries = {library.__name__: library.__version__ for library in (torch, torchvision, np)}
    mine = {"host": platform.node()} | libraries | {"device": device.type} | mine
    first, *others = distributed.from_all_ranks(mine)
    for number, other in enumerate(others, start=1):
        names = [name for name in first | other if name != "host" and first.get(name) != other.get(name)]
        if names:
            found = ", ".join(f"{name} {brief(other.get(name))}, not {brief(first.get(name))}" for name in names)
            line = (
                f"process {number}, on {other['host']}, does not run what process 0, on {first['host']}, does: "
                f"{found}; start all with the same flags, lists and versions, and several runs as several jobs"
            )
            distributed.barrier()  # nobody leaves while another still reads what all have said
            raise InputError(line if speaks else "")


def check_one_gpu_each(device: torch.device) -> None:
    """Refuse processes that share a GPU, which NCCL cannot, and would say in forty lines.

    Raises:
        InputError: two have the same one; on every rank.
    """
    mine = str(getattr(torch.cuda.get_device_properties(device), "uuid", distributed.rank()))  # torch 2.4 does not tell
    everyone = distributed.from_all_ranks(mine)
    if shared := sorted({gpu for gpu in everyone if everyone.count(gpu) > 1}):
        ranks = [number for number, gpu in enumerate(everyone) if gpu == shared[0]]
        raise InputError(
            f"processes {', '.join(map(str, ranks))} have the same GPU, {shared[0]}: start one process for each GPU, "
            "or show each its own (CUDA_VISIBLE_DEVICES)"
        )
