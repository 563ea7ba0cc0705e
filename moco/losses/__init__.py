"""The losses: pure functions of tensors, with a queue and in the batch; and which entries are an anchor's positives."""

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
