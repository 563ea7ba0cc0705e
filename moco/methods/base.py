"""The interface between a training method and the training loop of stage 1."""

from argparse import Namespace
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from moco.classifier import JointClassifier
from moco.encoders import get_encoder
from utils.run.loop import Phase
from utils.run.state import RunState


class Method:
    """A training method of stage 1. Every function except `build` has a default.

    A run creates one instance of the class that a row of METHODS loads. `build` returns `model`. The call
    model(*views, labels), with `num_views` views of N images and their labels, returns an object with a scalar `loss`.
    Stage 2 uses `model.encoder_q`.

    Attributes:
        loss_form: default of --loss-form.
        trains_classifier: whether `build` creates a classifier, `classifier`. The run measures it on the validation
            split, and stage 2 evaluates it with --head own.
        num_views: views per image; the model is called with all of them, and with the labels.
        stored_sizes: maps an argument to (tensor name, axis). In a checkpoint, the tensor's length along that axis must
            equal the argument.
        classifier_view: a key of VIEWS, the augmentation of the first view; None: that of the other views.
        views_at_once: views of each image that pass through the encoder at once, which decides the memory of a step.
    """

    loss_form = "release"
    views_at_once = 1
    stored_sizes: dict[str, tuple[str, int]] = {}  # noqa: RUF012, never modified
    model: nn.Module
    classifier: JointClassifier | None = None
    trains_classifier = False
    num_views = 2
    classifier_view: str | None = None

    def __init__(self, settings: Namespace):
        self.settings = settings

    def check(self) -> None:
        """Raise InputError for conflicting arguments. Called before any file is read."""

    def check_network(self, batch_size: int) -> None:
        """Raise InputError unless the network of --arch works. batch_size: images per process and step."""
        get_encoder(self.settings.arch, self.settings.image_size, batch_size)

    def check_files(self, num_classes: int) -> None:
        """Raise InputError for files that do not fit the arguments. Called before anything is written."""

    def with_outputs(self, folder: Path) -> "Method":
        """Return a method that writes into `folder` what it would otherwise write outside its run folder."""
        return self

    def check_extra_state(self, state: RunState, num_classes: int) -> None:
        """Raise InputError if `state.extra`, from a checkpoint, contains invalid entries. Called before `build`."""

    def run_name(self, data_name: str) -> str:
        """Return the name of a run without --name, in the format of the authors' code (released with TSC).

        Without a queue, the value of --contrast takes the place of the queue length.
        """
        run = self.settings
        queue = run.moco_k if run.contrast == "queue" else run.contrast
        return (
            f"{data_name}LT_{run.arch}_lr_{run.lr}_bsz_{run.batch_size}_wd_{run.weight_decay}_mlp_{run.mlp}"
            f"_t_{run.moco_t}_{queue}_seed_{run.seed}_k_{run.K}_dim_{run.moco_dim}_tgted_{run.targeted}"
            f"_tr_{run.tr}_tw_{run.tw}_ep_{run.epochs}"
        )

    @property
    def global_batch_size(self) -> int:
        """The number of images per optimiser step, over all processes: the global batch of the loss."""
        return self.settings.batch_size * self.settings.accum_steps

    def phases(self) -> list[Phase]:
        """Return the training phases in order; each has its own optimiser and schedule."""
        return [Phase(self.settings.contrast, 0, self.settings.epochs)]

    def build(self, num_classes: int, state: RunState, device: torch.device) -> nn.Module:
        """Build the model on the CPU from `state.seed`, identical on all ranks."""
        raise NotImplementedError

    def sampled_counts(self, state: RunState) -> Tensor:
        """Return the images per class, (C,), as they are sampled: equal numbers with --sampling class-balanced.

        Raises:
            ValueError: The state comes from a checkpoint without class counts.
        """
        if state.train_counts is None:
            raise ValueError("no train_counts")
        counts = torch.tensor(state.train_counts)
        return torch.ones_like(counts) if self.settings.sampling == "class-balanced" else counts

    def load_extra_state(self, state: RunState) -> None:
        """Load `state.extra` (empty in a new run), after any weights. Raise InputError if it does not fit them."""

    def prepare_training(self, loader, epochs: int) -> None:
        """Prepare the model before the first step of a new run.

        Args:
            loader: the training loader. epochs: length of the run; training never uses views of this epoch or later.
        """

    def parameters(self) -> Iterable:
        """Return the parameters, or parameter groups, for the optimiser."""
        return self.model.parameters()

    def encoders(self) -> list[nn.Module]:
        """Return the networks that --amp, --channels-last and --compile apply to."""
        return [self.model.encoder_q]

    def begin_phase(self, name: str, fresh: bool) -> None:
        """Prepare for a phase. fresh: no step of the phase has been trained yet."""

    def begin_epoch(self, step: int, resumed: bool) -> None:
        """Start an epoch, or resume one in the middle (`resumed`). step: step of the run, from 0."""

    def after_step(self, output) -> None:
        """Look at the output of a step, after the optimiser's step."""

    def end_epoch(self) -> None:
        """End an epoch, before its metrics are read."""

    def step_metrics(self, output) -> dict[str, Tensor]:
        """Return scalars of a step, including `loss`. Their means over the epoch are logged."""
        return {"loss": output.loss}

    def epoch_metrics(self) -> tuple[dict[str, float | None], str]:
        """Return the metrics of an epoch at its end: a dict for the log, and text for the console."""
        return {}, ""

    def extra_state(self) -> dict:
        """Return the entries that the method adds to a checkpoint: plain data and tensors."""
        return {}

    def class_targets_and_cosines(self) -> tuple[Tensor, Tensor] | None:
        """Return the target of each class (C, D), and the cosine of its centroid to it (C,); None without targets."""
        return None
