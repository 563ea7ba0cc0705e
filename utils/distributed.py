"""Processes: who they are, what they gather, which one speaks.

With one process there is no group: every function here is then the identity, so that
the rest of the project reads the same for one process and for many.
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

from utils import launchers
from utils.errors import flush, printable


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
    return rank() == 0 if active() else launchers.first_of_job()  # before it has joined the others


def wrap(model: nn.Module, device: torch.device) -> nn.Module:
    """The model under DistributedDataParallel, or itself when there is one process.

    Buffers are not broadcast: all ranks compute the same queue and centroids, and the
    queue is 33 MB a step at the release's size. The graph is static: the same parameters
    have a gradient in KCL and in TSC. Gradients are views of what is sent, not copied into it.

    More than two ranks add up a gradient in an order that depends on where in its bucket it lies, and buckets are
    others after a start's first step. Where a run goes on to the same bits, on the CPU and with --deterministic, the
    order is that of the ranks; each then receives the gradients of all.
    """
    if not active():
        return model
    ids = [device.index] if device.type == "cuda" else None
    ddp = nn.parallel.DistributedDataParallel
    # torch 2.15 has given the argument a new name and warns of the old one.
    name = "forward_sync_buffers" if "forward_sync_buffers" in signature(ddp).parameters else "broadcast_buffers"
    wrapped = ddp(model, device_ids=ids, static_graph=True, gradient_as_bucket_view=True, **{name: False})
    if world_size() > 2 and (device.type == "cpu" or torch.are_deterministic_algorithms_enabled()):
        wrapped.register_comm_hook(None, _mean_in_rank_order)
    return wrapped


def _mean_in_rank_order(_, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """The mean over ranks of a bucket of gradients."""
    parts = [torch.empty_like(bucket.buffer()) for _ in range(world_size())]
    received = dist.all_gather(parts, bucket.buffer(), async_op=True).get_future()
    return received.then(lambda _: reduce(torch.add, parts) / world_size())


@torch.no_grad()
def gather(tensor: Tensor) -> Tensor:
    """Concatenate the ranks' tensors along the first axis, in rank order, without gradient."""
    if not active():
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


class GatherWithGradient(torch.autograd.Function):
    """Concatenate the ranks' tensors along the first axis, in rank order; every rank computes one loss, of them all.

    The gradient reaches this rank's part alone, times the number of ranks, as DistributedDataParallel takes the mean
    over them: what it then has is the gradient of the one loss, and nothing is sent backwards.
    """

    @staticmethod
    def forward(ctx, tensor: Tensor) -> Tensor:
        ctx.rows = len(tensor)
        return gather(tensor) if active() else tensor.view_as(tensor)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        start = rank() * ctx.rows
        return grad[start : start + ctx.rows] * world_size()


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


def from_all_ranks(value) -> list:
    """The ranks' values, in rank order, on every rank."""
    everyone = [value] * world_size()
    if active():
        dist.all_gather_object(everyone, value)
    return everyone


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


def say(text: str = "") -> None:
    """Print a line once in the whole job, above the bar if there is one; names in it cannot act on the terminal.

    Where nobody reads on it prints nothing, and the run goes on.
    """
    if is_main():
        with suppress(BrokenPipeError):  # `flush` will meet it, and see to it
            tqdm.write(printable(text), file=sys.stdout)
        flush()
