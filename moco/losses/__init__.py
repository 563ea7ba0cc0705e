"""Losses of all methods, and the selection of positives: pure functions of tensors."""

from moco.losses.batch_loss import in_batch_loss, in_batch_target_loss
from moco.losses.blocks import InBatchLossOutput
from moco.losses.one_stage import bcl_loss, log_prior, paco_loss
from moco.losses.queue_loss import LOSS_FORMS, QueueLossOutput, at_least_float32, contrastive_loss

__all__ = [
    "LOSS_FORMS",
    "InBatchLossOutput",
    "QueueLossOutput",
    "at_least_float32",
    "bcl_loss",
    "contrastive_loss",
    "in_batch_loss",
    "in_batch_target_loss",
    "log_prior",
    "paco_loss",
]
