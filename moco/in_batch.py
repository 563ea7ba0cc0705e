"""KCL and TSC with in-batch contrast (no queue). `InBatchKCL.forward` is one training step of the paper on CIFAR."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from moco.builder import StepOutput, l2_normalise, mlp_head
from moco.checks import check_arguments, check_batch
from moco.encoders.memory import encode_in_microbatches
from moco.losses import InBatchLossOutput, in_batch_loss, in_batch_target_loss
from moco.targeted import TargetModel
from utils.distributed.collectives import GatherWithGradient, gather
from utils.randomness import Stream, torch_rng


class InBatchKCL(TargetModel):
    """A single encoder; each of the 2B views of a batch of B images is an anchor, contrasted with all other views.

    With several processes, the loss is that of the global batch. Each process computes the whole loss with the same
    random draws, which depend only on `seed` and `step`. The encoder is named `encoder_q`, which stage 2 looks for.

    Args (same names as in `moco.builder.KCL`):
        base_encoder, dim, T, mlp, targeted, num_classes, targets, assignment_interval, parts: see `KCL`.
        num_positive: number k of positives sampled from the batch, in addition to the other view; 0 uses the class.
        tr, tw: r and lambda, see loss_form.
        supervised: if False, the other view is the only positive (SimCLR).
        loss_form: form of the TSC loss. "paper": the target of a class is a positive of its images, in a term of
            weight tw. "release" (the code released by the TSC authors): tr copies of each target are appended to both
            views as if they were images of its class. They can be sampled as positives, and they are anchors. A
            larger tr gives the targets more weight.
        only_targets: average over the target anchors only (TSC with "release").
        unbiased: remove images of the anchor's class from the denominator, except the positive in the numerator.

    Raises:
        InputError: If the targets have the wrong shape or are not unit vectors.
        ValueError: As `KCL`.
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
        integers = {"dim": dim, "tr": tr, "num_classes": num_classes, "num_positive": num_positive}
        check_arguments(T, tw, loss_form, parts=parts, assignment_interval=assignment_interval, **integers)
        self.T, self.num_positive, self.supervised, self.parts = T, num_positive, supervised, parts
        self.tw, self.loss_form, self.only_targets, self.unbiased = tw, loss_form, only_targets, unbiased
        self.encoder_q = base_encoder(num_classes=dim)
        if mlp:
            self.encoder_q.fc = mlp_head(self.encoder_q)
        self._add_targets(num_classes, dim, targets)

    def forward(self, im_q: Tensor, im_k: Tensor, labels: Tensor) -> StepOutput:
        """Compute the loss of the global batch of B images; this rank passes N of them.

        Args:
            im_q, im_k: (N, 3, H, W), the two views. labels: (N,) integers in [0, C).

        Raises:
            ValueError, RuntimeError: As `moco.checks.check_batch`, or the model is targeted but not supervised.
        """
        labels = check_batch(im_q, im_k, labels, len(self.class_centroid) if self.uses_labels else None)
        if self.targeted and not self.supervised:
            raise ValueError("targeted=True: needs labels, which supervised=False ignores; use one of them")
        both = torch.cat([im_q, im_k])  # (2N, 3, H, W)
        v = l2_normalise(encode_in_microbatches(self.encoder_q, both, self.parts))  # v = f(x) / |f(x)|: (2N, D)
        views = GatherWithGradient.apply(torch.stack(v.chunk(2), dim=1))  # (B, 2, D)
        y = gather(labels) if self.supervised else torch.arange(len(views), device=labels.device)  # (B,)
        target = None
        if self.uses_centroids:
            self._update_centroids(views.detach().flatten(0, 1), y.repeat_interleave(2))  # c_y: (C, D)
        if self.targeted:
            target = self._assigned_targets(torch.arange(len(self.class_centroid), device=y.device))  # t_σ(c): (C, D)
        loss = self._loss(views, y, target)  # scalars
        self.step += 1
        return StepOutput(*loss, v[: len(im_q)], None)

    def _loss(self, views: Tensor, y: Tensor, target: Tensor | None) -> InBatchLossOutput:
        """Return the KCL loss, or the TSC loss if `target` (C, D) is given. Views: (B, 2, D), labels y: (B,)."""
        rng = torch_rng(self.seed, Stream.POSITIVES, self.step)
        options = {"num_positive": self.num_positive, "temperature": self.T, "unbiased": self.unbiased}
        if target is not None:
            options |= {"targets": target, "target_class": torch.arange(len(target), device=y.device)}
        if target is not None and self.loss_form == "paper":
            return in_batch_target_loss(views, y, target_weight=self.tw, **options, generator=rng)
        if target is not None:
            options |= {"target_repeat": self.tr, "anchors": "targets" if self.only_targets else "all"}
        loss = in_batch_loss(views, y, **options, generator=rng)
        return InBatchLossOutput(loss, loss, torch.zeros_like(loss))
