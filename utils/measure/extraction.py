"""Compute the features of a whole split in one pass."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from tqdm import tqdm

from utils import distributed
from utils.errors import InputError


def unit(features: Tensor) -> Tensor:
    return normalize(features, dim=1)


@torch.no_grad()
def extract_features(
    encoder: nn.Module,
    loader: Iterable,
    between: Callable[[], None] = lambda: None,
    where: str = "this split",
    finish: Callable[[Tensor], Tensor] = unit,
    progress: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the features of a split, (n, D) float32, and its labels, (n,), in the split's order and on every rank.

    The features are the encoder's output after the projection head, as in the paper's measures. The encoder runs in
    eval mode with rank 0's batch-norm statistics, which are those that checkpoints contain.

    Args:
        between: called after each batch that exists on every rank. where: name of the split in messages.
        finish: applied to each batch of features (default: normalise to unit length). progress: title of a progress
            bar; None: no bar.

    Raises:
        InputError: a feature is not finite; raised on all ranks.
    """
    was_training = encoder.training
    distributed.broadcast_buffers(encoder)
    encoder.eval()
    total, done, features, labels = len(loader.dataset), 0, None, []
    for number, (images, its_labels) in enumerate(tqdm(loader, progress, disable=progress is None, leave=False)):
        batch = finish(encoder(images))
        if features is None:  # allocated once, because concatenating batches would need twice the memory
            share = len(range(distributed.rank(), total, distributed.world_size()))
            features = batch.new_empty(share, *batch.shape[1:], dtype=torch.float32)
        features[done : done + len(batch)] = batch
        done += len(batch)
        labels.append(its_labels)
        if number < loader.on_every_rank:
            between()
    encoder.train(was_training)
    whole = _whole_split(features, total)
    if bad := int((~whole.isfinite().all(dim=1)).sum()):
        raise InputError(
            f"{where}: {bad} of {total} images have features that are not finite; the network has diverged; use an "
            "earlier checkpoint, or train with a smaller --lr"
        )
    return whole, _whole_split(torch.cat(labels), total)


def _whole_split(share: Tensor, total: int) -> Tensor:
    """Combine the ranks' shares into the split's rows: rank r has rows r, r + world, r + 2 · world, ..."""
    if distributed.world_size() == 1:
        return share
    longest = -(-total // distributed.world_size())
    padded = torch.cat([share, share.new_zeros(longest - len(share), *share.shape[1:])])
    ranks = distributed.gather(padded).view(distributed.world_size(), longest, *share.shape[1:])
    return ranks.transpose(0, 1).flatten(0, 1)[:total]
