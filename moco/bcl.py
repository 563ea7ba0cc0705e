"""BCL (balanced contrastive learning, CVPR 2022): one encoder, trained with a classifier and in-batch contrast."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from moco.builder import l2_normalise
from moco.classifier import EncoderClassifier
from moco.losses import bcl_loss
from utils.distributed.collectives import GatherWithGradient, gather


class BCLOutput(NamedTuple):
    """The result of one training step: scalars, and the unit features q (N, D) of this rank's first contrast views."""

    loss: Tensor
    loss_contrast: Tensor
    q: Tensor


class BCL(nn.Module):
    """An encoder with a projection head for contrast, a cosine classifier, and a head that maps class weights.

    Args:
        base_encoder: see `KCL`. dim: feature dimension D. T: temperature.
        counts: (C,) training images per class, as they are sampled.
        ce_weight: weight of the logit-adjusted cross-entropy. contrast_weight: weight of `bcl_loss`.
    """

    def __init__(
        self,
        base_encoder: Callable[..., nn.Module],
        dim: int,
        T: float,
        counts: Tensor,
        ce_weight: float = 1.0,
        contrast_weight: float = 0.35,
    ):
        super().__init__()
        self.T, self.ce_weight, self.contrast_weight = T, ce_weight, contrast_weight
        self.encoder_q = base_encoder(num_classes=dim)
        width = self.encoder_q.fc.in_features
        self.encoder_q.fc, self.prototype_head = _projection(width, dim), _projection(width, dim)
        self.classifier = EncoderClassifier(self.encoder_q, counts, cosine=True)

    def forward(self, im_c: Tensor, im_1: Tensor, im_2: Tensor, labels: Tensor) -> BCLOutput:
        """Compute the loss of this rank's N images; the contrast is that of the global batch of B images.

        Args:
            im_c: (N, 3, H, W), the classifier's view. im_1, im_2: the views that are contrasted. labels: (N,) int64.
        """
        z = l2_normalise(self.encoder_q(torch.cat([im_c, im_1, im_2]))).chunk(3)[1:]  # z = g(f(x)) / |…|: 2 × (N, D)
        class_logits = self.classifier.logits(len(labels))  # scale · cos(f(x), w), of im_c: (N, C)
        loss_ce = self.classifier.loss(class_logits, labels)  # CE(logits + log π, y)
        with torch.autocast(labels.device.type, enabled=False):  # only the encoder runs in half precision
            prototypes = l2_normalise(self.prototype_head(self.classifier.weight))  # g_c(w_c) / |…|: (C, D)
        views = GatherWithGradient.apply(torch.stack(z, dim=1))  # (B, 2, D)
        loss_contrast = bcl_loss(views, gather(labels), prototypes, self.T)
        loss = self.ce_weight * loss_ce + self.contrast_weight * loss_contrast
        return BCLOutput(loss, loss_contrast.detach(), z[0])


def _projection(width: int, dim: int) -> nn.Sequential:
    """Return BCL's projection head: Linear, batch norm, ReLU, Linear."""
    return nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, dim))
