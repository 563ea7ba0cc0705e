"""Save memory by recomputing activations in the backward pass.

`in_parts` (--accum-steps) recomputes one part of the batch at a time, `recompute_blocks` (--grad-checkpointing) one
block of the network at a time. Losses and gradients are those of the whole batch up to rounding. The exception is
batch norm with `in_parts`, because it uses the statistics of each part.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from utils.errors import InputError

_BatchNorm = nn.modules.batchnorm._BatchNorm


def in_parts(encoder: nn.Module, images: Tensor, parts: int) -> Tensor:
    """Return `encoder(images)`, (N, 3, H, W) to (N, d), computed for N / parts images at a time.

    With gradients enabled, the activations of a part are freed after its forward pass and recomputed in the backward
    pass. At any time, memory holds the activations of at most one part.
    """
    if parts == 1:
        return encoder(images)
    run = partial(_twice, encoder, encoder)
    return torch.cat([run(part) for part in images.chunk(parts)])


def recompute_blocks(network: nn.Module, arch: str) -> int:
    """Make each block of a network store only its input for the backward pass. Return the number of blocks.

    Raises:
        InputError: If the network has no blocks.
    """
    found = list(_blocks(network))
    if not found:
        raise InputError(f"--grad-checkpointing: {arch} has no blocks of layers to recompute; omit it")
    for block in found:
        block.forward = partial(_twice, block, block.forward)
    return len(found)


def _blocks(network: nn.Module) -> Iterator[nn.Module]:
    """Yield the children of each Sequential that have children themselves: residual blocks, transformer layers."""
    for child in network.children():
        if isinstance(network, nn.Sequential) and not isinstance(child, nn.Sequential) and any(child.children()):
            yield child
        else:
            yield from _blocks(child)


def _twice(module: nn.Module, forward: Callable[..., Tensor], *args, **kwargs) -> Tensor:
    """Call `forward` now and, if gradients are enabled, again in the backward pass, with the same random draws."""
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    contexts = partial(_contexts, module)
    return checkpoint(forward, *args, use_reentrant=False, context_fn=contexts, **kwargs)


def _contexts(module: nn.Module) -> tuple:
    return nullcontext(), _uncounted(module)


@contextmanager
def _uncounted(module: nn.Module) -> Iterator[None]:
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
