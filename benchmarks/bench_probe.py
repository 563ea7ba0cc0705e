"""Measure stage 2, compared with the frozen encoder only: resnet18, 32 px, C = 1000 classes.

The first row is a step of the linear probe at batch 64: forward with batch statistics, classifier, loss, backward
through the classifier, optimiser and metrics. Its floor is the encoder's forward pass. The notes give the peak memory
of both, which shows that no activations are stored. The next rows evaluate 256 images like the evaluation after an
epoch, in batches of 64 and of 256 (the default of --eval-batch-size). Their floor is the encoder's forward pass in
batches of 64. benchmarks/gpu measures resnet50 at 224 px on a GPU.
"""

from collections.abc import Callable, Iterator
from statistics import median

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

from benchmarks import common
from benchmarks.bench_step import NO_FLAGS, RECIPE, SMALL
from imagenet_inat.loaders import EVAL_BATCH
from moco.encoders import get_encoder
from moco.heads.networks import freeze_and_replace_classifier
from utils.measure.metrics import Means, in_top_k, rank_of_label
from utils.optimizers import sgd
from utils.run.compute import ComputeConfig
from utils.run.evaluation import validate

NUM_CLASSES = 1000
IMAGES = 256  # images per evaluation
ROUNDS = 9


class Batches:
    """Batches of images on the device, with the interface that `validate` expects of a loader."""

    num_common_batches = 0

    def __init__(self, images: torch.Tensor, labels: torch.Tensor, batch: int):
        self.dataset, self.batch = TensorDataset(images, labels), batch

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return zip(*(tensor.split(self.batch) for tensor in self.dataset.tensors), strict=True)


class Probe:
    """A frozen network with a new classifier, and its training step."""

    def __init__(self, device: torch.device, size: tuple, flags: dict):
        arch, pixels, batch = size
        self.device, self.pixels, self.batch = device, pixels, batch
        self.compute = ComputeConfig(device, **flags)
        self.model = freeze_and_replace_classifier(get_encoder(arch, pixels)(num_classes=NUM_CLASSES)).to(device)
        self.compute.apply_to(self.model)
        self.optimizer, self.means = sgd(self.model.fc.parameters(), *RECIPE), Means("step", device)
        self.images, self.labels = self.random_batch(batch)

    def random_batch(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return images, (number, 3, pixels, pixels), and labels, (number,)."""
        images = torch.randn(number, 3, self.pixels, self.pixels, device=self.device)
        return images, torch.randint(NUM_CLASSES, (number,), device=self.device)

    def forward(self, images: torch.Tensor, train: bool) -> None:
        """Run the network only. This is the floor."""
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


def measure_step(probe: Probe, name: str) -> str:
    """Return the table row of the training step."""

    def floor() -> None:
        probe.forward(probe.images, train=True)

    times = common.time_interleaved({"floor": floor, "step": probe.step}, probe.device, ROUNDS)
    peaks = [common.peak_memory(function, probe.device) / 2**20 for function in (probe.step, floor)]
    images_per_second = probe.batch / median(times["step"])
    notes = f"{images_per_second:.0f} images/s; peak memory {peaks[0]:.0f} MiB, floor's {peaks[1]:.0f}"
    return common.row(f"probe, {name}", times["step"], times["floor"], notes=notes)


def measure_evaluation(probe: Probe, name: str) -> Iterator[str]:
    """Yield the table rows of the evaluation, one per batch size."""
    images, labels = probe.random_batch(IMAGES)
    counts = np.full(NUM_CLASSES, 50)

    def floor() -> None:
        for part in images.split(probe.batch):
            probe.forward(part, train=False)

    def evaluation(batch: int) -> Callable[[], dict]:
        return lambda: validate(Batches(images, labels, batch), probe.model, probe.compute, counts)

    sizes = sorted({probe.batch, max(EVAL_BATCH, probe.batch)})
    times = common.time_interleaved({"floor": floor} | {size: evaluation(size) for size in sizes}, probe.device, ROUNDS)
    for size in sizes:
        notes = f"{IMAGES} images"
        yield common.row(f"evaluation, {name}, in batches of {size}", times[size], times["floor"], notes=notes)


def main() -> None:
    torch.manual_seed(0)
    device = common.device_from_argv()
    print(common.HEADER)
    with ComputeConfig(device).precision_context():
        probe, name = Probe(device, SMALL, NO_FLAGS), "{}, {} px, batch {}".format(*SMALL)
        print(measure_step(probe, name), flush=True)
        for line in measure_evaluation(probe, name):
            print(line, flush=True)


if __name__ == "__main__":
    main()
