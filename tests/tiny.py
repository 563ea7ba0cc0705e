"""Small models and batches that the tests share."""

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from moco.builder import KCL

IMAGE = (3, 2, 2)
WIDTH = 12


class TinyEncoder(nn.Module):
    """An encoder without batch norm: one linear layer, `fc`, on the 12 values of the image."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.fc = nn.Linear(WIDTH, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(images.flatten(1))


def unit_vectors(*shape: int, dim: int = 1) -> Tensor:
    """Return random float64 unit vectors along `dim`."""
    return normalize(torch.randn(*shape, dtype=torch.float64), dim=dim)


def tiny_model(**options) -> KCL:
    """Return a float64 KCL model on TinyEncoder with D=4, Q=12, C=3 and a random queue."""
    defaults = {
        "dim": 4,
        "K": 12,
        "m": 0.9,
        "T": 0.2,
        "num_positive": 2,
        "num_classes": 3,
        "targets": unit_vectors(3, 4),
    }
    model = KCL(TinyEncoder, **(defaults | options)).double()
    model.queue_labels.copy_(torch.randint(-1, 3, model.queue_labels.shape))
    with torch.no_grad():  # the key encoder differs from the query encoder, as after some steps
        for weight in model.encoder_k.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    return model


def tiny_batch(size: int = 4, num_classes: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Return two views and their labels."""
    views = torch.randn(2, size, *IMAGE, dtype=torch.float64)
    return views[0], views[1], torch.randint(0, num_classes, (size,))


def release_style(model: KCL, prefix: str = "module.", arch: str = "resnet20") -> dict:
    """Return a checkpoint in the format of the authors' code: its prefix, and its two derivable buffers."""
    state = {prefix + name: tensor for name, tensor in model.state_dict().items()}
    if model.optimal_target is not None:
        classes = len(model.class_centroid)
        state[prefix + "optimal_target_unique"] = model.optimal_target[:: model.tr].T
        state[prefix + "target_labels"] = torch.arange(classes).repeat_interleave(model.tr)[:, None]
    return {"epoch": 3, "arch": arch, "state_dict": state, "optimizer": {}}
