"""The optimisers of --optimizer, and --clip-grad.

Import PyTorch, which takes seconds, only inside functions: --help lists the optimisers.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from utils.configs import FromArgs

if TYPE_CHECKING:
    import torch

LR_FACTOR_KEY = "factor"  # entry of a parameter group: its learning rate is the schedule's times this


def sgd(
    parameters: Iterable["torch.nn.Parameter"], lr: float, momentum: float, weight_decay: float
) -> "torch.optim.SGD":
    """Return torch's SGD, not fused.

    The fused version has a corrupt momentum if the first step of --amp fp16 overflows, and rounds differently on CPUs.
    """
    from torch.optim import SGD

    return SGD(parameters, lr, momentum=momentum, weight_decay=weight_decay)


def adamw(
    parameters: Iterable["torch.nn.Parameter"], lr: float, momentum: float, weight_decay: float
) -> "torch.optim.AdamW":
    """Return torch's AdamW with its default betas; `momentum` is ignored."""
    from torch.optim import AdamW

    return AdamW(parameters, lr, weight_decay=weight_decay)


def lars(
    parameters: Iterable["torch.nn.Parameter"], lr: float, momentum: float, weight_decay: float
) -> "torch.optim.Optimizer":
    """Return LARS, see `utils.lars.Lars`."""
    from utils.lars import Lars

    return Lars(parameters, lr, momentum, weight_decay)


# Entries of an optimiser's state that are a single number for any shape of weight.
SCALAR_STATE = {"step"}
OPTIMIZERS = {"sgd": sgd, "adamw": adamw, "lars": lars}


@dataclass(frozen=True)
class OptimizerConfig(FromArgs):
    """The flags of the optimiser; see --help."""

    optimizer: str
    lr: float
    momentum: float
    weight_decay: float
    clip_grad: float | None

    def build(self, parameters: Iterable) -> "torch.optim.Optimizer":
        """Build the optimiser of the flags. With --clip-grad, it clips the gradients before each step.

        Args:
            parameters: parameters or parameter groups, as for torch's optimisers. The entry LR_FACTOR_KEY of a group
                multiplies the group's learning rate.
        """
        optimizer = OPTIMIZERS[self.optimizer]([*parameters], self.lr, self.momentum, self.weight_decay)
        if self.clip_grad:  # in a pre-step hook, because --amp fp16 unscales the gradients just before the step
            weights = [weight for group in optimizer.param_groups for weight in group["params"]]
            optimizer.register_step_pre_hook(lambda *_: _clip(weights, self.clip_grad))
        return optimizer

    def state_bytes(self, weights: Iterable["torch.nn.Parameter"]) -> int:
        """Return the bytes that the optimiser keeps beside the weights, such as momentum, after its first step."""
        import torch

        example = torch.nn.Parameter(torch.zeros(2))
        example.grad = torch.zeros(2)
        optimizer = self.build([example])
        optimizer.step()
        kept = [entry for entry in optimizer.state[example].values() if isinstance(entry, torch.Tensor)]
        copies = sum(entry.shape == example.shape for entry in kept)
        return copies * sum(weight.numel() * weight.element_size() for weight in weights)


def _clip(weights: list["torch.nn.Parameter"], max_norm: float) -> None:
    from torch.nn.utils import clip_grad_norm_

    clip_grad_norm_(weights, max_norm)
