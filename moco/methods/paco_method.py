"""PaCo and GPaCo: a classifier and contrast with a queue in one softmax, in one stage."""

from argparse import Namespace
from collections.abc import Callable

from torch import Tensor, nn

from moco.methods.encoder_method import EncoderMethod
from moco.methods.queue_method import QueueMethod
from moco.paco import PaCo
from utils.run.loop import Phase
from utils.run.state import RunState


class PacoMethod(QueueMethod):
    """Parametric contrastive learning (ICCV 2021) with the queue of KCL, without its positives and targets."""

    trains_classifier = True
    model: PaCo

    def __init__(self, settings: Namespace):
        super().__init__(settings)
        self.classifier_view = settings.classifier_view  # of the queries

    @property
    def views_at_once(self) -> int:
        return 2 if self.settings.no_momentum_keys else 1

    def phases(self) -> list[Phase]:
        return EncoderMethod.phases(self)  # without KCL and TSC

    def build_contrast(self, encoder: Callable[..., nn.Module], model_kwargs: dict, state: RunState) -> PaCo:
        settings = self.settings
        options = {name: getattr(settings, name) for name in ("alpha", "beta", "gamma")}
        options |= {"K": settings.moco_k, "m": settings.moco_m, "momentum_keys": not settings.no_momentum_keys}
        model = PaCo(encoder, self.sampled_counts(state), **options, **model_kwargs)
        self.classifier = model.classifier
        return model

    def encoders(self) -> list[nn.Module]:
        return super().encoders() if self.model.momentum_keys else EncoderMethod.encoders(self)

    def step_metrics(self, output) -> dict[str, Tensor]:
        return {"loss": output.loss} | self.classifier.metrics
