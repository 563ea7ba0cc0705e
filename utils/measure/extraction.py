"""Features of a whole split: of one pass, in the split's order, the same on every rank."""

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
    """Features of a split in its order, (n, D) float32, and labels (n,), the same on every rank.

    The encoder's whole output, after the projection head, as in the paper's measures; in eval mode meanwhile, with
    rank 0's batch-norm statistics, which are those that checkpoints hold.

    Args:
        between: called after each batch that every rank has. where: what the split is called in messages.
        finish: of each batch's features, to unit length if nothing else is said. progress: the title of a bar with
            the time that is left; None: no bar.

    Raises:
        InputError: on all ranks, if a feature is not finite.
    """
    was_training = encoder.training
    distributed.broadcast_buffers(encoder)
    encoder.eval()
    total, done, features, labels = len(loader.dataset), 0, None, []
    for number, (images, its_labels) in enumerate(tqdm(loader, progress, disable=progress is None, leave=False)):
        batch = finish(encoder(images))
        if features is None:  # of the whole share at once: large ones are not there twice
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
            f"{where}: {bad} of {total} images have features that are not finite; the network has diverged: take an "
            "earlier checkpoint, or train with a smaller --lr"
        )
    return whole, _whole_split(torch.cat(labels), total)


def _whole_split(share: Tensor, total: int) -> Tensor:
    """The split's rows from the ranks' shares: rank r has every world-th row, from row r on."""
    if distributed.world_size() == 1:
        return share
    longest = -(-total // distributed.world_size())
    padded = torch.cat([share, share.new_zeros(longest - len(share), *share.shape[1:])])
    ranks = distributed.gather(padded).view(distributed.world_size(), longest, *share.shape[1:])
    return ranks.transpose(0, 1).flatten(0, 1)[:total]
