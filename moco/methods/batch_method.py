"""KCL, TSC and SimCLR with in-batch contrast (no queue)."""

from collections.abc import Callable

import torch
from torch import nn

from moco.in_batch import InBatchKCL
from moco.methods.contrast_method import ContrastMethod
from utils import distributed
from utils.errors import InputError
from utils.run.state import RunState


class BatchMethod(ContrastMethod):
    """In-batch contrast, used for CIFAR by the paper and by the code released by the TSC authors."""

    loss_form = "paper"
    views_at_once = 2

    def check(self) -> None:
        super().check()
        settings = self.settings
        if settings.targeted and settings.centroid_init == "queue":
            raise InputError("--centroid-init queue: not supported with --contrast batch, which has no queue; use kcl")
        if settings.sync_bn and not torch.cuda.is_available():
            raise InputError("--sync-bn: requires a GPU, and none was found; omit it")

    def build_contrast(self, encoder: Callable[..., nn.Module], model_kwargs: dict, state: RunState) -> nn.Module:
        settings = self.settings
        model = InBatchKCL(encoder, only_targets=settings.only_t, unbiased=settings.unbiased, **model_kwargs)
        synchronised = settings.sync_bn and distributed.world_size() > 1
        return nn.SyncBatchNorm.convert_sync_batchnorm(model) if synchronised else model
