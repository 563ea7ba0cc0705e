"""Heads that are trained on random views: the modules that become `fc`, and LDAM's loss.

To add a head, add a function here and a row to HEADS.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from moco.heads.classifiers import CosineClassifier, linear_classifier
from moco.heads.ldam import DEFERRED, SCALE, effective_weights, ldam_loss, ldam_margins


def build_linear(width: int, counts: np.ndarray) -> nn.Module:
    """Build the linear probe of the TSC authors' code: weights from N(0, 0.01²), bias 0."""
    return linear_classifier(torch.empty(len(counts), width).normal_(std=0.01), torch.zeros(len(counts)))


def build_ldam(width: int, counts: np.ndarray) -> nn.Module:
    """Build LDAM's cosine classifier: only the directions are trained, scale and bias are fixed."""
    fc = CosineClassifier(normalize(torch.empty(len(counts), width).uniform_(-1, 1), dim=1), SCALE)
    fc.scale.requires_grad_(False)
    fc.bias.requires_grad_(False)
    return fc


def build_ldam_loss(counts: np.ndarray, epochs: int, device: torch.device) -> Callable[[Tensor, Tensor, int], Tensor]:
    margins, weights = ldam_margins(counts).to(device), effective_weights(counts).to(device)

    def loss(logits: Tensor, labels: Tensor, epoch: int) -> Tensor:
        return ldam_loss(logits, labels, margins, weights if epoch >= int(DEFERRED * epochs) else None)

    return loss
