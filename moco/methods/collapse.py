"""Detect the collapse of all features onto one point, where a contrastive loss has no gradient."""

from torch import Tensor

from utils.distributed import log

MEAN_NORM_LIMIT = 0.999  # norm of the mean feature; the features are unit vectors, so it is 1 if all are equal
PATIENCE = 5  # epochs; many runs recover within the first ones
MIN_BATCH_SIZE = 32  # features in a process's batch; a smaller batch may contain a single class
ADVICE = "start a new run with --warmup-epochs, a smaller --lr or a larger --moco-t"


class CollapseDetector:
    """Checks the last step of each epoch, and prints a note if PATIENCE epochs in a row end collapsed.

    Another note is printed if the features separate again later.

    Cause: the gradient of a normalised vector is perpendicular to the vector, so every step makes the vector before
    normalisation longer. Large steps (large --lr, small --moco-t) make it so long in the first epochs that its
    direction no longer changes. With few feature dimensions, all images can then have the same direction, and the loss
    stays at the logarithm of the number of logits.
    """

    def __init__(self):
        self.features: Tensor | None = None
        self.collapsed_epochs = 0

    def step(self, q: Tensor) -> None:
        """Store the features of the last step. q: (N, D) unit vectors."""
        self.features = q.detach()

    def end_epoch(self) -> None:
        if self.features is None or len(self.features) < MIN_BATCH_SIZE:
            return
        mean_norm = float(self.features.float().mean(dim=0).norm())
        was_reported = self.collapsed_epochs >= PATIENCE
        self.collapsed_epochs = self.collapsed_epochs + 1 if mean_norm > MEAN_NORM_LIMIT else 0
        if was_reported and not self.collapsed_epochs:
            log(f"note: the features have separated again (their mean has length {mean_norm:.5f})")
        if self.collapsed_epochs == PATIENCE:
            log(f"note: all features have collapsed onto one point (their mean has length {mean_norm:.5f}); {ADVICE}")
