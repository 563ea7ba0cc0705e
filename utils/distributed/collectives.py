"""Collective operations on tensors and models. For a single process, each of them is the identity."""

from functools import reduce
from inspect import signature

import torch
import torch.distributed as dist
from torch import Tensor, nn

from utils.distributed import group_exists, rank, world_size


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


def broadcast_tensor(tensor: Tensor) -> None:
    """Copy rank 0's values to every rank, in place, without waiting for the device."""
    if group_exists():
        dist.broadcast(tensor, src=0)


def broadcast_buffers(model: nn.Module) -> None:
    """Copy rank 0's buffers to every rank, because batch-norm statistics differ between ranks."""
    for buffer in model.buffers():
        broadcast_tensor(buffer)
