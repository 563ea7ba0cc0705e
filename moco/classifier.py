"""Classifiers that are trained together with an encoder, in one stage."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear, normalize

from moco.builder import l2_normalise
from moco.losses import at_least_float32, log_prior
from moco.targeted import TargetModel
from utils.measure.metrics import in_top_k, rank_of_label

COSINE_SCALE = 30.0  # of BCL's classifier on ImageNet-LT


class JointClassifier(nn.Module):
    """Base class of classifiers whose balanced-softmax loss is part of a model's loss.

    The gradient reaches the encoder, unlike with `OnlineProbe`. A subclass defines `forward`, which maps features to
    logits, and stores the features of the encoder's latest images in `features`, with a hook.

    Args:
        counts: (C,) training images per class, as they are sampled: equal numbers for class-balanced batches.

    Attributes:
        metrics: cross-entropy (`loss_classifier`) and top-1 accuracy in percent (`classifier`) of the last step.
        is_ready: whether `forward` can be called.
    """

    is_ready = True

    def __init__(self, counts: Tensor):
        super().__init__()
        self.register_buffer("log_prior", log_prior(counts).float(), persistent=False)
        self.features, self.metrics = None, {}

    def logits(self, count: int | None = None) -> Tensor:
        """Return logits (N, C) of the encoder's latest images or the first `count`, and clear the stored features."""
        features, self.features = self.features[:count], None  # releases the graph after the backward pass
        return self(features)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the balanced-softmax cross-entropy of logits (V·N, C) with labels (N,), a scalar.

        The logits are those of V views of each image: all first views, then all second views.
        """
        labels = labels.repeat(len(logits) // len(labels))
        loss = cross_entropy(logits + self.log_prior, labels)
        self.metrics = {
            "loss_classifier": loss.detach(),
            "classifier": in_top_k(rank_of_label(logits.detach(), labels), 1),
        }
        return loss


class EncoderClassifier(JointClassifier):
    """A linear or cosine classifier on the input of an encoder's last layer, the features that stage 2 uses.

    Args:
        encoder: network whose last layer is called `fc`.
        counts: see `JointClassifier`.
        cosine: use scale · cos(z, w_c) without bias, instead of z·w_c + b_c.
    """

    def __init__(self, encoder: nn.Module, counts: Tensor, cosine: bool = False):
        super().__init__(counts)
        width = next(layer.in_features for layer in encoder.fc.modules() if isinstance(layer, nn.Linear))
        weight = torch.zeros(len(counts), width)
        self.weight = nn.Parameter(normalize(weight.uniform_(-1, 1), dim=1) if cosine else weight)
        if cosine:
            self.register_buffer("scale", torch.tensor(COSINE_SCALE))
        else:
            self.bias = nn.Parameter(torch.zeros(len(counts)))
        self.cosine = cosine
        encoder.fc.register_forward_pre_hook(self._store_features)

    def _store_features(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.features = inputs[0]  # (N, d) of the encoder's latest images, with their graph

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits, (N, C) in at least float32, of features (N, d)."""
        with torch.autocast(features.device.type, enabled=False):
            z = at_least_float32(features)
            if self.cosine:
                return self.scale * linear(normalize(z, dim=1), normalize(self.weight, dim=1))
            return linear(z, self.weight, self.bias)


class TargetClassifier(JointClassifier):
    """The targets of TSC as a fixed classifier of the projected features: the logit of class c is q·t_c / T.

    q is the unit feature after the projection head, and t_c the target assigned to class c. T is the temperature of the
    contrastive loss, so a logit is the entry of that target in the softmax of TSC. The classifier has no parameters and
    stores nothing in a checkpoint, which contains the targets and their assignment.

    Args:
        encoder: network whose last layer is called `fc`, the projection head.
        counts: see `JointClassifier`.
        temperature: T.
        class_targets: returns the target of each class, (C, D), or None before TSC starts.
    """

    def __init__(
        self, encoder: nn.Module, counts: Tensor, temperature: float, class_targets: Callable[[], Tensor | None]
    ):
        super().__init__(counts)
        self.temperature, self.class_targets = temperature, class_targets
        encoder.fc.register_forward_hook(self._store_features)

    @property
    def is_ready(self) -> bool:
        return self.class_targets() is not None

    def _store_features(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.features = output  # (N, D) of the encoder's latest images, with their graph

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits, (N, C) in at least float32, of projected features (N, D), which need not be normalised."""
        with torch.autocast(features.device.type, enabled=False):
            q = l2_normalise(features)
            return linear(q, self.class_targets().to(q.dtype)) / self.temperature


def add_classifier(model: TargetModel, counts: Tensor, weight: float, kind: str = "linear") -> JointClassifier:
    """Add a classifier to a model. The model's loss then includes `weight` times the classifier's loss.

    Args:
        model: KCL or InBatchKCL, called with two views and labels. The classifier becomes `model.classifier`, so that
            optimisers, DistributedDataParallel and checkpoints include its parameters.
        counts: see `JointClassifier`.
        kind: "linear": a linear `EncoderClassifier`. "targets": a `TargetClassifier`, which adds nothing to the loss
            while model.targeted is False, because no class has a target then.
    """
    if kind == "targets":
        classifier = TargetClassifier(model.encoder_q, counts, model.T, model.class_targets)
    else:
        classifier = EncoderClassifier(model.encoder_q, counts)
    model.classifier = classifier
    model.register_forward_hook(partial(_add_classifier_loss, weight))
    return classifier


def _add_classifier_loss(weight: float, model: nn.Module, inputs: tuple[Tensor, ...], output):
    classifier, labels = model.classifier, inputs[-1]
    if not classifier.is_ready:
        classifier.features = None  # releases the graph after the backward pass
        return output
    return output._replace(loss=output.loss + weight * classifier.loss(classifier.logits(), labels))
