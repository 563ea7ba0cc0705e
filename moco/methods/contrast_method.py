"""KCL and TSC as methods of stage 1, with a queue or in the batch: phases, targets and epoch metrics."""

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from moco.classifier import add_classifier
from moco.encoders import get_encoder
from moco.methods.base import Method
from moco.methods.checkpoint_entries import check_assignments
from moco.methods.encoder_method import EncoderMethod
from moco.targeted import TargetModel
from moco.targets.assignment import Assignment
from moco.targets.centroids import format_target_metrics, target_cosines, target_metrics
from moco.targets.files import load_targets
from moco.targets.source import select_targets, target_file
from utils.errors import InputError
from utils.run.loop import Phase
from utils.run.state import RunState


class ContrastMethod(EncoderMethod):
    """KCL, or with --targeted: KCL for --kcl-epochs (default: half of the epochs, rounded down), then TSC.

    SupCon and MoCo are settings of KCL, and their phase is also called "KCL".
    """

    stored_sizes = {"num_classes": ("class_centroid", 0), "moco_dim": ("class_centroid", 1)}  # noqa: RUF012
    model: TargetModel

    def check(self) -> None:
        super().check()
        settings = self.settings
        if settings.loss == "MoCo" and settings.targeted:
            raise InputError("--loss MoCo: ignores labels, but --targeted needs them; omit one of them")
        if settings.targeted and (settings.kcl_epochs or 0) >= settings.epochs:
            raise InputError(
                f"--kcl-epochs {settings.kcl_epochs}: expected less than --epochs {settings.epochs}; to train "
                "only KCL, omit --targeted"
            )
        if settings.targeted and settings.centroid_init == "kcl" and not self.phases()[0].epochs:
            raise InputError("--centroid-init kcl: the KCL phase has no epochs; increase --kcl-epochs or --epochs")

    def check_files(self, num_classes: int) -> None:
        settings, file, self.num_classes = self.settings, target_file(self.settings, num_classes), num_classes
        if settings.targeted and (
            settings.targets or (not settings.resume and file.exists())
        ):  # a checkpoint contains its targets
            load_targets(file, num_classes, settings.moco_dim)

    def with_outputs(self, folder: Path) -> Method:
        targets = self.settings.targets
        if self.settings.targeted and not targets and not target_file(self.settings, self.num_classes).exists():
            return type(self)(Namespace(**vars(self.settings) | {"targets": str(folder / "targets.npy")}))
        return self

    def phases(self) -> list[Phase]:
        settings = self.settings
        if not settings.targeted:
            return [Phase("KCL", 0, settings.epochs)]
        kcl_epochs = settings.epochs // 2 if settings.kcl_epochs is None else settings.kcl_epochs
        return [Phase("KCL", 0, kcl_epochs), Phase("TSC", kcl_epochs, settings.epochs - kcl_epochs)]

    @property
    def trains_classifier(self) -> bool:
        return self.settings.joint > 0

    def check_extra_state(self, state: RunState, num_classes: int) -> None:
        check_assignments(state, num_classes)
        self.previous_assignment = None

    def build(self, num_classes: int, state: RunState, device: torch.device) -> nn.Module:
        settings = self.settings
        targets = select_targets(settings, num_classes, state, device) if settings.targeted else None
        torch.manual_seed(state.seed)
        model_kwargs = {"dim": settings.moco_dim, "T": settings.moco_t, "mlp": settings.mlp, "num_positive": settings.K}
        model_kwargs |= {
            "targeted": settings.targeted,
            "tr": settings.tr,
            "tw": settings.tw,
            "loss_form": settings.loss_form,
        }
        model_kwargs |= {"num_classes": num_classes, "targets": targets, "supervised": settings.loss != "MoCo"}
        model_kwargs |= {"assignment_interval": settings.assignment_interval, "parts": settings.accum_steps}
        self.model = self.build_contrast(get_encoder(settings.arch, settings.image_size), model_kwargs, state)
        self.model.seed = state.seed
        self.model.centroids_in_kcl = settings.targeted and settings.centroid_init == "kcl"
        if settings.joint:
            counts = self.sampled_counts(state)
            self.classifier = add_classifier(self.model, counts, settings.joint, settings.joint_classifier)
        self.prepare_encoders(new=not state.source)
        return self.model

    def build_contrast(self, encoder: Callable[..., nn.Module], model_kwargs: dict, state: RunState) -> nn.Module:
        """Build the model. model_kwargs: keyword arguments of KCL and of InBatchKCL. state: has the class counts."""
        raise NotImplementedError

    def load_extra_state(self, state: RunState) -> None:
        assignment = state.extra.get("assignment")  # still in use with --assignment-interval > 1
        self.model.assignment = None if assignment is None else assignment.to(self.model.class_centroid.device)
        self.previous_assignment = state.extra.get("assignment_before")

    def begin_phase(self, name: str, fresh: bool) -> None:
        self.model.targeted = name == "TSC"

    def begin_epoch(self, step: int, resumed: bool) -> None:
        self.model.step = step
        if not resumed:
            self.previous_assignment = self._assignment()  # the assignment of the previous epoch

    def step_metrics(self, output) -> dict[str, Tensor]:
        metrics = {"loss": output.loss, "loss_class": output.loss_class, "loss_target": output.loss_target}
        return metrics | (self.classifier.metrics if self.classifier else {})

    def epoch_metrics(self) -> tuple[dict[str, float | None], str]:
        metrics = target_metrics(
            self.model.class_centroid, self.model.unique_targets, self._assignment(), self.previous_assignment
        )
        return metrics, format_target_metrics(metrics)

    def extra_state(self) -> dict:
        return {"assignment": self.model.assignment, "assignment_before": self.previous_assignment}

    def class_targets_and_cosines(self) -> tuple[Tensor, Tensor] | None:
        if not self.model.targeted:
            return None
        centroids, targets, rows = self.model.class_centroid, self.model.unique_targets, self._assignment()
        if rows is None:  # checkpoints of the code released by the TSC authors contain no assignment
            rows = Assignment(targets).solve(centroids.cpu()).tolist()
        return targets[rows], target_cosines(centroids, targets, rows)

    def _assignment(self) -> list[int] | None:
        """Return the row of each class's target after the last step, or None before the first step of TSC."""
        return None if self.model.assignment is None else self.model.assignment.tolist()
