"""KCL, TSC and MoCo with a momentum queue."""

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from moco.authors_kcl import AuthorsKCL
from moco.builder import KCL
from moco.methods.checkpoint_entries import batch_size_divisor, check_queue
from moco.methods.contrast_method import ContrastMethod
from utils.distributed import log, world_size
from utils.errors import InputError
from utils.measure.metrics import in_top_k
from utils.run.state import RunState


class QueueMethod(ContrastMethod):
    """Contrast with a queue, used for ImageNet-LT and iNaturalist by the code released by the TSC authors."""

    loss_form = "release"
    stored_sizes = ContrastMethod.stored_sizes | {"moco_k": ("queue_labels", 1)}

    def check(self) -> None:
        super().check()
        settings = self.settings
        if settings.moco_k % self.global_batch_size:
            times = f" times --accum-steps {settings.accum_steps}" if settings.accum_steps > 1 else ""
            raise InputError(
                f"--moco-k {settings.moco_k}: not a multiple of the global batch, "
                f"--batch-size {settings.batch_size}{times}"
            )

    def check_extra_state(self, state: RunState, num_classes: int) -> None:
        super().check_extra_state(state, num_classes)
        self.batch_size_divisor = batch_size_divisor(state, self.global_batch_size)

    def build_contrast(self, encoder: Callable[..., nn.Module], model_kwargs: dict, state: RunState) -> KCL:
        settings = self.settings
        options = {"positives": settings.positives, "unused": settings.unused_positives}
        sampled = settings.K > 0 and settings.loss != "MoCo"
        if sampled and options != {"positives": "random", "unused": "keep"}:
            build = partial(AuthorsKCL, encoder, **options)
        else:
            build = partial(KCL, encoder)
        model = build(K=settings.moco_k, m=settings.moco_m, sep_t=settings.sep_t, **model_kwargs)
        if world_size() > 1 and not model.uses_shuffle_bn:
            log(f"note: {settings.arch} has no batch norm, so keys are not shuffled between processes")
        return model

    def load_extra_state(self, state: RunState) -> None:
        check_queue(self.model, self.batch_size_divisor, state.source)
        super().load_extra_state(state)

    def prepare_training(self, loader, epochs: int) -> None:
        if self.settings.queue_init != "keys":
            return
        batches_left, epoch = self.settings.moco_k // self.global_batch_size, epochs  # views that training does not use
        log(f"queue: filling it with keys of {self.settings.moco_k} views of training images")
        self.model.train()
        while batches_left:
            loader.start_at(epoch, 0)
            for (_, im_k), labels in loader:
                self.model.fill_queue(im_k, labels)
                batches_left -= 1
                if not batches_left:
                    break
            epoch += 1

    def encoders(self) -> list[nn.Module]:
        return [self.model.encoder_q, self.model.encoder_k]

    def begin_phase(self, name: str, fresh: bool) -> None:
        super().begin_phase(name, fresh)
        if self.model.targeted and fresh and self.settings.centroid_init == "queue":
            self.model.init_centroids_from_queue()

    def step_metrics(self, output) -> dict[str, Tensor]:
        accuracies = {f"top{k}": in_top_k(output.key_rank, k) for k in (1, 5)}
        return super().step_metrics(output) | accuracies

    def extra_state(self) -> dict:
        return {"queue_grid": self.batch_size_divisor} | super().extra_state()
