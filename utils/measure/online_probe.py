"""A linear classifier trained alongside stage 1, so that a run reports an accuracy from its first epoch."""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from utils import distributed
from utils.distributed import collectives
from utils.errors import InputError
from utils.measure.metrics import in_top_k, rank_of_label

LR, MOMENTUM = 3.0, 0.9  # for features standardised per dimension and divided by √d (norm about 1)


class OnlineProbe(nn.Module):
    """A classifier on the detached input of the encoder's `fc`; it does not affect the encoder and uses no randomness.

    Args:
        encoder: a network whose last layer is called `fc`.
        counts: (C,) training images per class.
        adjusted: add the log class prior to the logits during training (balanced softmax); otherwise weight the images
            so that all classes count equally.
    """

    is_ready = True  # see `ClassifierNetwork`

    def __init__(self, encoder: nn.Module, counts: Tensor, adjusted: bool):
        super().__init__()
        width = next(layer.in_features for layer in encoder.fc.modules() if isinstance(layer, nn.Linear))
        self.standardise = nn.BatchNorm1d(width, affine=False)
        self.weight = nn.Parameter(torch.zeros(len(counts), width))
        self.bias = nn.Parameter(torch.zeros(len(counts)))
        prior = counts.clamp(min=1) / counts.clamp(min=1).sum()  # (C,)
        self.register_buffer("log_prior", prior.log() if adjusted else torch.zeros(len(counts)), persistent=False)
        balanced = 1 / (prior * len(counts))
        self.register_buffer("class_weight", torch.ones(len(counts)) if adjusted else balanced, persistent=False)
        self.optimizer = torch.optim.SGD(self.parameters(), LR, MOMENTUM)
        self.features: Tensor | None = None
        encoder.fc.register_forward_pre_hook(self._store_features)

    def _store_features(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.features = inputs[0].detach()  # (N, d) of the encoder's latest images

    def logits(self) -> Tensor:
        """Return the logits, (N, C), of the encoder's latest images."""
        with torch.autocast(self.weight.device.type, enabled=False):
            z = self.standardise(self.features.float()) / self.weight.shape[1] ** 0.5
            return z @ self.weight.T + self.bias

    def step(self, labels: Tensor) -> Tensor:
        """Train on the encoder's latest images with labels (N,), and return the top-1 accuracy on them in percent.

        If the batch contained two views of each image (all first views, then all second views), both are used.
        """
        labels = labels.repeat(len(self.features) // len(labels))
        logits = self.logits()
        losses = cross_entropy(logits + self.log_prior, labels, reduction="none")
        self.optimizer.zero_grad(set_to_none=True)
        (losses * self.class_weight[labels]).mean().backward()
        for parameter in self.parameters():
            parameter.grad = collectives.sum_over_ranks(parameter.grad) / distributed.world_size()
        self.optimizer.step()
        return in_top_k(rank_of_label(logits.detach(), labels), 1)

    def state(self) -> dict:
        """Return the checkpoint entry of the probe."""
        return {"state_dict": self.state_dict(), "optimizer": self.optimizer.state_dict()}

    def restore(self, stored: object, source: object) -> None:
        """Restore the probe from a checkpoint entry; None is ignored. Raise InputError if the entry does not fit."""
        if stored is None:
            return
        try:
            self.load_state_dict(stored["state_dict"])
            settings = self.optimizer.state_dict()["param_groups"]  # this project's constants, not the file's values
            self.optimizer.load_state_dict(stored["optimizer"] | {"param_groups": settings})
            for weight in self.parameters():
                momentum = self.optimizer.state.get(weight, {}).get("momentum_buffer")
                if momentum is not None and (momentum.shape != weight.shape or not momentum.isfinite().all()):
                    raise ValueError
            if not all(value.isfinite().all() for value in self.state_dict().values()):
                raise ValueError
        except (RuntimeError, KeyError, TypeError, ValueError, AttributeError):
            raise InputError(
                f"checkpoint {source}: online_probe does not fit the model; it is damaged, use another"
            ) from None


class ClassifierNetwork(nn.Module):
    """An encoder and a classifier that stores its features: images (N, 3, H, W) -> logits (N, C).

    classifier: has `logits()`, the logits of the encoder's latest images, and `is_ready`, whether they exist.
    """

    def __init__(self, encoder: nn.Module, classifier: nn.Module):
        super().__init__()
        self.encoder, self.classifier = encoder, classifier

    def forward(self, images: Tensor) -> Tensor:
        self.encoder(images)
        return self.classifier.logits()
