"""What methods that train an encoder share: its initial weights, frozen parts, memory, and the check for collapse."""

from argparse import Namespace
from collections.abc import Iterable

from moco.encoders import has_batch_norm
from moco.encoders.frozen import freeze_modules
from moco.encoders.memory import recompute_blocks
from moco.methods.base import Method
from moco.methods.collapse import CollapseDetector
from moco.pretrained import check_init_from, init_encoders
from utils.distributed import log
from utils.errors import InputError
from utils.optimizers import LR_FACTOR_KEY


class EncoderMethod(Method):
    """A method whose `model` has `encoder_q` and whose output has `q`, unit features (N, D)."""

    def __init__(self, settings: Namespace):
        super().__init__(settings)
        self.collapse = CollapseDetector()

    def check(self) -> None:
        settings = self.settings
        if settings.init_from:
            check_init_from(settings.init_from, settings.arch)
        if settings.freeze and not settings.init_from:
            raise InputError(
                "--freeze: requires --init-from, or random weights would be frozen; add --init-from or omit --freeze"
            )
        if settings.grad_checkpointing and settings.compile:
            raise InputError("--grad-checkpointing: not supported with --compile; omit one of them")
        if self.trains_classifier and settings.accum_steps > 1:  # a classifier has the features of one micro-batch
            raise InputError(f"--accum-steps: not supported with --contrast {settings.contrast}; omit it")

    def prepare_encoders(self, new: bool) -> None:
        """Apply --init-from (to a new run only), --freeze, --grad-checkpointing and --accum-steps to the encoders."""
        settings, encoders = self.settings, self.encoders()
        if settings.init_from and new:
            log(f"init: {init_encoders(encoders, settings.init_from, settings.arch, settings.freeze)}")
        for encoder in encoders:
            freeze_modules(encoder, settings.freeze, settings.arch)
        if settings.grad_checkpointing:
            recompute_blocks(self.model.encoder_q, settings.arch)
        if settings.accum_steps > 1 and has_batch_norm(self.model.encoder_q):
            log(
                f"note: --accum-steps {settings.accum_steps}: batch norm in {settings.arch} uses the statistics of "
                f"each of the {settings.accum_steps} micro-batches; "
                f"results differ from one batch of {self.global_batch_size}"
            )

    def parameters(self) -> Iterable:
        factor, model = self.settings.lr_backbone, self.model
        if factor == 1:
            return model.parameters()
        body = {id(weight) for encoder in self.encoders() for weight in encoder.parameters()}
        body -= {id(weight) for weight in model.encoder_q.fc.parameters()}
        head = [weight for weight in model.parameters() if id(weight) not in body]
        backbone = [weight for weight in model.parameters() if id(weight) in body]
        return [{"params": head}, {"params": backbone, LR_FACTOR_KEY: factor}]

    def after_step(self, output) -> None:
        self.collapse.step(output.q)

    def end_epoch(self) -> None:
        self.collapse.end_epoch()
