"""Collective operations over the processes of a job, and printing from the main process only.

A single process has no process group. Every function here is then the identity, so that the rest of the project needs
no special case for it.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import reduce
from inspect import signature

import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm

from utils.distributed import launchers
from utils.errors import flush, printable


def group_exists() -> bool:
    """Whether a process group exists."""
    return dist.is_available() and dist.is_initialized()


def world_size() -> int:
    return dist.get_world_size() if group_exists() else 1


def rank() -> int:
    """Return the global rank; 0 without a process group."""
    return dist.get_rank() if group_exists() else 0


def is_main() -> bool:
    """Whether this is the main process, the only one that writes files and prints."""
    return rank() == 0 if group_exists() else launchers.first_of_job()  # before the process has joined the group


def wrap_ddp(model: nn.Module, device: torch.device) -> nn.Module:
    """Wrap the model in DistributedDataParallel; a single process returns the model itself.

    - Buffers are not broadcast: all ranks compute the same queue and centroids, and the queue would cost 33 MB per step
      at the size used in the authors' code (the code released by the TSC authors).
    - The graph is static: the same parameters have a gradient in KCL and in TSC.
    - Gradients are views of the communication buffers, which saves a copy.
    - With more than two ranks, all-reduce sums in an order that depends on the bucket layout, which DDP changes after
      the first step. Where resumed runs must be bit-identical (on the CPU, and with --deterministic), each rank
      therefore gathers all gradients and adds them in rank order.
    """
    if not group_exists():
        return model
    ids = [device.index] if device.type == "cuda" else None
    ddp = nn.parallel.DistributedDataParallel
    # torch 2.15 renamed the argument and warns about the old name.
    name = "forward_sync_buffers" if "forward_sync_buffers" in signature(ddp).parameters else "broadcast_buffers"
    wrapped = ddp(model, device_ids=ids, static_graph=True, gradient_as_bucket_view=True, **{name: False})
    if world_size() > 2 and (device.type == "cpu" or torch.are_deterministic_algorithms_enabled()):
        wrapped.register_comm_hook(None, _mean_in_rank_order)
    return wrapped


def _mean_in_rank_order(_, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """Return the mean over ranks of a bucket of gradients, summed in rank order."""
    buffers = [torch.empty_like(bucket.buffer()) for _ in range(world_size())]
    gathered = dist.all_gather(buffers, bucket.buffer(), async_op=True).get_future()
    return gathered.then(lambda _: reduce(torch.add, buffers) / world_size())


@torch.no_grad()
def gather(tensor: Tensor) -> Tensor:
    """Concatenate the ranks' tensors along the first axis, in rank order, without gradient."""
    if not group_exists():
        return tensor
    tensors = [torch.empty_like(tensor) for _ in range(world_size())]
    dist.all_gather(tensors, tensor.contiguous())
    return torch.cat(tensors)


class GatherWithGradient(torch.autograd.Function):
    """Concatenate the ranks' tensors along the first axis, in rank order, with a gradient for this rank's tensor.

    Every rank computes the same loss of the whole batch. The backward pass returns this rank's rows of the gradient,
    multiplied by the number of ranks, because DistributedDataParallel averages over ranks. The averaged gradient is
    then that of the loss, and the backward pass needs no communication.
    """

    @staticmethod
    def forward(ctx, tensor: Tensor) -> Tensor:
        ctx.rows = len(tensor)
        return gather(tensor) if group_exists() else tensor.view_as(tensor)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        start = rank() * ctx.rows
        return grad[start : start + ctx.rows] * world_size()


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Return the sum of the ranks' tensors, on every rank."""
    if not group_exists():
        return tensor
    tensor = tensor.clone()
    dist.all_reduce(tensor)
    return tensor


def max_over_ranks(number: int) -> int:
    """Return the largest of the ranks' numbers, on every rank, without waiting for the device."""
    if not group_exists():
        return number
    box = torch.tensor(int(number))
    dist.all_reduce(box, dist.ReduceOp.MAX)
    return int(box)


def barrier() -> None:
    """Wait for all ranks."""
    if group_exists():
        dist.barrier()


def broadcast_object(value):
    """Return rank 0's value on every rank."""
    if not group_exists():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gather_objects(value) -> list:
    """Return the list of the ranks' values, in rank order, on every rank."""
    values = [value] * world_size()
    if group_exists():
        dist.all_gather_object(values, value)
    return values


def broadcast_tensor(tensor: Tensor) -> None:
    """Copy rank 0's values to every rank, in place, without waiting for the device."""
    if group_exists():
        dist.broadcast(tensor, src=0)


def broadcast_buffers(model: nn.Module) -> None:
    """Copy rank 0's buffers to every rank, because batch-norm statistics differ between ranks."""
    for buffer in model.buffers():
        broadcast_tensor(buffer)


@contextmanager
def main_process_first() -> Iterator[None]:
    """Run the block on rank 0 first, so that the other ranks find the file that rank 0 creates."""
    if not is_main():
        barrier()
    yield
    if is_main():
        barrier()


def log(text: str = "") -> None:
    """Print a line on the main process, above any progress bar; control characters in it are escaped.

    If the program that reads stdout has exited, nothing is printed and the run continues.
    """
    if is_main():
        with suppress(BrokenPipeError):  # `flush` handles it
            tqdm.write(printable(text), file=sys.stdout)
        flush()
