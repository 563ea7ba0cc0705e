"""LDAM-DRW (Cao et al., NeurIPS 2019): margins that are wide for rare classes, and weights that come late."""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

LARGEST_MARGIN, SCALE = 0.5, 30.0
BETA = 0.9999  # of the effective number of images
DEFERRED = 0.8  # the share of the epochs before the weights: 160 of 200


def ldam_margins(counts: np.ndarray) -> Tensor:
    """(C,) margins of the cosines, ∝ n_c^(−1/4), the largest 0.5; counts: (C,) training images a class."""
    margins = np.maximum(counts, 1) ** -0.25
    return torch.from_numpy(margins * (LARGEST_MARGIN / margins.max())).float()


def effective_weights(counts: np.ndarray) -> Tensor:
    """(C,) ∝ (1 − β) / (1 − β^n_c), of mean 1 (Cui et al., CVPR 2019)."""
    weights = (1 - BETA) / (1 - BETA ** np.maximum(counts, 1))
    return torch.from_numpy(weights / weights.sum() * len(counts)).float()


def ldam_loss(logits: Tensor, labels: Tensor, margins: Tensor, weights: Tensor | None = None) -> Tensor:
    """The weighted mean of cross-entropies, with the label's own cosine lowered by its class's margin; a scalar.

    logits: (N, C), SCALE times the cosines. labels: (N,). margins: (C,). weights: (C,), None for all alike.
    """
    lowered = logits.scatter_add(1, labels[:, None], -SCALE * margins[labels][:, None].to(logits.dtype))
    return cross_entropy(lowered, labels, weight=weights)
