"""How the processes of a job meet, and how each ends when another is lost."""

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from multiprocessing.util import Finalize

import torch
import torch.distributed as dist

from utils import distributed
from utils.errors import CannotMeet, InputError, PeerLost, first_line

# Where in gloo's source an error comes from, which stands before its words: they differ between versions. One of
# another form, "[enforce fail at ...]", is a fault of this program.
OF_GLOO = re.compile(r"^\[\S*gloo/\S*:\d+\] ")


@contextmanager
def group(
    device: torch.device,
    backend: str | None,
    where: str,
    meeting: Callable[[timedelta], dict],
    timeout: float,
    speaks: bool = True,
) -> Iterator[None]:
    """Join the process group of the job; leave it when all have done the block.

    backend: --dist-backend; None: nccl for GPUs, gloo for CPUs. where: the address, as the user knows it.
    meeting: of the timeout, makes the rest that `init_process_group` takes. timeout: seconds that the others are waited
    for, here and in all that follows. speaks: whether it is this process that says how those of its machine ended.

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
        dist.init_process_group(backend, timeout=patience, **meeting(patience))
        if on_gpu and "nccl" in backend:
            check_one_gpu_each(device)
    except (RuntimeError, ValueError) as error:
        raise CannotMeet(f"the processes cannot meet at {where} over {backend}: {first_line(error)}") from None
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


def by_torchrun(timeout: timedelta) -> dict:
    """torchrun's group, on one machine with a store of its own for each restart.

    torchrun serves one store for all restarts, in which the addresses of killed processes still
    stand: a new process that reads too soon would try to reach them, and the group never meet.
    """
    if os.environ["LOCAL_WORLD_SIZE"] != os.environ["WORLD_SIZE"]:
        return {"init_method": "env://"}  # the machines may not agree on how often they have started
    store, rank, world = next(dist.rendezvous("env://", timeout=timeout))
    restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return {"store": dist.PrefixStore(f"restart {restart}", store), "rank": rank, "world_size": world}


def check_one_gpu_each(device: torch.device) -> None:
    """Refuse processes that share a GPU, which NCCL cannot, and would say in forty lines.

    Raises:
        InputError: two have the same one; on every rank.
    """
    mine = str(getattr(torch.cuda.get_device_properties(device), "uuid", distributed.rank()))  # torch 2.4 does not tell
    everyone = [""] * distributed.world_size()
    dist.all_gather_object(everyone, mine)
    if shared := sorted({gpu for gpu in everyone if everyone.count(gpu) > 1}):
        ranks = [number for number, gpu in enumerate(everyone) if gpu == shared[0]]
        raise InputError(
            f"processes {', '.join(map(str, ranks))} have the same GPU, {shared[0]}: start one process for each GPU, "
            "or show each its own (CUDA_VISIBLE_DEVICES)"
        )
