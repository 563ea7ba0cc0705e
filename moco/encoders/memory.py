"""Save memory by recomputing activations in the backward pass (activation checkpointing).

`encode_in_microbatches` (--accum-steps) recomputes one micro-batch at a time, `recompute_blocks` (--grad-checkpointing)
one block of the network at a time. Losses and gradients are those of the whole batch up to rounding. The exception is
batch norm with `encode_in_microbatches`, because it uses the statistics of each micro-batch.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from utils.errors import InputError

_BatchNorm = nn.modules.batchnorm._BatchNorm


def encode_in_microbatches(encoder: nn.Module, images: Tensor, num_microbatches: int) -> Tensor:
    """Return `encoder(images)`, (N, 3, H, W) to (N, d), computed for N / num_microbatches images at a time.

    With gradients enabled, the activations of a micro-batch are freed after its forward pass and recomputed in the
    backward pass. At any time, memory holds the activations of at most one micro-batch.
    """
    if num_microbatches == 1:
        return encoder(images)
    run = partial(_checkpointed, encoder, encoder)
    return torch.cat([run(microbatch) for microbatch in images.chunk(num_microbatches)])


def recompute_blocks(network: nn.Module, arch: str) -> int:
    """Make each block of a network store only its input for the backward pass. Return the number of blocks.

    Raises:
        InputError: If the network has no blocks.
    """
    blocks = list(_blocks(network))
    if not blocks:
        raise InputError(f"--grad-checkpointing: {arch} has no blocks of layers to recompute; omit it")
    for block in blocks:
        block.forward = partial(_checkpointed, block, block.forward)
    return len(blocks)


def _blocks(network: nn.Module) -> Iterator[nn.Module]:
    """Yield the children of each Sequential that have children themselves: residual blocks, transformer layers."""
    for child in network.children():
        if isinstance(network, nn.Sequential) and not isinstance(child, nn.Sequential) and any(child.children()):
            yield child
        else:
            yield from _blocks(child)


def _checkpointed(module: nn.Module, forward: Callable[..., Tensor], *args, **kwargs) -> Tensor:
    """Call `forward` now and, if gradients are enabled, again in the backward pass, with the same random draws.

    module: its batch-norm statistics are not updated a second time.
    """
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    contexts = partial(_checkpoint_contexts, module)
    return checkpoint(forward, *args, use_reentrant=False, context_fn=contexts, **kwargs)


def _checkpoint_contexts(module: nn.Module) -> tuple:
    return nullcontext(), _frozen_bn_statistics(module)


@contextmanager
def _frozen_bn_statistics(module: nn.Module) -> Iterator[None]:
    """Keep batch norm from updating its running statistics a second time with the same batch."""
    norms = [norm for norm in module.modules() if isinstance(norm, _BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
