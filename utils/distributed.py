"""Processes: how they start, who they are, what they gather.

With one process there is no group: every function here is then the identity, so that
the rest of the project reads the same for one process and for many.
"""

import math
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from inspect import signature

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from utils import errors

GRACE_SECONDS = 20
MAX_WORKERS = 32  # the release's default
PROCESSES_WITHOUT_GPU = 2  # of --multiprocessing-distributed on a machine without a GPU


def launch(worker: Callable, args) -> None:
    """Run worker(args) in this process, in torchrun's, or in one process per GPU.

    `--multiprocessing-distributed` is the release's way: --world-size counts
    machines, --rank is this machine's number, --dist-url says where machine 0 is.
    """
    if under_torchrun():
        _work(int(os.environ["LOCAL_RANK"]), worker, args, None)
    elif args.multiprocessing_distributed:
        per_node = torch.cuda.device_count() or PROCESSES_WITHOUT_GPU
        _spawn((worker, args, per_node), per_node)
    else:
        args.device = _device(args, 0)
        if args.device.type == "cuda":
            torch.cuda.set_device(args.device)
        _share_cores(args, processes=1)
        worker(args)


def _spawn(work: tuple, processes: int) -> None:
    """Run _work(number, *work) in new processes, pass signals on to them, end with the exit code of theirs."""
    context = mp.spawn(_work, work, nprocs=processes, join=False)

    def pass_on(number: int, _frame) -> None:
        for process in context.processes:
            if process.is_alive():
                os.kill(process.pid, number)

    before = {number: signal.signal(number, pass_on) for number in errors.EXIT_CODES}
    # One that fails takes the others down; one that does not go by itself, stuck on the lost peer, is killed.
    patience = {"grace_period": GRACE_SECONDS} if "grace_period" in signature(context.join).parameters else {}
    try:
        while not context.join(**patience):
            pass
    except mp.ProcessRaisedException:
        if any(process.exitcode == 2 for process in context.processes):
            sys.exit(2)  # a user's mistake that one process has named; the others only missed it
        raise
    except mp.ProcessExitedException as error:
        if error.exit_code > 0:
            sys.exit(error.exit_code)  # the process has said why
        name = signal.Signals(-error.exit_code).name
        print(f"error: process {error.error_index} was killed by {name}; --resume auto goes on", file=sys.stderr)
        sys.exit(128 - error.exit_code)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _work(local_rank: int, worker: Callable, args, per_node: int | None) -> None:
    """One process of a group: join, work, leave."""
    args.device = _device(args, local_rank)
    _share_cores(args, processes=per_node or int(os.environ["LOCAL_WORLD_SIZE"]))
    group = {} if per_node is None else _release_group(args, local_rank, per_node)
    on_gpu = args.device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(args.device)
    backend = args.dist_backend or ("nccl" if on_gpu else "gloo")
    if backend == "nccl":
        backend = "cpu:gloo,cuda:nccl"  # what the hosts agree on does not wait for the devices

    def join_and_work() -> None:
        try:
            dist.init_process_group(backend, timeout=timedelta(minutes=30), **(group or _torchrun_group()))
            if on_gpu and "nccl" in backend:
                _check_one_gpu_each(args.device)
        except (RuntimeError, ValueError) as error:
            url = args.dist_url if per_node else "env://"
            raise errors.InputError(
                f"the processes cannot meet at {url} over {backend}: {errors.first_line(error)}"
            ) from None
        try:
            worker(args)
            barrier()  # nobody leaves while another still writes or speaks
        finally:
            dist.destroy_process_group()

    if per_node is None:
        join_and_work()
    else:
        errors.run(join_and_work)  # a spawned process reports for itself


def _release_group(args, local_rank: int, per_node: int) -> dict:
    nodes, node = max(args.world_size, 1), max(args.rank, 0)
    where = {"init_method": args.dist_url}
    return {"world_size": nodes * per_node, "rank": node * per_node + local_rank, **where}


def _torchrun_group() -> dict:
    """torchrun's group, on one machine with a store of its own for each restart.

    torchrun serves one store for all restarts, in which the addresses of killed processes still
    stand: a new process that reads too soon would try to reach them, and the group never meet.
    """
    if os.environ["LOCAL_WORLD_SIZE"] != os.environ["WORLD_SIZE"]:
        return {"init_method": "env://"}  # the machines may not agree on how often they have started
    store, rank, world = next(dist.rendezvous("env://", timeout=timedelta(minutes=30)))
    restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return {"store": dist.PrefixStore(f"restart {restart}", store), "rank": rank, "world_size": world}


def _device(args, local_rank: int) -> torch.device:
    if args.gpu is not None:
        return torch.device("cuda", args.gpu)
    device = device_named(args.device)
    if device != torch.device("cuda"):
        return device
    # A launcher may show each process its own GPU alone: Slurm's --gpus-per-task does.
    return torch.device("cuda", 0 if torch.cuda.device_count() == 1 else local_rank)


