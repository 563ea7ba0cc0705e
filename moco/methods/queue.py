"""KCL, TSC and MoCo with a momentum queue."""

from collections.abc import Callable

from torch import Tensor, nn

from moco.builder import KCL
from moco.methods.contrast import Contrast
from moco.methods.flags import add_queue_arguments
from moco.methods.target_state import check_queue, queue_grid
from utils.distributed import say, world_size
from utils.errors import InputError
from utils.measure.metrics import in_top_k
from utils.run.state import RunState


class Queue(Contrast):
    """Contrast with a queue, used for ImageNet-LT and iNaturalist by the code released by the TSC authors."""

    meaning = "keys of past steps (the paper on ImageNet-LT)"
    arguments = (*Contrast.arguments, add_queue_arguments)
    sizes = Contrast.sizes | {"moco_k": ("queue_labels", 1)}

    def check(self) -> None:
        super().check()
        args = self.args
        args.loss_form = args.loss_form or "release"
        if args.moco_k % self.images_a_step:
            times = f" times --accum-steps {args.accum_steps}" if args.accum_steps > 1 else ""
            raise InputError(
                f"--moco-k {args.moco_k}: not a multiple of the global batch, --batch-size {args.batch_size}{times}"
            )

    def read_state(self, state: RunState) -> None:
        super().read_state(state)
        self.grid = queue_grid(state, self.images_a_step)

    def make(self, encoder: Callable[..., nn.Module], shared: dict) -> KCL:
        args = self.args
        model = KCL(encoder, K=args.moco_k, m=args.moco_m, sep_t=args.sep_t, **shared)
        if world_size() > 1 and not model.shuffles:
            say(f"note: {args.arch} has no batch norm, so keys are not shuffled between processes")
        return model

    def restore(self, state: RunState) -> None:
        check_queue(self.model, self.grid, state.source)
        super().restore(state)

    def encoders(self) -> list[nn.Module]:
        return [self.model.encoder_q, self.model.encoder_k]

    def begin_phase(self, name: str, fresh: bool) -> None:
        super().begin_phase(name, fresh)
        if self.model.targeted and fresh and self.args.centroid_init == "queue":
            self.model.centroids_from_queue()

    def shown(self, output) -> dict[str, Tensor]:
        ranks = {f"top{k}": in_top_k(output.key_rank, k) for k in (1, 5)}
        return super().shown(output) | ranks

    def extra_state(self) -> dict:
        return {"queue_grid": self.grid} | super().extra_state()
