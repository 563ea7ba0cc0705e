"""LDAM-DRW (Cao et al., NeurIPS 2019): larger margins for rare classes, and deferred class weights."""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

LARGEST_MARGIN, SCALE = 0.5, 30.0
BETA = 0.9999  # β of the effective number of images
DEFERRED = 0.8  # share of the epochs trained without class weights: 160 of 200 in the paper


def ldam_margins(counts: np.ndarray) -> Tensor:
    """Return the cosine margins (C,), ∝ n_c^(−1/4) with maximum 0.5. counts: (C,) training images per class."""
    margins = np.maximum(counts, 1) ** -0.25
    return torch.from_numpy(margins * (LARGEST_MARGIN / margins.max())).float()


def effective_weights(counts: np.ndarray) -> Tensor:
    """Return class weights (C,) ∝ (1 − β) / (1 − β^n_c) with mean 1 (Cui et al., CVPR 2019)."""
    weights = (1 - BETA) / (1 - BETA ** np.maximum(counts, 1))
    return torch.from_numpy(weights / weights.sum() * len(counts)).float()


def ldam_loss(logits: Tensor, labels: Tensor, margins: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the weighted mean cross-entropy after subtracting each class's margin from the label's cosine; a scalar.

    Args:
        logits: (N, C), SCALE times the cosines. labels: (N,). margins: (C,). weights: (C,), or None for equal weights.
    """
    lowered = logits.scatter_add(1, labels[:, None], -SCALE * margins[labels][:, None].to(logits.dtype))
    return cross_entropy(lowered, labels, weight=weights)
