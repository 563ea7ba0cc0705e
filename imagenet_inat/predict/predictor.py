"""Predict the classes of a list of images, batch by batch."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from imagenet_inat.predict.classifiers import Classifier
from imagenet_inat.predict.image_files import ImageList
from imagenet_inat.predict.output import TOP, Guess, Prediction
from moco.heads.selection import UNCALIBRATED
from moco.loader import Normalise
from utils.errors import InputError, print_stderr
from utils.measure.metrics import rank_of_label


class Predictor:
    """Iterates over the predictions of a classifier, one list per batch, and counts errors and hits."""

    def __init__(self, classifier: Classifier, images: ImageList, loader: DataLoader):
        self.classifier, self.images, self.loader = classifier, images, loader
        facts = classifier.metadata
        self.normalise = Normalise(facts.mean, facts.std, classifier.device)
        self.names = facts.class_names or [None] * facts.num_classes
        self.unclassified = self.hits = 0

    def __iter__(self) -> Iterator[list[Prediction]]:
        """Yield the predictions of each batch. Raise InputError at the end if no image could be classified."""
        first, total = 0, len(self.images.paths)
        with tqdm(total=total, unit="img", desc="images", disable=None, dynamic_ncols=True, leave=False) as bar:
            for pixels, problems in self.loader:
                yield (predictions := self._predict(pixels, problems, slice(first, first + len(pixels))))
                first += len(pixels)
                bar.update(len(pixels))
        if self.unclassified == total:
            last = predictions[-1]
            raise InputError(f"0 of {total} images could be classified; the last one, {last.path}: {last.error}")

    @torch.no_grad()
    def _predict(self, pixels: torch.Tensor, problems: list[str], where: slice) -> list[Prediction]:
        """Return the predictions of a batch. where: its place in the list of images."""
        logits = self.classifier.logits(self.normalise(pixels)).float().cpu()  # (N, C)
        is_finite = logits.isfinite().all(1).tolist()
        texts = ["" if finite else "the classifier's output is not finite" for finite in is_finite]
        problems = [problem or text for problem, text in zip(problems, texts, strict=True)]
        best = logits.topk(min(TOP, logits.shape[1]), dim=1).indices  # (N, k), by logit, because probabilities can tie
        probabilities = logits.double().softmax(1).gather(1, best)
        truth = None if self.images.labels is None else self.images.labels[where].tolist()
        if truth is not None:
            hits = rank_of_label(logits, torch.tensor(truth)) < 1
            self.hits += sum(hit and not problem for hit, problem in zip(hits.tolist(), problems, strict=True))
        self.unclassified += sum(map(bool, problems))
        predictions = []
        for n, path in enumerate(self.images.paths[where]):
            pairs = zip(best[n].tolist(), probabilities[n].tolist(), strict=True)
            top = [] if problems[n] else [Guess(c, self.names[c], round(p, 6)) for c, p in pairs]
            labels = () if truth is None else (truth[n], self.names[truth[n]])
            predictions.append(Prediction(path, top, *labels, error=problems[n]))
        return predictions

    def report(self, output: Path | None) -> None:
        """Print on stderr what was predicted, what could not be read, and the accuracy of a list with labels."""
        facts, images, total = self.classifier.metadata, self.images, len(self.images.paths)
        if facts.head in UNCALIBRATED:
            print_stderr(
                f"note: head {facts.head}: its probabilities are not calibrated; only their order has a meaning"
            )
        if images.skipped:
            print_stderr(f"note: {images.skipped}")
        classified = total - self.unclassified
        parts = [f"{classified} of {total} images classified"]
        if self.unclassified:
            parts.append(f"{self.unclassified} without a prediction (see the column error)")
        if images.labels is not None and classified:
            parts.append(f"accuracy {100 * self.hits / classified:.2f} % (top-1 of {classified} images)")
        print_stderr((f"wrote {output}: " if output else "") + ", ".join(parts))
