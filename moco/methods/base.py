"""What stage 1 asks of a method; the loop knows no more of it."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from utils.parser import Cases, Group
from utils.run.loop import Phase
from utils.run.state import RunState


class Method:
    """A way to train stage 1. All but `build` has a default that does nothing.

    A run makes one of the class in its row of METHODS. `build` gives `model`: called with two views of N images and
    their labels, model(im_q, im_k, labels), it returns something with a scalar `loss`; stage 2 takes its `encoder_q`.

    Attributes:
        meaning: for --help.
        arguments: functions that add its flags, add(model, loss); `model` is the group of those that describe the
            network. A flag that other methods have and it has not is refused.
        sizes: argument -> the tensor of a checkpoint, and its axis, that shows the size which the argument says.
    """

    meaning = ""
    arguments: tuple[Callable[[Group, Group], None], ...] = ()
    sizes: dict[str, tuple[str, int]] = {}  # noqa: RUF012, it is not written to
    model: nn.Module

    def __init__(self, args):
        self.args = args

    @classmethod
    def idle(cls, args) -> Cases:
        """Its flags that others leave without effect."""
        return []

    def check(self) -> None:
        """Refuse arguments that do not go together, and settle defaults that depend on others, before anything is read.

        Raises InputError."""

    def check_files(self, num_classes: int) -> None:
        """Refuse files that do not fit, before anything is made. Raises InputError."""

    def read_state(self, state: RunState) -> None:
        """Note what a run goes on from, and refuse what no run writes into `state.extra`. Raises InputError."""

    @property
    def images_a_step(self) -> int:
        """The global batch of the loss: all that a step of the optimiser is of."""
        return self.args.batch_size * self.args.accum_steps

    def phases(self) -> list[Phase]:
        """One after the other, each with its own optimiser and schedule."""
        return [Phase(self.args.contrast, 0, self.args.epochs)]

    def build(self, num_classes: int, state: RunState, device: torch.device) -> nn.Module:
        """The model on the CPU, from `state.seed`; all ranks start from the same."""
        raise NotImplementedError

    def restore(self, state: RunState) -> None:
        """Take up `state.extra`, when the weights have been loaded into `model`. Raises InputError."""

    def parameters(self) -> Iterable:
        """What the optimiser takes: parameters, or groups of them."""
        return self.model.parameters()

    def encoders(self) -> list[nn.Module]:
        """The networks that --amp, --channels-last and --compile speak of."""
        return [self.model.encoder_q]

    def begin_phase(self, name: str, fresh: bool) -> None:
        """fresh: nothing of it has been trained yet."""

    def begin_epoch(self, step: int, goes_on: bool) -> None:
        """step: of the run, from 0. goes_on: the epoch was begun before, by a run that was interrupted."""

    def shown(self, output) -> dict[str, Tensor]:
        """Scalars of a step's output, whose means over the epoch are logged; `loss` is among them."""
        return {"loss": output.loss}

    def facts(self) -> tuple[dict[str, float | None], str]:
        """What is said of an epoch at its end: for the log, and for the console."""
        return {}, ""

    def extra_state(self) -> dict:
        """Its own entries of a checkpoint: plain data and tensors."""
        return {}

    def assigned(self) -> tuple[Tensor, Tensor] | None:
        """Each class's target (C, D), and the cosine of its centroid to that (C,); None where there are none."""
        return None
