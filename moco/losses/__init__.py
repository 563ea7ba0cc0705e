"""Losses for contrast with a queue and inside the batch, and the selection of positives: pure functions of tensors."""

from moco.losses.blocks import InBatchTerms
from moco.losses.in_batch import in_batch_loss, in_batch_target_loss
from moco.losses.queue import LOSS_FORMS, LossOutput, at_least_float32, contrastive_loss

__all__ = [
    "LOSS_FORMS",
    "InBatchTerms",
    "LossOutput",
    "at_least_float32",
    "contrastive_loss",
    "in_batch_loss",
    "in_batch_target_loss",
]
