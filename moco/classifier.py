"""A classifier that is trained together with an encoder (one stage), on the features that stage 2 uses."""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear, normalize

from moco.losses import at_least_float32, log_prior
from utils.measure.metrics import in_top_k, rank_of_label

COSINE_SCALE = 30.0  # of BCL's classifier on ImageNet-LT


class EncoderClassifier(nn.Module):
    """A linear or cosine classifier on the input of an encoder's last layer, trained with balanced softmax.

    Unlike `OnlineProbe`, its gradient reaches the encoder. The encoder's forward pass stores the features.

    Args:
        encoder: network whose last layer is called `fc`.
        counts: (C,) training images per class, as they are sampled: equal numbers for class-balanced batches.
        cosine: use scale · cos(z, w_c) without bias, instead of z·w_c + b_c.

    Attributes:
        metrics: cross-entropy (`loss_classifier`) and top-1 accuracy in percent (`classifier`) of the last step.
    """

    def __init__(self, encoder: nn.Module, counts: Tensor, cosine: bool = False):
        super().__init__()
        width = next(layer.in_features for layer in encoder.fc.modules() if isinstance(layer, nn.Linear))
        weight = torch.zeros(len(counts), width)
        self.weight = nn.Parameter(normalize(weight.uniform_(-1, 1), dim=1) if cosine else weight)
        if cosine:
            self.register_buffer("scale", torch.tensor(COSINE_SCALE))
        else:
            self.bias = nn.Parameter(torch.zeros(len(counts)))
        self.register_buffer("log_prior", log_prior(counts).float(), persistent=False)
        self.cosine, self.features, self.metrics = cosine, None, {}
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

    def logits(self, count: int | None = None) -> Tensor:
        """Return the logits of the encoder's latest images, or of the first `count` of them, once: (N, C)."""
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


def add_classifier(model: nn.Module, counts: Tensor, weight: float) -> EncoderClassifier:
    """Add a linear classifier to a model. The model's loss then includes `weight` times the classifier's loss.

    Args:
        model: KCL or InBatchKCL, called with two views and labels. The classifier becomes `model.classifier`, so that
            optimisers, DistributedDataParallel and checkpoints include its parameters.
        counts: see `EncoderClassifier`.
    """
    classifier = model.classifier = EncoderClassifier(model.encoder_q, counts)

    model.register_forward_hook(partial(_add_classifier_loss, weight))
    return classifier


def _add_classifier_loss(weight: float, model: nn.Module, inputs: tuple[Tensor, ...], output):
    classifier, labels = model.classifier, inputs[-1]
    return output._replace(loss=output.loss + weight * classifier.loss(classifier.logits(), labels))