def _check_one_gpu_each(device: torch.device) -> None:
    """Refuse processes that share a GPU, which NCCL cannot, and would say in forty lines.

    Raises:
        InputError: two have the same one; on every rank.
    """
    mine = str(getattr(torch.cuda.get_device_properties(device), "uuid", rank()))  # torch 2.4 does not tell
    everyone = [""] * world_size()
    dist.all_gather_object(everyone, mine)
    if shared := sorted({gpu for gpu in everyone if everyone.count(gpu) > 1}):
        ranks = [number for number, gpu in enumerate(everyone) if gpu == shared[0]]
        raise errors.InputError(
            f"processes {', '.join(map(str, ranks))} have the same GPU, {shared[0]}: start one process for each GPU, "
            "or show each its own (CUDA_VISIBLE_DEVICES)"
        )


def device_named(name: str) -> torch.device:
    """What --device says; auto: a GPU if there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def _share_cores(args, processes: int) -> None:
    """Give this process its part of the machine's loader workers and threads.

    Without a GPU, workers and training compete for the cores, and threads that spin
    while a worker holds their core cost more than they bring: each core gets one job.
    """
    cores = max(1, usable_cores() // processes)
    on_cpu = args.device.type == "cpu"
    if args.workers is None:
        args.workers = cores // 2 if on_cpu else min(cores, MAX_WORKERS)
    else:
        args.workers = math.ceil(args.workers / processes)
    if "OMP_NUM_THREADS" not in os.environ:  # as torchrun sets it
        torch.set_num_threads(max(1, cores - args.workers) if on_cpu else cores)


def usable_cores() -> int:
    """Cores this process may run on, which on a cluster can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def under_torchrun() -> bool:
    """Whether torchrun has started this process, once for each of the job."""
    return "LOCAL_RANK" in os.environ


def world_size_from(args) -> int:
    """How many processes `launch` will make of these arguments, before it has.

    Raises:
        InputError: a launcher has set LOCAL_RANK and not the rest, or started more processes than there are GPUs.
    """
    if under_torchrun():
        _check_launcher(device_named(args.device), os.environ)
        return int(os.environ["WORLD_SIZE"])
    if args.multiprocessing_distributed:
        return max(args.world_size, 1) * (torch.cuda.device_count() or PROCESSES_WITHOUT_GPU)
    return 1


def _check_launcher(device: torch.device, environment: Mapping[str, str]) -> None:
    names = ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    if missing := [name for name in names if name not in environment]:
        raise errors.InputError(
            f"LOCAL_RANK is set and {', '.join(missing)} not, expected all that torchrun sets; start with torchrun, "
            "or unset LOCAL_RANK"
        )
    processes, gpus = int(environment["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
    each_its_own = gpus == 1 and "CUDA_VISIBLE_DEVICES" in environment  # if not, they say so when they have met
    if device == torch.device("cuda") and 0 < gpus < processes and not each_its_own:
        raise errors.InputError(f"{processes} processes on a machine with {gpus} GPUs: start {gpus}, or --device cpu")


def active() -> bool:
    """Whether there is a process group."""
    return dist.is_available() and dist.is_initialized()


def world_size() -> int:
    return dist.get_world_size() if active() else 1


def rank() -> int:
    """The global rank."""
    return dist.get_rank() if active() else 0


def is_main() -> bool:
    """Whether this is the one process that writes files and prints."""
    if not active() and under_torchrun():  # before it has joined the others
        return os.environ.get("RANK", "0") == "0"
    return rank() == 0


def wrap(model: nn.Module, device: torch.device) -> nn.Module:
    """The model under DistributedDataParallel, or itself when there is one process.

    Buffers are not broadcast: all ranks compute the same queue and centroids, and the
    queue is 33 MB a step at the release's size. The graph is static: the same parameters
    have a gradient in KCL and in TSC. Gradients are views of what is sent, not copied into it.
    """
    if not active():
        return model
    ids = [device.index] if device.type == "cuda" else None
    ddp = nn.parallel.DistributedDataParallel
    # torch 2.15 has given the argument a new name and warns of the old one.
    name = "forward_sync_buffers" if "forward_sync_buffers" in signature(ddp).parameters else "broadcast_buffers"
    return ddp(model, device_ids=ids, static_graph=True, gradient_as_bucket_view=True, **{name: False})


@torch.no_grad()
def gather(tensor: Tensor) -> Tensor:
    """Concatenate the ranks' tensors along the first axis, in rank order, without gradient."""
    if not active():
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """The sum of the ranks' tensors, on every rank."""
    if not active():
        return tensor
    tensor = tensor.clone()
    dist.all_reduce(tensor)
    return tensor


def max_over_ranks(number: int) -> int:
    """The largest of the ranks' numbers, on every rank; it does not wait for the device."""
    if not active():
        return number
    box = torch.tensor(int(number))
    dist.all_reduce(box, dist.ReduceOp.MAX)
    return int(box)


def barrier() -> None:
    """Wait for all ranks."""
    if active():
        dist.barrier()


def same_on_all_ranks(value):
    """Rank 0's value, on every rank."""
    if not active():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def same_tensor(tensor: Tensor) -> None:
    """Give every rank rank 0's values, in place; nothing waits for the device."""
    if active():
        dist.broadcast(tensor, src=0)


def broadcast_buffers(model: nn.Module) -> None:
    """Give every rank rank 0's buffers: batch-norm statistics differ between ranks."""
    for buffer in model.buffers():
        same_tensor(buffer)


@contextmanager
def main_process_first() -> Iterator[None]:
    """Rank 0 does the block before the others: it makes a file, they find it."""
    if not is_main():
        barrier()
    yield
    if is_main():
        barrier()
