"""KCL as the code of its own authors trains it, where that differs from `moco.builder.KCL` (docs/differences.md)."""

import torch
from torch import Tensor

from moco.builder import KCL
from moco.losses.positives import RANDOM_INT_BOUND, sum_columns
from moco.losses.queue_loss import QueueLossOutput
from moco.losses.unused_positives import first_columns, kcl_loss, positive_columns
from utils import distributed
from utils.randomness import Stream, to_device, torch_rng


class AuthorsKCL(KCL):
    """KCL without targets, whose positives may be the newest queue entries, with a choice of denominator.

    Args:
        positives: "random", or "first": the `num_positive` newest queue entries of the class. The KCL authors' code
            calls topk on a 0/1 mask; which of the equal entries it returns is not defined by PyTorch.
        unused: queue entries of the class that are not positives: "keep" in the denominator, "drop", or "zero" their
            logit. For the others, see `KCL`; num_positive must be above 0.
    """

    def __init__(self, *args, positives: str = "random", unused: str = "keep", **options):
        super().__init__(*args, **options)
        self.positives, self.unused = positives, unused

    def _choose_positives(self, labels: Tensor) -> tuple[Tensor, None]:
        """Return the queue columns of the positives, (N, k); see `positive_columns`."""
        queue_labels, k = self.queue_labels[0], min(self.num_positive, self.K)
        if self.positives == "first":
            return first_columns(queue_labels, labels, self.queue_ptr, k), None
        rng = torch_rng(self.seed, Stream.POSITIVES, self.step, distributed.rank())
        random_ints = torch.randint(RANDOM_INT_BOUND, (len(labels), k), generator=rng)
        return positive_columns(queue_labels, labels, to_device(random_ints, labels.device)), None

    def _loss(self, q: Tensor, k: Tensor, labels: Tensor, columns: Tensor, _) -> QueueLossOutput:
        if self.unused != "keep":
            return kcl_loss(q, k, self.queue, self.queue_labels[0], labels, columns, self.T, self.unused)
        with torch.autocast(q.device.type, enabled=False):  # only the encoders run in half precision
            positives = sum_columns(self.queue, columns)
        return super()._loss(q, k, labels, positives, None)
