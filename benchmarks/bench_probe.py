"""Measure stage 2 compared with the bare frozen encoder: resnet18, 32 px, C = 1000 classes.

The first row is a step of the linear probe at batch 64: forward with batch statistics, classifier, loss, backward
through the classifier, optimiser and metrics. Its floor is the encoder's forward pass. The notes give the peak memory
of both, which shows that no activations are stored. The next rows evaluate 256 images as after an epoch, in batches of
64 and of 256 (the default of --eval-batch-size); their floor is the encoder's forward pass in batches of 64.
benchmarks/gpu measures the real size, resnet50 at 224 px, on a GPU.
"""

from collections.abc import Callable, Iterator
from statistics import median

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

from benchmarks import common
from benchmarks.bench_step import PLAIN, RECIPE, SMALL
from imagenet_inat.loaders import EVAL_BATCH
from moco.encoders import get_encoder
from moco.heads import freeze
from utils.measure.metrics import Means, in_top_k, rank_of_label
from utils.optimizers import sgd
from utils.run.compute import ComputeConfig
from utils.run.evaluation import validate

C = 1000
IMAGES = 256  # images per evaluation
ROUNDS = 9


class Batches:
    """Batches of images on the device, in the form that `validate` expects from a loader."""

    on_every_rank = 0

    def __init__(self, images: torch.Tensor, labels: torch.Tensor, batch: int):
        self.dataset, self.batch = TensorDataset(images, labels), batch

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return zip(*(tensor.split(self.batch) for tensor in self.dataset.tensors), strict=True)


class Probe:
    """A frozen network with a new classifier, and one training step of it."""

    def __init__(self, where: torch.device, size: tuple, how: dict):
        arch, pixels, batch = size
        self.compute, self.where, self.pixels, self.batch = ComputeConfig(where, **how), where, pixels, batch
        self.model = freeze(get_encoder(arch, pixels)(num_classes=C)).to(where)
        self.compute.apply_to(self.model)
        self.optimizer, self.means = sgd(self.model.fc.parameters(), *RECIPE), Means("step", where)
        self.images, self.labels = self.draw(batch)

    def draw(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        images = torch.randn(number, 3, self.pixels, self.pixels, device=self.where)
        return images, torch.randint(C, (number,), device=self.where)

    def forward(self, images: torch.Tensor, train: bool) -> None:
        """Run the network only, which is the floor."""
        self.model.train(train)
        with torch.no_grad(), self.compute.autocast():
            self.model(images)

    def step(self) -> None:
        self.model.train()
        with self.compute.autocast():
            logits = self.model(self.images)
        loss = cross_entropy(logits, self.labels)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        rank = rank_of_label(logits.detach(), self.labels)
        self.means.add(self.batch, loss=loss, top1=in_top_k(rank, 1), top5=in_top_k(rank, 5))


def measure_step(probe: Probe, what: str) -> str:
    def floor() -> None:
        probe.forward(probe.images, train=True)

    times = common.interleaved({"floor": floor, "step": probe.step}, probe.where, ROUNDS)
    peaks = [common.peak_memory(work, probe.where) / 2**20 for work in (probe.step, floor)]
    rate = probe.batch / median(times["step"])
    notes = f"{rate:.0f} images/s; peak memory {peaks[0]:.0f} MiB, floor's {peaks[1]:.0f}"
    return common.row(f"probe, {what}", times["step"], times["floor"], notes=notes)


def measure_evaluation(probe: Probe, what: str) -> Iterator[str]:
    images, labels = probe.draw(IMAGES)
    counts = np.full(C, 50)

    def floor() -> None:
        for part in images.split(probe.batch):
            probe.forward(part, train=False)

    def evaluation(batch: int) -> Callable[[], dict]:
        return lambda: validate(Batches(images, labels, batch), probe.model, probe.compute, counts)

    sizes = sorted({probe.batch, max(EVAL_BATCH, probe.batch)})
    times = common.interleaved({"floor": floor} | {size: evaluation(size) for size in sizes}, probe.where, ROUNDS)
    for size in sizes:
        notes = f"{IMAGES} images"
        yield common.row(f"evaluation, {what}, in batches of {size}", times[size], times["floor"], notes=notes)


def main() -> None:
    torch.manual_seed(0)
    where = common.device()
    print(common.HEADER)
    with ComputeConfig(where).arithmetic():
        probe, what = Probe(where, SMALL, PLAIN), "{}, {} px, batch {}".format(*SMALL)
        print(measure_step(probe, what), flush=True)
        for line in measure_evaluation(probe, what):
            print(line, flush=True)


if __name__ == "__main__":
    main()
