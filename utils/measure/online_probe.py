"""A linear classifier that trains beside stage 1, so that a run shows an accuracy from its first epoch."""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from utils import distributed
from utils.errors import InputError
from utils.measure.metrics import in_top_k, rank_of_label

LR, MOMENTUM = 3.0, 0.9  # of standardised features of length 1


class OnlineProbe(nn.Module):
    """On what the encoder's `fc` is given, detached: nothing of it reaches the encoder, and nothing random is drawn.

    Args:
        encoder: whose last layer is called `fc`. counts: (C,) training images a class.
        adjusted: add the log of the classes' share to the logits while it trains (balanced softmax); else weigh the
            images so that every class counts alike.
    """

    def __init__(self, encoder: nn.Module, counts: Tensor, adjusted: bool):
        super().__init__()
        width = next(layer.in_features for layer in encoder.fc.modules() if isinstance(layer, nn.Linear))
        self.standardise = nn.BatchNorm1d(width, affine=False)
        self.weight = nn.Parameter(torch.zeros(len(counts), width))
        self.bias = nn.Parameter(torch.zeros(len(counts)))
        share = counts.clamp(min=1) / counts.clamp(min=1).sum()  # (C,)
        self.register_buffer("prior", share.log() if adjusted else torch.zeros(len(counts)), persistent=False)
        even = 1 / (share * len(counts))
        self.register_buffer("class_weight", torch.ones(len(counts)) if adjusted else even, persistent=False)
        self.optimizer = torch.optim.SGD(self.parameters(), LR, MOMENTUM)
        self.features: Tensor | None = None
        encoder.fc.register_forward_pre_hook(self._note)

    def _note(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.features = inputs[0].detach()  # (N, d) of the encoder's latest images

    def logits(self) -> Tensor:
        """(N, C) of the encoder's latest images."""
        with torch.autocast(self.weight.device.type, enabled=False):
            z = self.standardise(self.features.float()) / self.weight.shape[1] ** 0.5
            return z @ self.weight.T + self.bias

    def step(self, labels: Tensor) -> Tensor:
        """One step on the encoder's latest images, whose labels these are, (N,); returns its top-1 on them, percent.

        Where two views of each image went through the encoder, the second ones after the first, both count.
        """
        labels = labels.repeat(len(self.features) // len(labels))
        logits = self.logits()
        losses = cross_entropy(logits + self.prior, labels, reduction="none")
        self.optimizer.zero_grad(set_to_none=True)
        (losses * self.class_weight[labels]).mean().backward()
        for parameter in self.parameters():
            parameter.grad = distributed.sum_over_ranks(parameter.grad) / distributed.world_size()
        self.optimizer.step()
        return in_top_k(rank_of_label(logits.detach(), labels), 1)

    def on(self, encoder: nn.Module) -> nn.Module:
        """The network that it and the encoder are: (N, 3, H, W) -> (N, C)."""
        return _Network(encoder, self)

    def state(self) -> dict:
        """Its entry of a checkpoint."""
        return {"state_dict": self.state_dict(), "optimizer": self.optimizer.state_dict()}

    def restore(self, found: object, source: object) -> None:
        """Go on from the entry of a checkpoint, None where it has none. Raises InputError: of no such probe."""
        if found is None:
            return
        try:
            self.load_state_dict(found["state_dict"])
            settings = self.optimizer.state_dict()["param_groups"]  # constants, not the file's
            self.optimizer.load_state_dict(found["optimizer"] | {"param_groups": settings})
            for weight in self.parameters():
                momentum = self.optimizer.state.get(weight, {}).get("momentum_buffer")
                if momentum is not None and (momentum.shape != weight.shape or not momentum.isfinite().all()):
                    raise ValueError
            if not all(value.isfinite().all() for value in self.state_dict().values()):
                raise ValueError
        except (RuntimeError, KeyError, TypeError, ValueError, AttributeError):
            raise InputError(
                f"checkpoint {source}: its online_probe does not fit; it is damaged: take another"
            ) from None


class _Network(nn.Module):
    def __init__(self, encoder: nn.Module, probe: OnlineProbe):
        super().__init__()
        self.encoder, self.probe = encoder, probe

    def forward(self, images: Tensor) -> Tensor:
        self.encoder(images)
        return self.probe.logits()
