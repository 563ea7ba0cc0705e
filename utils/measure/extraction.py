"""Compute the features of a whole split in one pass."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from tqdm import tqdm

from utils import distributed
from utils.distributed import collectives
from utils.errors import InputError


def _l2_normalise(features: Tensor) -> Tensor:
    return normalize(features, dim=1)


@torch.no_grad()
def extract_features(
    encoder: nn.Module,
    loader: Iterable,
    after_batch: Callable[[], None] = lambda: None,
    where: str = "this split",
    postprocess: Callable[[Tensor], Tensor] = _l2_normalise,
    progress: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the features of a split, (n, D) float32, and its labels, (n,), in the split's order and on every rank.

    The features are the output of `encoder`, in stage 1 after the projection head, as in the paper's measures. The
    encoder runs in eval mode with rank 0's batch-norm statistics, which are those that checkpoints contain.

    Args:
        after_batch: called after each batch that exists on every rank.
        where: name of the split, for messages.
        postprocess: applied to each batch of features (default: normalise to unit length).
        progress: title of a progress bar; None: no bar.

    Raises:
        InputError: a feature is not finite; raised on all ranks.
    """
    was_training = encoder.training
    collectives.broadcast_buffers(encoder)
    encoder.eval()
    total, done, features, labels = len(loader.dataset), 0, None, []
    for number, (images, batch_labels) in enumerate(tqdm(loader, progress, disable=progress is None, leave=False)):
        batch = postprocess(encoder(images))
        if features is None:  # allocated once, because concatenating batches would need twice the memory
            num_local = len(range(distributed.rank(), total, distributed.world_size()))
            features = batch.new_empty(num_local, *batch.shape[1:], dtype=torch.float32)
        features[done : done + len(batch)] = batch
        done += len(batch)
        labels.append(batch_labels)
        if number < loader.num_common_batches:
            after_batch()
    encoder.train(was_training)
    all_features = _gather_split(features, total)
    if bad := int((~all_features.isfinite().all(dim=1)).sum()):
        raise InputError(
            f"{where}: {bad} of {total} images have features that are not finite; the network has diverged; use an "
            "earlier checkpoint, or train with a smaller --lr"
        )
    return all_features, _gather_split(torch.cat(labels), total)


def _gather_split(local: Tensor, total: int) -> Tensor:
    """Combine the ranks' rows into the split's rows: rank r has rows r, r + world, r + 2 · world, ..."""
    if distributed.world_size() == 1:
        return local
    longest = -(-total // distributed.world_size())
    padded = torch.cat([local, local.new_zeros(longest - len(local), *local.shape[1:])])
    ranks = collectives.gather(padded).view(distributed.world_size(), longest, *local.shape[1:])
    return ranks.transpose(0, 1).flatten(0, 1)[:total]
