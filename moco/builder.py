"""KCL and TSC with a momentum queue. `KCL.forward` is one training step of the paper.

"The authors' code" is the code released by the authors of TSC.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from moco.checks import check_arguments, check_batch, check_last_layer, check_queue_length
from moco.encoders import has_batch_norm
from moco.encoders.memory import encode_in_microbatches
from moco.losses import QueueLossOutput, at_least_float32, contrastive_loss
from moco.losses.positives import RANDOM_INT_BOUND, PositiveSum, all_positives, sample_positives
from moco.targeted import TargetModel
from moco.targets.centroids import queue_centroids
from utils import distributed
from utils.distributed import collectives
from utils.randomness import Stream, to_device, torch_rng


class StepOutput(NamedTuple):
    """The result of one training step.

    Attributes:
        loss, loss_class, loss_target: scalars; only loss carries a gradient.
        q: (N, D) unit queries of this rank.
        key_rank: (N,) int64, the number of other logits larger than that of the own key
            (0 = top-1). None for in-batch contrast.
    """

    loss: Tensor
    loss_class: Tensor
    loss_target: Tensor
    q: Tensor
    key_rank: Tensor | None


def l2_normalise(features: Tensor) -> Tensor:
    """Normalise (N, D) features to unit length. Half precision, from an encoder under autocast, becomes float32."""
    return normalize(at_least_float32(features), dim=1)


def mlp_head(encoder: nn.Module) -> nn.Sequential:
    """Return the projection head of --mlp: Linear(d, d) and ReLU, followed by the encoder's last layer, `fc`."""
    fc = check_last_layer(encoder)
    return nn.Sequential(nn.Linear(fc.in_features, fc.in_features), nn.ReLU(), fc)


