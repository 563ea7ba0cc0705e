"""KCL, TSC and MoCo on a momentum queue, as stage 1 runs them."""

import torch
from torch import Tensor, nn

from moco.builder import KCL
from moco.encoders import get_encoder
from moco.methods.base import Method
from moco.methods.queue_flags import TARGET_FLAGS, add_queue_arguments
from moco.methods.queue_state import check_entries, check_queue, queue_grid
from moco.targets.assignment import Assignment
from moco.targets.centroids import describe_facts, target_cosines, target_facts
from moco.targets.choice import choose_targets, target_file
from moco.targets.files import load_targets
from utils.errors import InputError
from utils.measure.metrics import in_top_k
from utils.run.loop import Phase
from utils.run.state import RunState


class SupervisedContrast(Method):
    """KCL, or with --targeted KCL for the first half of the epochs (rounded down) and TSC for the rest."""

    meaning = "KCL and TSC"
    supervised = True

    add_arguments = staticmethod(add_queue_arguments)

    @classmethod
    def idle(cls, args) -> list[tuple[str, tuple[str, ...]]]:
        return [] if args.targeted else [("without --targeted", TARGET_FLAGS)]

    def check(self) -> None:
        args = self.args
        if args.moco_k % args.batch_size:
            raise InputError(
                f"--moco-k {args.moco_k}: not a multiple of the global batch, --batch-size {args.batch_size}"
            )

    def check_files(self, num_classes: int) -> None:
        args, file = self.args, target_file(self.args, num_classes)
        if args.targeted and (args.targets or (not args.resume and file.exists())):  # a checkpoint has its own
            load_targets(file, num_classes, args.moco_dim)

    def phases(self) -> list[Phase]:
        epochs = self.args.epochs
        if not self.args.targeted:
            return [Phase("KCL", 0, epochs)]
        warm_up = epochs // 2
        return [Phase("KCL", 0, warm_up), Phase("TSC", warm_up, epochs - warm_up)]

    def read_state(self, state: RunState) -> None:
        check_entries(state, self.args.num_classes)
        self.grid, self.before = queue_grid(state, self.args.batch_size), None

    def build(self, num_classes: int, state: RunState, device: torch.device) -> nn.Module:
        args = self.args
        targets = choose_targets(args, num_classes, state, device) if args.targeted else None
        torch.manual_seed(state.seed)
        self.model = KCL(
            get_encoder(args.arch, args.image_size),
            args.moco_dim,
            args.moco_k,
            args.moco_m,
            args.moco_t,
            args.mlp,
            args.K,
            args.targeted,
            args.tr,
            args.sep_t,
            args.tw,
            num_classes=num_classes,
            targets=targets,
            supervised=self.supervised,
            loss_form=args.loss_form,
            assignment_interval=args.assignment_interval,
        )
        self.model.seed = state.seed
        return self.model

    def restore(self, state: RunState) -> None:
        check_queue(self.model, self.grid, state.source)
        assignment = state.extra.get("assignment")  # what a stale one was, with --assignment-interval
        self.model.assignment = None if assignment is None else assignment.to(self.model.queue.device)
        self.before = state.extra.get("assignment_before")

    def encoders(self) -> list[nn.Module]:
        return [self.model.encoder_q, self.model.encoder_k]

    def begin_phase(self, name: str, fresh: bool) -> None:
        self.model.targeted = name == "TSC"
        if self.model.targeted and fresh and self.args.centroid_init == "queue":
            self.model.centroids_from_queue()

    def begin_epoch(self, step: int, goes_on: bool) -> None:
        self.model.step = step
        if not goes_on:
            self.before = self._assignment()  # the targets of an epoch ago

    def shown(self, output) -> dict[str, Tensor]:
        return {
            "loss": output.loss,
            "loss_class": output.loss_class,
            "loss_target": output.loss_target,
            "top1": in_top_k(output.key_rank, 1),
            "top5": in_top_k(output.key_rank, 5),
        }

    def facts(self) -> tuple[dict[str, float | None], str]:
        found = target_facts(self.model.class_centroid, self._targets(), self._assignment(), self.before)
        return found, describe_facts(found)

    def extra_state(self) -> dict:
        return {"queue_grid": self.grid, "assignment": self.model.assignment, "assignment_before": self.before}

    def assigned(self) -> tuple[Tensor, Tensor] | None:
        if not self.model.targeted:
            return None
        centroids, targets, rows = self.model.class_centroid, self._targets(), self._assignment()
        if rows is None:  # of a checkpoint that does not say, as the release's
            rows = Assignment(targets).solve(centroids.cpu()).tolist()
        return targets[rows], target_cosines(centroids, targets, rows)

    def _targets(self) -> Tensor | None:
        """One copy of each, (C, D)."""
        copies = self.model.optimal_target
        return None if copies is None else copies[:: self.model.tr]

    def _assignment(self) -> list[int] | None:
        """Row of each class's target since the last step, None before the first step of TSC."""
        return None if self.model.assignment is None else self.model.assignment.tolist()


class MomentumContrast(SupervisedContrast):
    """MoCo, the baseline without labels."""

    meaning = "the own key is the only positive, labels are not used"
    supervised = False

    @classmethod
    def idle(cls, args) -> list[tuple[str, tuple[str, ...]]]:
        return [*super().idle(args), ("with --loss MoCo", ("K",))]

    def check(self) -> None:
        super().check()
        if self.args.targeted:
            raise InputError("--loss MoCo uses no labels, --targeted needs them: leave one of the two out")
