"""PaCo (parametric contrastive learning, ICCV 2021) and GPaCo: a classifier and a queue in one softmax."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from moco.builder import KCL, l2_normalise
from moco.checks import check_batch, check_queue_length
from moco.classifier import EncoderClassifier
from moco.losses import paco_loss
from utils.distributed.collectives import GatherWithGradient, gather


class PaCoOutput(NamedTuple):
    """The result of one training step: a scalar, and the unit features q (N, D) of this rank's first views."""

    loss: Tensor
    q: Tensor


class PaCo(KCL):
    """The encoders and the queue of `KCL`, and a linear classifier whose logits are further columns of the contrast.

    Args:
        base_encoder: see `KCL`. counts: (C,) training images per class, as they are sampled.
        alpha, beta, gamma: see `paco_loss`.
        momentum_keys: encode the keys with the momentum encoder (PaCo). If False, there is no key encoder: one encoder
            processes both views, and both are anchors (GPaCo).
        options: dim, K, m, T, mlp and num_classes of `KCL`.
    """

    def __init__(
        self,
        base_encoder: Callable[..., nn.Module],
        counts: Tensor,
        alpha: float = 0.05,
        beta: float = 1.0,
        gamma: float = 1.0,
        momentum_keys: bool = True,
        **options,
    ):
        super().__init__(base_encoder, **options)
        self.weights, self.momentum_keys = {"alpha": alpha, "beta": beta, "gamma": gamma}, momentum_keys
        if not momentum_keys:
            del self.encoder_k
        self.classifier = EncoderClassifier(self.encoder_q, counts)

    def forward(self, im_q: Tensor, im_k: Tensor, labels: Tensor) -> PaCoOutput:
        """Compute the loss of the global batch of B images, of which this rank passes N; then add keys to the queue.

        Args, Raises: As `KCL.forward`.
        """
        labels = check_batch(im_q, im_k, labels, len(self.class_centroid))
        check_queue_length(self.K, len(labels))
        images = im_q if self.momentum_keys else torch.cat([im_q, im_k])  # the V views that are anchors: (V·N, 3, H, W)
        z = l2_normalise(self.encoder_q(images))  # z = f_q(x) / |f_q(x)|: (V·N, D)
        anchors = self._gather_views(z, len(labels))  # (V·B, D)
        own_logits = self.classifier.logits()  # of this rank: (V·N, C)
        class_logits = self._gather_views(own_logits, len(labels))  # (V·B, C)
        y = gather(labels)  # (B,)
        if self.momentum_keys:
            with torch.no_grad():
                self._update_key_encoder()  # θ_k ← m θ_k + (1−m) θ_q
                keys = self._encode_keys(im_k)  # k = f_k(x′) / |f_k(x′)|: (B, D)
            both_views = torch.cat([anchors, keys])  # (2B, D)
        else:
            both_views, keys = anchors, anchors.detach().chunk(2)[1]
        columns, column_labels = torch.cat([both_views, self.queue.T]), torch.cat([y, y, self.queue_labels[0]])
        # log π: (C,). columns: (2B + Q, D), with the queue before this step's keys. A scalar.
        batch = anchors, y.repeat(len(anchors) // len(y)), class_logits, self.classifier.log_prior
        loss = paco_loss(*batch, columns, column_labels, temperature=self.T, **self.weights)
        with torch.no_grad():
            self.classifier.loss(own_logits, labels)  # for its metrics
        self._enqueue(keys, y)  # replaces the oldest B keys: (D, Q)
        self.step += 1
        return PaCoOutput(loss, z[: len(labels)])

    @staticmethod
    def _gather_views(rows: Tensor, batch_size: int) -> Tensor:
        """Gather (V·N, …) from all ranks, with gradient: all first views (B, …), then all second views."""
        by_image = torch.stack(rows.split(batch_size), dim=1)  # (N, V, …)
        return GatherWithGradient.apply(by_image).transpose(0, 1).flatten(0, 1)