class KCL(TargetModel):
    """Query and key encoder, queue, class centroids and class targets.

    The random draws of a step depend only on `seed`, `step` and the rank.

    Args (names and order of the authors' code):
        base_encoder: `base_encoder(num_classes=dim)` returns a network that is called with
            images only, and whose last layer is a Linear named `fc`.
        dim: feature dimension D. K: queue length Q, a multiple of the global batch.
        m: momentum of the key encoder. T: temperature.
        mlp: insert Linear(d, d) and ReLU before `fc`.
        num_positive: number k of positives sampled from the queue; 0 uses the whole class.
        targeted: start in the TSC phase. `model.targeted` can be set at any time.
        tr: number r of copies of each target. sep_t: always use the target as a positive, and
            sample the k positives from the queue only. tw: weight lambda of the target term.
        num_classes: C. targets: (C, D) unit vectors, needed for TSC only.
        supervised: if False, the own key is the only positive (MoCo).
        loss_form: "release" or "paper", see `contrastive_loss`.
        assignment_interval: number of steps between target assignments.
        parts: number of micro-batches in which the encoders process a batch, see `moco.encoders.memory`.

    Raises:
        InputError: If the targets have the wrong shape or are not unit vectors.
        ValueError: If another argument is outside its range, or mlp=True and the network has no Linear named `fc`.
    """

    def __init__(
        self,
        base_encoder: Callable[..., nn.Module],
        dim: int = 128,
        K: int = 65536,
        m: float = 0.999,
        T: float = 0.07,
        mlp: bool = False,
        num_positive: int = 6,
        targeted: bool = False,
        tr: int = 1,
        sep_t: bool = False,
        tw: float = 1.0,
        *,
        num_classes: int = 1000,
        targets: Tensor | None = None,
        supervised: bool = True,
        loss_form: str = "release",
        assignment_interval: int = 1,
        parts: int = 1,
    ):
        super().__init__(targeted, tr, assignment_interval)
        integers = {"dim": dim, "K": K, "tr": tr, "num_classes": num_classes, "num_positive": num_positive}
        check_arguments(T, tw, loss_form, m, parts=parts, assignment_interval=assignment_interval, **integers)
        self.K, self.m, self.T = K, m, T
        self.num_positive, self.supervised, self.loss_form = num_positive, supervised, loss_form
        self.sep_t, self.tw, self.parts = sep_t, tw, parts

        self.encoder_q, self.encoder_k = base_encoder(num_classes=dim), base_encoder(num_classes=dim)
        if mlp:
            self.encoder_q.fc, self.encoder_k.fc = mlp_head(self.encoder_q), mlp_head(self.encoder_k)
        self.encoder_k.load_state_dict(self.encoder_q.state_dict())
        self.encoder_k.requires_grad_(False)  # updated by momentum, never by a gradient
        self.uses_shuffle_bn = has_batch_norm(self.encoder_k)

        self.register_buffer("queue", normalize(torch.randn(dim, K), dim=0))  # (D, Q)
        self.register_buffer("queue_labels", torch.full((1, K), -1))  # (1, Q), -1 = empty
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))  # next column to fill
        self._add_targets(num_classes, dim, targets)

    def forward(self, im_q: Tensor, im_k: Tensor, labels: Tensor) -> StepOutput:
        """Compute the loss of this rank's N images, then add the keys of all ranks to the queue.

        Args:
            im_q, im_k: (N, 3, H, W), the two views. labels: (N,) integers in [0, C).

        Raises:
            ValueError, RuntimeError: As `moco.checks.check_batch`, or K is not a multiple of the global batch.
        """
        labels = check_batch(im_q, im_k, labels, len(self.class_centroid) if self.uses_labels else None)
        check_queue_length(self.K, len(labels))
        q = l2_normalise(encode_in_microbatches(self.encoder_q, im_q, self.parts))  # q = f_q(x) / |f_q(x)|: (N, D)
        all_labels = collectives.gather(labels)  # y of the global batch: (B,)
        with torch.no_grad():
            if self.uses_centroids:
                # centroids c_y: (C, D); in TSC, the assignment σ is solved while the keys are encoded
                self._update_centroids(collectives.gather(q.detach()), all_labels)
            self._update_key_encoder()  # θ_k ← m θ_k + (1−m) θ_q
            all_k = self._encode_keys(im_k)  # keys k = f_k(x′) / |f_k(x′)| of the global batch: (B, D)
            k = all_k.chunk(distributed.world_size())[distributed.rank()]  # own keys: (N, D)
            # PositiveSum of each anchor, sum (N, D) and number (N,): of the queue, and of the targets (None in KCL)
            queue_positives, target_positives = self._choose_positives(labels)
        # Uses the queue before this step's keys (equation 2), plus the targets in TSC (equation 4). Scalars.
        loss = self._loss(q, k, labels, queue_positives, target_positives)
        self._enqueue(all_k, all_labels)  # replaces the oldest B keys: (D, Q)
        self.step += 1
        return StepOutput(loss.loss, loss.loss_class, loss.loss_target, q, loss.key_rank)

    def _loss(
        self, q: Tensor, k: Tensor, labels: Tensor, queue_positives: PositiveSum, target_positives: PositiveSum | None
    ) -> QueueLossOutput:
        targets = self.optimal_target if self.targeted else None  # t: (C·r, D)
        return contrastive_loss(
            q, k, self.queue, queue_positives, self.T, targets, target_positives, self.tw, self.loss_form
        )

    @torch.no_grad()
    def fill_queue(self, im_k: Tensor, labels: Tensor) -> None:
        """Replace the oldest B entries of the queue with keys of this rank's N images and those of the other ranks."""
        check_queue_length(self.K, len(labels))
        self._enqueue(self._encode_keys(im_k), collectives.gather(labels))

    def _update_key_encoder(self) -> None:
        keys, queries = list(self.encoder_k.parameters()), list(self.encoder_q.parameters())
        torch._foreach_lerp_(keys, [p.detach() for p in queries], 1 - self.m)

    def _encode_keys(self, im_k: Tensor) -> Tensor:
        """Return the unit keys of the global batch, (B, D), in the order of the ranks.

        Shuffle-BN (MoCo): each rank encodes N random images of the global batch, so that a query
        and its key see different batch-norm statistics. With one process, or without batch norm,
        shuffling would change only the order and is skipped.
        """
        world, rank = distributed.world_size(), distributed.rank()
        if world == 1 or not self.uses_shuffle_bn:
            return collectives.gather(l2_normalise(encode_in_microbatches(self.encoder_k, im_k, self.parts)))
        images = collectives.gather(im_k)  # (B, 3, H, W)
        rng = torch_rng(self.seed, Stream.SHUFFLE, self.step)  # same on all ranks
        order = to_device(torch.randperm(len(images), generator=rng), images.device)  # (B,)
        own_images = images[order.chunk(world)[rank]]  # (N, 3, H, W)
        shuffled = collectives.gather(
            l2_normalise(encode_in_microbatches(self.encoder_k, own_images, self.parts))
        )  # (B, D)
        return shuffled[order.argsort()]

    @torch.no_grad()
    def init_centroids_from_queue(self) -> None:
        """Set the centroids to the class means of the queue, instead of random vectors. Call it before TSC starts."""
        self.class_centroid.copy_(queue_centroids(self.class_centroid, self.queue, self.queue_labels[0]))

    def _choose_positives(self, labels: Tensor) -> tuple[PositiveSum, PositiveSum | None]:
        """Choose the positives of the anchors: from the queue, and in TSC also from the targets."""
        queue, queue_labels = self.queue, self.queue_labels[0]
        target = self._assigned_targets(labels) if self.targeted else None  # t_σ(y): (N, D)
        always_target = self.targeted and (self.sep_t or self.num_positive == 0)
        copies = self.tr if self.targeted and not always_target else 0  # sampled together with the queue
        with torch.autocast(labels.device.type, enabled=False):  # only the encoders run in half precision
            if self.supervised and self.num_positive == 0:  # SupCon: the whole class
                from_queue, from_targets = all_positives(queue, queue_labels, labels), None
            elif not self.supervised:  # MoCo: the own key only
                none = PositiveSum(queue.new_zeros(len(labels), len(queue)), queue.new_zeros(len(labels)))
                from_queue, from_targets = none, none
            else:
                k = min(self.num_positive, self.K + copies)
                rng = torch_rng(self.seed, Stream.POSITIVES, self.step, distributed.rank())
                random_ints = torch.randint(RANDOM_INT_BOUND, (len(labels), k), generator=rng)  # (N, k)
                random_ints = to_device(random_ints, labels.device)
                from_queue, from_targets = sample_positives(queue, queue_labels, labels, random_ints, target, copies)
            if always_target:
                from_targets = PositiveSum(self.tr * target, target.new_full(labels.shape, self.tr))
        return from_queue, from_targets if self.targeted else None

    @torch.no_grad()
    def _enqueue(self, keys: Tensor, labels: Tensor) -> None:
        """Replace the oldest B keys. Keys that are not finite are not stored, as they would make later losses NaN.

        The pointer stays on the device, which avoids a synchronisation.
        """
        columns = (self.queue_ptr + torch.arange(len(keys), device=keys.device)) % self.K  # (B,)
        finite = keys.isfinite().all(dim=1)  # (B,)
        self.queue[:, columns] = keys.T.to(self.queue.dtype).where(finite, self.queue[:, columns])
        self.queue_labels[0, columns] = labels.where(finite, self.queue_labels[0, columns])
        self.queue_ptr.copy_((self.queue_ptr + len(keys)) % self.K)
