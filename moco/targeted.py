"""Class centroids, targets, and which class has which: what TSC needs with a queue and in the batch."""

import torch
from torch import Tensor, nn

from moco.targets.assignment import Assignment
from moco.targets.centroids import update_centroids
from moco.targets.files import check_targets
from utils import distributed

# In the release's state dict, but a function of other entries: not stored here.
DERIVABLE = ("optimal_target_unique", "target_labels")


class Targeted(nn.Module):
    """A model with class centroids and, for TSC, targets.

    Buffers: class_centroid (C, D), optimal_target (C·r, D) or None.

    Attributes:
        targeted: whether it is in the TSC phase; may be set at any time.
        tr: r, copies of each target.
        seed, step: the random draws of a step are a function of the two. `step` counts by itself; set it to go on
            elsewhere.
        assignment_interval: steps from one assignment of targets to the next; 0: class y has target y throughout.
        assignment: (C,) the row of each class's target since the last TSC step; None has it solved at the next one.
    """

    class_centroid: Tensor
    optimal_target: Tensor | None

    def __init__(self, targeted: bool, tr: int, assignment_interval: int):
        super().__init__()
        self.targeted, self.tr = targeted, tr
        self.seed, self.step = 0, 0
        self.assignment_interval, self.assignment = assignment_interval, None
        self._solver: Assignment | None = None  # made at the first TSC step

    def _add_targets(self, num_classes: int, dim: int, targets: Tensor | None) -> None:
        """Random unit centroids, and the targets (C, D). Raises InputError: they do not fit, or are no unit vectors."""
        self.register_buffer("class_centroid", nn.functional.normalize(torch.randn(num_classes, dim), dim=1))
        if targets is not None:
            check_targets(targets, num_classes, dim)
            targets = targets.repeat_interleave(self.tr, dim=0)  # row y·r … y·r + r − 1: copies of target y
        self.register_buffer("optimal_target", targets)

    @torch.no_grad()
    def _start_assignment(self, features: Tensor, labels: Tensor) -> None:
        """Move the centroids and, every `assignment_interval` steps, begin to assign the targets anew.

        Args:
            features: (B, D) of the global batch. labels: (B,).
        """
        if self.optimal_target is None:
            raise ValueError(
                f"targeted needs targets: {type(self).__name__}(..., targets=...) of shape (num_classes, dim)"
            )
        with torch.autocast(features.device.type, enabled=False):
            self.class_centroid.copy_(update_centroids(self.class_centroid, features, labels))
        distributed.same_tensor(self.class_centroid)  # GPUs of two kinds may round otherwise, and assign otherwise
        if not self.assignment_interval:
            self.assignment = torch.arange(len(self.class_centroid), device=labels.device)
        elif self.assignment is None or self.step % self.assignment_interval == 0:
            self._solver = self._solver or Assignment(self.optimal_target[:: self.tr])
            self._solver.start(self.class_centroid)
            self.assignment = None  # until it is there

    def _assigned_targets(self, labels: Tensor) -> Tensor:
        """The target of each label's class, (N, D); waits for what is left of the assignment."""
        if self.assignment is None:
            self.assignment = self._solver.result()  # (C,)
        return self.optimal_target[self.assignment[labels] * self.tr]

    def _load_from_state_dict(self, state_dict, prefix, *args):
        """Accept the release's derivable buffers, and targets that only one side has: KCL needs none."""
        for name in DERIVABLE if self.optimal_target is not None else (*DERIVABLE, "optimal_target"):
            state_dict.pop(prefix + name, None)
        if self.optimal_target is not None:
            state_dict.setdefault(prefix + "optimal_target", self.optimal_target)
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.assignment = self._solver = None  # they may be other targets
