"""KCL and TSC on a momentum queue: `KCL.forward` is one training step of the paper."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from moco.encoders import has_batch_norm
from moco.encoders.memory import in_parts
from moco.losses import LOSS_FORMS, at_least_float32, contrastive_loss
from moco.losses.positives import LARGEST_DRAW, Anchors, Chosen, choices
from moco.targeted import Targeted
from moco.targets.centroids import queue_centroids
from utils import distributed
from utils.randomness import Stream, sent, torch_rng


class StepOutput(NamedTuple):
    """What one step gives back.

    loss, loss_class, loss_target: scalars; loss carries the gradient.
    q: (N, D) unit queries of this rank. key_rank: (N,) int64, how many other
    logits exceed the own key's (0 = top-1); None in the batch.
    """

    loss: Tensor
    loss_class: Tensor
    loss_target: Tensor
    q: Tensor
    key_rank: Tensor | None


def unit(features: Tensor) -> Tensor:
    """(N, D) features to unit vectors, in float32 if an autocast encoder gave half precision."""
    return normalize(at_least_float32(features), dim=1)


def deepened(fc: nn.Linear) -> nn.Sequential:
    """The projection head of --mlp: Linear(d, d) and ReLU before the last layer."""
    return nn.Sequential(nn.Linear(fc.in_features, fc.in_features), nn.ReLU(), fc)


class KCL(Targeted):
    """Query and key encoder, queue, centroids and targets.

    Args (the release's names and order):
        base_encoder: `base_encoder(num_classes=dim)` returns a network called with
            images alone, whose last layer is a Linear named `fc`.
        dim: D, feature dimension. K: Q, queue length, a multiple of the global batch.
        m: momentum of the key encoder. T: temperature.
        mlp: put Linear(d, d) and ReLU before `fc`.
        num_positive: k positives drawn from the queue; 0 takes the whole class.
        targeted: start in the TSC phase. `model.targeted` may be set at any time.
        tr: r, copies of each target. sep_t: the target is always a positive, the k
            are drawn from the queue alone. tw: lambda, weight of the target term.
        num_classes: C. targets: (C, D) unit vectors, needed for TSC only.
        supervised: False makes the own key the only positive (MoCo).
        loss_form: "release" or "paper", see `contrastive_loss`.
        assignment_interval: steps from one assignment of targets to the next.
        parts: in which the encoders see a batch, one after the other, see `moco.encoders.memory`.

    The random draws of a step are a function of `seed`, `step` and the rank.

    Raises:
        InputError: targets that do not fit, or are not unit vectors.
        ValueError: a loss form that is none.
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
        if loss_form not in LOSS_FORMS:
            raise ValueError(f"loss_form {loss_form!r}, expected one of {LOSS_FORMS}")
        self.K, self.m, self.T = K, m, T
        self.num_positive, self.supervised, self.loss_form = num_positive, supervised, loss_form
        self.sep_t, self.tw, self.parts = sep_t, tw, parts
        self._kcl_positives, self._tsc_positives = choices(num_positive, K, supervised, sep_t, tr)

        self.encoder_q, self.encoder_k = base_encoder(num_classes=dim), base_encoder(num_classes=dim)
        if mlp:
            self.encoder_q.fc, self.encoder_k.fc = deepened(self.encoder_q.fc), deepened(self.encoder_k.fc)
        self.encoder_k.load_state_dict(self.encoder_q.state_dict())
        self.encoder_k.requires_grad_(False)  # moved by momentum, never by gradient
        self.shuffles = has_batch_norm(self.encoder_k)

        self.register_buffer("queue", normalize(torch.randn(dim, K), dim=0))  # (D, Q)
        self.register_buffer("queue_labels", torch.full((1, K), -1))  # (1, Q), -1 = empty
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))  # next column to fill
        self._add_targets(num_classes, dim, targets)

    def forward(self, im_q: Tensor, im_k: Tensor, labels: Tensor) -> StepOutput:
        """One step: loss of this rank's N images, then the queue takes all ranks' keys.

        Args:
            im_q, im_k: (N, 3, H, W) the two views. labels: (N,) int64.
        """
        q = unit(in_parts(self.encoder_q, im_q, self.parts))  # q = f_q(x) / |f_q(x)|: (N, D)
        all_labels = distributed.gather(labels)  # y of the global batch: (B,)
        with torch.no_grad():
            if self.targeted:
                # centroids c_y: (C, D); the assignment σ is solved beside the keys
                self._start_assignment(distributed.gather(q.detach()), all_labels)
            self._update_key_encoder()  # θ_k ← m θ_k + (1−m) θ_q
            all_k = self._encode_keys(im_k)  # keys k = f_k(x′) / |f_k(x′)| of the global batch: (B, D)
            k = all_k.chunk(distributed.world_size())[distributed.rank()]  # own keys: (N, D)
            drawn, assigned = self._choose_positives(labels)  # sums over each anchor's positives: (N, D), (N,)
        targets = self.optimal_target if self.targeted else None  # t: (C·r, D)
        # The queue as it was (equation 2), in TSC with the targets (equation 4): scalars.
        loss = contrastive_loss(q, k, self.queue, drawn, self.T, targets, assigned, self.tw, self.loss_form)
        self._enqueue(all_k, all_labels)  # the oldest B keys make room: (D, Q)
        self.step += 1
        return StepOutput(loss.loss, loss.loss_class, loss.loss_target, q, loss.key_rank)

    def _update_key_encoder(self) -> None:
        keys, queries = list(self.encoder_k.parameters()), list(self.encoder_q.parameters())
        torch._foreach_lerp_(keys, [p.detach() for p in queries], 1 - self.m)

    def _encode_keys(self, im_k: Tensor) -> Tensor:
        """Unit keys of the global batch, (B, D), in the ranks' order.

        Shuffle-BN: each rank encodes a random share of the global batch, so that a
        query and its key meet different batch-norm statistics. With one process the
        share is the whole batch, and shuffling would change nothing but the order;
        nor would it without batch norm.
        """
        world, rank = distributed.world_size(), distributed.rank()
        if world == 1 or not self.shuffles:
            return distributed.gather(unit(in_parts(self.encoder_k, im_k, self.parts)))
        images = distributed.gather(im_k)  # (B, 3, H, W)
        rng = torch_rng(self.seed, Stream.SHUFFLE, self.step)  # the same on all ranks
        order = sent(torch.randperm(len(images), generator=rng), images.device)  # (B,)
        share = images[order.chunk(world)[rank]]  # (N, 3, H, W)
        shuffled = distributed.gather(unit(in_parts(self.encoder_k, share, self.parts)))  # (B, D)
        return shuffled[order.argsort()]

    @torch.no_grad()
    def centroids_from_queue(self) -> None:
        """Start the centroids at the classes' means in the queue, instead of at random (before TSC)."""
        self.class_centroid.copy_(queue_centroids(self.class_centroid, self.queue, self.queue_labels[0]))

    def _choose_positives(self, labels: Tensor) -> Chosen:
        """The anchors' positives from the queue, and from the targets in TSC."""

        def draw(k: int) -> Tensor:
            rng = torch_rng(self.seed, Stream.POSITIVES, self.step, distributed.rank())
            return sent(torch.randint(LARGEST_DRAW, (len(labels), k), generator=rng), labels.device)  # (N, k)

        choose, target = self._kcl_positives, None
        if self.targeted:
            choose, target = self._tsc_positives, self._assigned_targets(labels)  # t_σ(y): (N, D)
        with torch.autocast(labels.device.type, enabled=False):  # only the encoders run in half precision
            return choose(Anchors(self.queue, self.queue_labels[0], labels, draw, target))

    @torch.no_grad()
    def _enqueue(self, keys: Tensor, labels: Tensor) -> None:
        """Replace the oldest B keys. The pointer stays on the device: no synchronisation."""
        if self.K % len(keys):
            raise ValueError(f"queue length {self.K} is not a multiple of the global batch {len(keys)}")
        columns = (self.queue_ptr + torch.arange(len(keys), device=keys.device)) % self.K  # (B,)
        self.queue[:, columns] = keys.T.to(self.queue.dtype)
        self.queue_labels[0, columns] = labels
        self.queue_ptr.copy_((self.queue_ptr + len(keys)) % self.K)
