"""Class centroids, targets and their assignment: the state of TSC, with a queue and in the batch."""

import torch
from torch import Tensor, nn

from moco.targets.assignment import Assignment
from moco.targets.centroids import update_centroids
from moco.targets.files import add_copies, check_targets, remove_copies
from utils.distributed import collectives

# Buffers in the state dict of the authors' code (the code released by the TSC authors). They can be derived from
# other entries and are not stored here.
DERIVABLE = ("optimal_target_unique", "target_labels")


class TargetModel(nn.Module):
    """Base class of models with class centroids and, for TSC, class targets.

    Attributes:
        class_centroid: buffer (C, D), unit vectors.
        optimal_target: buffer (C·r, D), or None.
        targeted: whether the model is in the TSC phase; can be set at any time.
        centroids_in_kcl: whether the KCL phase also updates the centroids, so that TSC starts from them.
        tr: number r of copies of each target.
        seed, step: determine the random draws of a step. Each step increments `step`; set it when resuming.
        assignment_interval: number of steps between target assignments; 0 keeps target y for class y.
        assignment: (C,) row of each class's target in the last TSC step; None before the first one. Set it to None to
            recompute it at the next step.
    """

    class_centroid: Tensor
    optimal_target: Tensor | None
    supervised: bool
    centroids_in_kcl: bool = False

    def __init__(self, targeted: bool, tr: int, assignment_interval: int):
        super().__init__()
        self.targeted, self.tr = targeted, tr
        self.seed, self.step = 0, 0
        self.assignment_interval, self.assignment = assignment_interval, None
        self._solver: Assignment | None = None  # created at the first TSC step

    def _add_targets(self, num_classes: int, dim: int, targets: Tensor | None) -> None:
        """Register random unit centroids and the targets (C, D); raise InputError if the targets are invalid."""
        self.register_buffer("class_centroid", nn.functional.normalize(torch.randn(num_classes, dim), dim=1))
        if targets is not None:
            check_targets(targets, num_classes, dim)
            targets = add_copies(targets, self.tr)
        self.register_buffer("optimal_target", targets)

    @property
    def uses_labels(self) -> bool:
        """Whether a step depends on the labels: always, except in MoCo and SimCLR."""
        return self.supervised or self.uses_centroids

    @property
    def unique_targets(self) -> Tensor | None:
        """The targets without copies, (C, D), or None."""
        return None if self.optimal_target is None else remove_copies(self.optimal_target, self.tr)

    def class_targets(self) -> Tensor | None:
        """Return each class's target in the last TSC step, (C, D). None in KCL and before the first TSC step."""
        return self.unique_targets[self.assignment] if self.targeted and self.assignment is not None else None

    @property
    def uses_centroids(self) -> bool:
        """Whether the steps of the current phase update the class centroids."""
        return self.targeted or self.centroids_in_kcl

    @torch.no_grad()
    def _update_centroids(self, features: Tensor, labels: Tensor) -> None:
        """Update the centroids with the (B, D) features and (B,) labels of the global batch.

        In TSC, every `assignment_interval` steps, this also starts a new target assignment.
        """
        if self.targeted and self.optimal_target is None:
            raise ValueError(
                f"targeted=True requires targets; pass {type(self).__name__}(..., targets=...) of shape (C, D)"
            )
        with torch.autocast(features.device.type, enabled=False):
            self.class_centroid.copy_(update_centroids(self.class_centroid, features, labels))
        collectives.broadcast_tensor(self.class_centroid)  # different GPU types may round, and then assign, differently
        if self.targeted:
            self._start_assignment()

    def _start_assignment(self) -> None:
        if not self.assignment_interval:
            self.assignment = torch.arange(len(self.class_centroid), device=self.class_centroid.device)
        elif self.assignment is None or self.step % self.assignment_interval == 0:
            self._solver = self._solver or Assignment(self.unique_targets)
            self._solver.start(self.class_centroid)
            self.assignment = None  # until the result is available

    def _assigned_targets(self, labels: Tensor) -> Tensor:
        """Return the target of each label's class, (N, D). Waits for the assignment to finish."""
        if self.assignment is None:
            self.assignment = self._solver.result()  # (C,)
        return self.unique_targets[self.assignment[labels]]

    def _load_from_state_dict(self, state_dict, prefix, *args):
        """Load the state dict, with two exceptions.

        The buffers in DERIVABLE are ignored. Targets are loaded only if both the model and the checkpoint have them;
        KCL has none.
        """
        for name in DERIVABLE if self.optimal_target is not None else (*DERIVABLE, "optimal_target"):
            state_dict.pop(prefix + name, None)
        if self.optimal_target is not None:
            state_dict.setdefault(prefix + "optimal_target", self.optimal_target)
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.assignment = self._solver = None  # the targets may have changed
