"""Whether all features have fallen onto one point, where a contrastive loss has no gradient left."""

from torch import Tensor

from utils.distributed import say

LENGTH = 0.999  # of the mean of unit features, which is the mean of their cosines to it
FEWEST = 32  # features of a process's batch: of fewer a single class may be all there is
ADVICE = "start anew with --warmup-epochs, a smaller --lr or a larger --moco-t, which few dimensions need"


class OnePoint:
    """Watches the last step of each epoch, and says it once if two in a row end so.

    How it comes about: the gradient of a normalised vector is perpendicular to it, so every step makes the vector
    before normalisation longer. Steps that are large, as --lr over --moco-t, make it so long in the first epochs that
    its direction no longer turns. With few dimensions all images then have the same one, and the loss stays at the
    logarithm of the number of its logits.
    """

    def __init__(self):
        self.features: Tensor | None = None
        self.epochs = 0

    def step(self, q: Tensor) -> None:
        """q: (N, D) unit."""
        self.features = q.detach()

    def end_epoch(self) -> None:
        if self.features is None or len(self.features) < FEWEST:
            return
        length = float(self.features.float().mean(dim=0).norm())
        self.epochs = self.epochs + 1 if length > LENGTH else 0
        if self.epochs == 2:
            say(f"note: all features have fallen onto one point (their mean has length {length:.5f}): {ADVICE}")
