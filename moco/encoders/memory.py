"""Less memory for activations: what the backward pass needs is computed anew, for a part at a time.

Of a batch (`in_parts`, --accum-steps) or of a network (`recompute_blocks`, --grad-checkpointing). Losses and gradients
are those of the whole but for rounding: only batch norm, which sees a part of the batch at a time, makes a difference.
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
    """`encoder(images)`, (N, 3, H, W) to (N, d), of N / parts images at a time.

    With a gradient a part's activations are dropped after its forward pass: at most those of one part are there at a
    time, for a second forward pass in the backward one.
    """
    if parts == 1:
        return encoder(images)
    run = partial(_twice, encoder, encoder)
    return torch.cat([run(part) for part in images.chunk(parts)])


def recompute_blocks(network: nn.Module, arch: str) -> int:
    """Have each block of a network keep its input alone for the backward pass; returns how many there are.

    Raises:
        InputError: it has no blocks.
    """
    found = list(_blocks(network))
    if not found:
        raise InputError(f"--grad-checkpointing: {arch} has no blocks of layers to compute anew; leave it out")
    for block in found:
        block.forward = partial(_twice, block, block.forward)
    return len(found)


def _blocks(network: nn.Module) -> Iterator[nn.Module]:
    """What a row of modules is made of, where that has modules of its own: residual blocks, layers of a transformer."""
    for child in network.children():
        if isinstance(network, nn.Sequential) and not isinstance(child, nn.Sequential) and any(child.children()):
            yield child
        else:
            yield from _blocks(child)


def _twice(module: nn.Module, forward: Callable[..., Tensor], *args, **kwargs) -> Tensor:
    """`forward` of a module, now and, where there is a gradient, again in the backward pass, with the same draws."""
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    contexts = partial(_contexts, module)
    return checkpoint(forward, *args, use_reentrant=False, context_fn=contexts, **kwargs)


def _contexts(module: nn.Module) -> tuple:
    return nullcontext(), _uncounted(module)


@contextmanager
def _uncounted(module: nn.Module) -> Iterator[None]:
    """Batch norm does not add a batch to its running statistics, which it has seen before."""
    norms = [norm for norm in module.modules() if isinstance(norm, _BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
