"""KCL and TSC inside the batch, without a queue: `InBatch.forward` is one training step of the paper on CIFAR."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from moco.builder import StepOutput, deepened, unit
from moco.encoders.memory import in_parts
from moco.losses import LOSS_FORMS, InBatchTerms, in_batch_loss, in_batch_target_loss
from moco.targeted import Targeted
from utils.distributed import GatherWithGradient, gather
from utils.randomness import Stream, torch_rng


class InBatch(Targeted):
    """One encoder: each of a batch's 2N views is an anchor, contrasted with all the others.

    Args (names as `moco.builder.KCL`'s, where they mean the same):
        base_encoder, dim, T, mlp, targeted, num_classes, targets, assignment_interval, parts: as there.
        num_positive: k positives drawn from the batch, besides the other view; 0 takes the whole class.
        tr, tw: r and lambda, see loss_form.
        supervised: False makes the other view the only positive (SimCLR).
        loss_form: of TSC. "paper": each class's target is a positive of its images, its term weighted with tw.
            "release": tr copies of each target stand in each view as images of the class do, drawn and anchors
            themselves; their number is their weight.
        only_targets: the mean over the anchors that are targets alone (TSC, "release").
        unbiased: images of the anchor's class leave the denominator, but for the positive in the numerator.

    Under several processes the batch is that of all: each computes the whole loss, from the same draws, which are a
    function of `seed` and `step`. The encoder is `encoder_q`, the name by which stage 2 finds it.

    Raises:
        InputError: targets that do not fit, or are not unit vectors.
        ValueError: a loss form that is none.
    """

    def __init__(
        self,
        base_encoder: Callable[..., nn.Module],
        dim: int = 128,
        T: float = 0.07,
        mlp: bool = False,
        num_positive: int = 6,
        targeted: bool = False,
        tr: int = 1,
        tw: float = 1.0,
        *,
        num_classes: int = 1000,
        targets: Tensor | None = None,
        supervised: bool = True,
        loss_form: str = "paper",
        only_targets: bool = False,
        unbiased: bool = False,
        assignment_interval: int = 1,
        parts: int = 1,
    ):
        super().__init__(targeted, tr, assignment_interval)
        if loss_form not in LOSS_FORMS:
            raise ValueError(f"loss_form {loss_form!r}, expected one of {LOSS_FORMS}")
        self.T, self.num_positive, self.supervised, self.parts = T, num_positive, supervised, parts
        self.tw, self.loss_form, self.only_targets, self.unbiased = tw, loss_form, only_targets, unbiased
        self.encoder_q = base_encoder(num_classes=dim)
        if mlp:
            self.encoder_q.fc = deepened(self.encoder_q.fc)
        self._add_targets(num_classes, dim, targets)

    def forward(self, im_q: Tensor, im_k: Tensor, labels: Tensor) -> StepOutput:
        """One step: the loss of the global batch of B images, of which N are this rank's.

        Args:
            im_q, im_k: (N, 3, H, W) the two views. labels: (N,) int64.
        """
        both = torch.cat([im_q, im_k])  # (2N, 3, H, W)
        v = unit(in_parts(self.encoder_q, both, self.parts))  # v = f(x) / |f(x)|: (2N, D)
        views = GatherWithGradient.apply(torch.stack(v.chunk(2), dim=1))  # (B, 2, D)
        y = gather(labels) if self.supervised else torch.arange(len(views), device=labels.device)  # (B,)
        target = None
        if self.targeted:
            self._start_assignment(views.detach().flatten(0, 1), y.repeat_interleave(2))  # centroids c_y: (C, D)
            target = self._assigned_targets(torch.arange(len(self.class_centroid), device=y.device))  # t_σ(c): (C, D)
        loss = self._loss(views, y, target)  # scalars
        self.step += 1
        return StepOutput(*loss, v[: len(im_q)], None)

    def _loss(self, views: Tensor, y: Tensor, target: Tensor | None) -> InBatchTerms:
        """KCL's loss, and TSC's where the classes have targets."""
        rng = torch_rng(self.seed, Stream.POSITIVES, self.step)
        options = {"num_positive": self.num_positive, "temperature": self.T, "unbiased": self.unbiased}
        if target is not None:
            options |= {"targets": target, "target_class": torch.arange(len(target), device=y.device)}
        if target is not None and self.loss_form == "paper":
            return in_batch_target_loss(views, y, target_weight=self.tw, **options, generator=rng)
        if target is not None:
            options |= {"target_repeat": self.tr, "anchors": "targets" if self.only_targets else "all"}
        loss = in_batch_loss(views, y, **options, generator=rng)
        return InBatchTerms(loss, loss, torch.zeros_like(loss))
