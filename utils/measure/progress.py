"""Console lines, and the progress bar with the ETA."""

import sys
import time
from collections.abc import Iterable, Iterator
from datetime import timedelta

from tqdm import tqdm

from utils import distributed
from utils.distributed import log
from utils.measure.metrics import Means
from utils.measure.slowdown import SlowdownHint


class Progress:
    """Console lines in MoCo's style every `print_freq` steps; on a terminal also a progress bar over the whole run.

    Args:
        total: steps of the run.
        steps_done: steps trained before this launch of the program.
        print_freq: steps between console lines; 0: none.
    """

    def __init__(self, total: int, steps_done: int, print_freq: int):
        self.total, self.print_freq = total, print_freq
        self.steps_done = self.steps_done_before = steps_done
        self.started, self.slowdown = time.perf_counter(), SlowdownHint()
        hidden = not (distributed.is_main() and sys.stderr.isatty())
        self.bar = tqdm(total=total, initial=steps_done, unit="step", disable=hidden, dynamic_ncols=True, leave=False)

    def iterate(self, loader: Iterable, title: str, first_step: int = 0) -> Iterator:
        """Yield the batches of an epoch and measure their time; the caller calls `step` once per batch.

        Args:
            title: the epoch's title.
            first_step: the first step to train; above 0 if the epoch is resumed in the middle.
        """
        self.title, self.steps, self.step_number, self.data_seconds = title, len(loader), 0, 0.0
        self.first_step, self.images = first_step, 0
        self.bar.set_description(title)
        self.epoch_started, self.epoch_ended = time.perf_counter(), None
        waiting = self.step_ended = self.epoch_started
        for batch in loader:
            self.data_seconds += time.perf_counter() - waiting
            yield batch
            waiting = time.perf_counter()
        self.epoch_ended = time.perf_counter()  # excludes evaluation and saving

    def step(self, means: Means, images: int) -> None:
        """Count a step on `images` images of this process, and print a line if one is due."""
        self.steps_done += 1
        self.images += images * distributed.world_size()
        self.step_number += 1
        previous, self.step_ended = self.step_ended, time.perf_counter()
        if self.step_number > 1:  # the first step of an epoch includes the start of the loader processes
            self.slowdown.step(self.step_ended - previous)
        self.bar.update()
        if self.print_freq and self.step_number % self.print_freq == 0:
            values = means.read()
            seconds = self.seconds() / self.step_number
            log(
                f"{self.title}[{self.first_step + self.step_number:>4}/{self.steps}]  "
                f"Time {seconds:.3f}  Data {self.data_seconds / self.step_number:.3f}  "
                f"{format_means(values)}  {self.speed():.0f} img/s  ETA {self.eta()}"
            )

    def seconds(self) -> float:
        """Return the training time of this epoch in seconds, so far or in total."""
        return (self.epoch_ended or time.perf_counter()) - self.epoch_started

    def speed(self) -> float:
        """Return the images per second in this epoch, over all ranks."""
        return self.images / self.seconds()

    def timing(self) -> dict[str, float]:
        """Return this epoch's seconds, images_per_s (over all ranks) and data_share.

        data_share is the percentage of time that this process waited for batches; if it is large, use more workers.
        """
        data_share = 100 * self.data_seconds / self.seconds()
        return {"seconds": self.seconds(), "images_per_s": self.speed(), "data_share": data_share}

    def eta(self) -> timedelta:
        """Return the time to the end of the run, at the mean pace since the program was launched."""
        pace = (time.perf_counter() - self.started) / max(self.steps_done - self.steps_done_before, 1)
        return timedelta(seconds=round(pace * (self.total - self.steps_done)))

    def close(self) -> None:
        self.bar.close()


LABELS = {"loss": "Loss", "loss_class": "class", "loss_target": "target", "top1": "Acc@1", "top5": "Acc@5"}


def format_means(values: dict[str, float]) -> str:
    """Format means as MoCo does: `Loss 3.2101  Acc@1 45.31`. KCL has one loss, without class and target parts."""
    if values.get("loss_target") == 0:
        values = {name: value for name, value in values.items() if name not in ("loss_class", "loss_target")}
    digits = {name: 4 if name.startswith("loss") else 2 for name in values}
    return "  ".join(f"{LABELS.get(name, name)} {value:.{digits[name]}f}" for name, value in values.items())
