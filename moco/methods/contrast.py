"""What KCL and TSC are to stage 1, with a queue and in the batch: phases, targets, what is said of an epoch."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from moco.encoders import get_encoder, has_batch_norm
from moco.encoders.frozen import freeze_parts
from moco.encoders.memory import recompute_blocks
from moco.methods.base import Method
from moco.methods.flags import TARGET_FLAGS, add_contrast_arguments
from moco.methods.one_point import OnePoint
from moco.methods.target_state import check_entries
from moco.pretrained import check_start, start_from
from moco.targeted import Targeted
from moco.targets.assignment import Assignment
from moco.targets.centroids import describe_facts, target_cosines, target_facts
from moco.targets.choice import choose_targets, target_file
from moco.targets.files import load_targets
from utils.distributed import say
from utils.errors import InputError
from utils.optimizers import FACTOR
from utils.parser import Cases
from utils.run.loop import Phase
from utils.run.state import RunState


class Contrast(Method):
    """KCL; with --targeted KCL for --kcl-epochs, or half of all (rounded down), and TSC for the rest."""

    arguments = (add_contrast_arguments,)
    sizes = {"num_classes": ("class_centroid", 0), "moco_dim": ("class_centroid", 1)}  # noqa: RUF012
    model: Targeted

    def __init__(self, args):
        super().__init__(args)
        self.one_point = OnePoint()

    @classmethod
    def idle(cls, args) -> Cases:
        cases = [] if args.targeted else [("without --targeted", TARGET_FLAGS)]
        return [*cases, *([("with --loss MoCo", ("K",))] if args.loss == "MoCo" else [])]

    def check(self) -> None:
        args = self.args
        if args.init_from:
            check_start(args.init_from, args.arch)
        if args.freeze and not args.init_from:
            raise InputError("--freeze: without --init-from it would keep random weights; leave it out")
        if args.grad_checkpointing and args.compile:
            raise InputError("--grad-checkpointing: torch.compile does not take its blocks; leave it or --compile out")
        if args.loss == "MoCo" and args.targeted:
            raise InputError("--loss MoCo uses no labels, --targeted needs them: leave one of the two out")
        if args.targeted and (args.kcl_epochs or 0) >= args.epochs:
            raise InputError(
                f"--kcl-epochs {args.kcl_epochs}: expected less than --epochs, {args.epochs}; KCL alone: leave "
                "--targeted out"
            )

    def check_files(self, num_classes: int) -> None:
        args, file = self.args, target_file(self.args, num_classes)
        if args.targeted and (args.targets or (not args.resume and file.exists())):  # a checkpoint has its own
            load_targets(file, num_classes, args.moco_dim)

    def phases(self) -> list[Phase]:
        args = self.args
        if not args.targeted:
            return [Phase("KCL", 0, args.epochs)]
        warm_up = args.epochs // 2 if args.kcl_epochs is None else args.kcl_epochs
        return [Phase("KCL", 0, warm_up), Phase("TSC", warm_up, args.epochs - warm_up)]

    def read_state(self, state: RunState) -> None:
        check_entries(state, self.args.num_classes)
        self.before = None

    def build(self, num_classes: int, state: RunState, device: torch.device) -> nn.Module:
        args = self.args
        targets = choose_targets(args, num_classes, state, device) if args.targeted else None
        torch.manual_seed(state.seed)
        shared = {"dim": args.moco_dim, "T": args.moco_t, "mlp": args.mlp, "num_positive": args.K}
        shared |= {"targeted": args.targeted, "tr": args.tr, "tw": args.tw, "loss_form": args.loss_form}
        shared |= {"num_classes": num_classes, "targets": targets, "supervised": args.loss != "MoCo"}
        shared |= {"assignment_interval": args.assignment_interval, "parts": args.accum_steps}
        self.model = self.make(get_encoder(args.arch, args.image_size), shared)
        self.model.seed = state.seed
        self._prepare_encoders(new=not state.source)
        return self.model

    def _prepare_encoders(self, new: bool) -> None:
        """--init-from, of a run that does not go on, whose checkpoint has all weights; --freeze; memory."""
        args, encoders = self.args, self.encoders()
        if args.init_from and new:
            say(f"init: {start_from(encoders, args.init_from, args.arch)}")
        for encoder in encoders:
            freeze_parts(encoder, args.freeze, args.arch)
        if args.grad_checkpointing:
            recompute_blocks(self.model.encoder_q, args.arch)
        if args.accum_steps > 1 and has_batch_norm(self.model.encoder_q):
            say(
                f"note: --accum-steps {args.accum_steps}: {args.arch} has batch norm, which sees each of the "
                f"{args.accum_steps} parts of a step alone: not the numbers of one batch of {self.images_a_step}"
            )

    def make(self, encoder: Callable[..., nn.Module], shared: dict) -> nn.Module:
        """The model. shared: the arguments that all have."""
        raise NotImplementedError

    def restore(self, state: RunState) -> None:
        assignment = state.extra.get("assignment")  # what a stale one was, with --assignment-interval
        self.model.assignment = None if assignment is None else assignment.to(self.model.class_centroid.device)
        self.before = state.extra.get("assignment_before")

    def parameters(self) -> Iterable:
        factor, model = self.args.lr_backbone, self.model
        if factor == 1:
            return model.parameters()
        head = [*model.encoder_q.fc.parameters()]
        rest = [weight for weight in model.parameters() if all(weight is not other for other in head)]
        return [{"params": head}, {"params": rest, FACTOR: factor}]

    def begin_phase(self, name: str, fresh: bool) -> None:
        self.model.targeted = name == "TSC"

    def begin_epoch(self, step: int, goes_on: bool) -> None:
        self.model.step = step
        if not goes_on:
            self.before = self._assignment()  # the targets of an epoch ago

    def shown(self, output) -> dict[str, Tensor]:
        self.one_point.step(output.q)
        return {"loss": output.loss, "loss_class": output.loss_class, "loss_target": output.loss_target}

    def facts(self) -> tuple[dict[str, float | None], str]:
        self.one_point.end_epoch()
        found = target_facts(self.model.class_centroid, self._targets(), self._assignment(), self.before)
        return found, describe_facts(found)

    def extra_state(self) -> dict:
        return {"assignment": self.model.assignment, "assignment_before": self.before}

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
