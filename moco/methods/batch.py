"""KCL, TSC and SimCLR inside the batch, without a queue."""

import torch
from torch import nn

from moco.encoders import get_encoder
from moco.in_batch import InBatch
from moco.methods.contrast import Contrast
from moco.methods.flags import add_batch_arguments
from moco.targets.choice import choose_targets
from utils import distributed
from utils.errors import InputError
from utils.parser import Cases
from utils.run.state import RunState


class Batch(Contrast):
    """The paper's and the release's for CIFAR."""

    meaning = "with the other views of the batch, one encoder and no queue (the paper on CIFAR)"
    arguments = (*Contrast.arguments, add_batch_arguments)

    @classmethod
    def idle(cls, args) -> Cases:
        if not args.targeted:
            return [*super().idle(args), ("without --targeted", ("only_t",))]
        if args.loss_form == "release":
            return [*super().idle(args), ("with --loss-form release, where --tr is the weight", ("tw",))]
        return [*super().idle(args), ("with --loss-form paper, where --tw is the weight", ("tr", "only_t"))]

    def check(self) -> None:
        super().check()
        args = self.args
        args.loss_form = args.loss_form or "paper"
        if args.sync_bn and not torch.cuda.is_available():
            raise InputError("--sync-bn: PyTorch has it for GPUs alone, and none is here; leave it out")

    def build(self, num_classes: int, state: RunState, device: torch.device) -> nn.Module:
        args = self.args
        targets = choose_targets(args, num_classes, state, device) if args.targeted else None
        torch.manual_seed(state.seed)
        self.model = InBatch(
            get_encoder(args.arch, args.image_size),
            args.moco_dim,
            args.moco_t,
            args.mlp,
            args.K,
            args.targeted,
            args.tr,
            args.tw,
            num_classes=num_classes,
            targets=targets,
            supervised=args.loss != "MoCo",
            loss_form=args.loss_form,
            only_targets=args.only_t,
            unbiased=args.unbiased,
            assignment_interval=args.assignment_interval,
        )
        self.model.seed = state.seed
        if args.sync_bn and distributed.world_size() > 1:
            self.model = nn.SyncBatchNorm.convert_sync_batchnorm(self.model)
        return self.model
