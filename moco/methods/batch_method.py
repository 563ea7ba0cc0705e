"""KCL, TSC and SimCLR with in-batch contrast (no queue)."""

from collections.abc import Callable

import torch
from torch import nn

from moco.in_batch import InBatchKCL
from moco.methods.contrast_method import ContrastMethod
from moco.methods.method_flags import add_batch_arguments
from utils import distributed
from utils.errors import InputError
from utils.parser import FlagConditions


class BatchMethod(ContrastMethod):
    """In-batch contrast, used for CIFAR by the paper and by the code released by the TSC authors."""

    help = "other images of the batch (the paper on CIFAR)"
    argument_adders = (*ContrastMethod.argument_adders, add_batch_arguments)

    @classmethod
    def ignored_flags(cls, args) -> FlagConditions:
        if not args.targeted:
            return [*super().ignored_flags(args), ("without --targeted", ("only_t",))]
        if args.loss_form == "release":
            return [*super().ignored_flags(args), ("with --loss-form release, where --tr is the weight", ("tw",))]
        return [*super().ignored_flags(args), ("with --loss-form paper, where --tw is the weight", ("tr", "only_t"))]

    def check(self) -> None:
        super().check()
        args = self.args
        args.loss_form = args.loss_form or "paper"
        if args.sync_bn and not torch.cuda.is_available():
            raise InputError("--sync-bn: requires a GPU, and none was found; omit it")

    def build_contrast(self, encoder: Callable[..., nn.Module], model_kwargs: dict) -> nn.Module:
        args = self.args
        model = InBatchKCL(encoder, only_targets=args.only_t, unbiased=args.unbiased, **model_kwargs)
        synchronised = args.sync_bn and distributed.world_size() > 1
        return nn.SyncBatchNorm.convert_sync_batchnorm(model) if synchronised else model
