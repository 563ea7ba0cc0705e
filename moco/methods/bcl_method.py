"""BCL: a classifier and balanced in-batch contrast in one stage."""

from argparse import Namespace

import torch
from torch import Tensor, nn

from moco.bcl import BCL
from moco.encoders import get_encoder
from moco.methods.encoder_method import EncoderMethod
from utils.run.state import RunState


class BclMethod(EncoderMethod):
    """Balanced contrastive learning (CVPR 2022), with three views per image and a cosine classifier."""

    stored_sizes = {"num_classes": ("classifier.weight", 0), "moco_dim": ("encoder_q.fc.3.weight", 0)}  # noqa: RUF012
    trains_classifier, num_views, views_at_once = True, 3, 3
    model: BCL

    def __init__(self, settings: Namespace):
        super().__init__(settings)
        self.classifier_view = settings.classifier_view

    def build(self, num_classes: int, state: RunState, device: torch.device) -> nn.Module:
        settings = self.settings
        torch.manual_seed(state.seed)
        encoder, counts = get_encoder(settings.arch, settings.image_size), self.sampled_counts(state)
        weights = settings.ce_weight, settings.contrast_weight
        self.model = BCL(encoder, settings.moco_dim, settings.moco_t, counts, *weights)
        self.classifier = self.model.classifier
        self.prepare_encoders(new=not state.source)
        return self.model

    def step_metrics(self, output) -> dict[str, Tensor]:
        return {"loss": output.loss, "loss_contrast": output.loss_contrast} | self.classifier.metrics
