"""Predictions as rows of a CSV file or as JSON lines."""

from typing import NamedTuple

from utils.files import format_csv, format_json

TOP = 5  # classes per image


class Guess(NamedTuple):
    """A predicted class. class_name: None if the names are not known."""

    label: int
    class_name: str | None
    probability: float


class Prediction(NamedTuple):
    """The prediction of one image.

    Attributes:
        path: the image.
        top: the most probable classes, at most TOP, the most probable first; empty if the image cannot be read.
        true_label, true_name: the class in the list, if it has labels.
        error: why there is no prediction, or "".
    """

    path: str
    top: list[Guess]
    true_label: int | None = None
    true_name: str | None = None
    error: str = ""


class CsvFormat:
    """One row per image: path, the best class, the next classes, the true class, error."""

    def __init__(self, num_classes: int, has_labels: bool):
        self.num_guesses, self.has_labels = min(TOP, num_classes), has_labels

    def header(self) -> str:
        names = ["path", *Guess._fields]
        names += [f"{name}_{place}" for place in range(2, self.num_guesses + 1) for name in Guess._fields]
        names += ["true_label", "true_class_name"] if self.has_labels else []
        return format_csv([[*names, "error"]])

    def rows(self, predictions: list[Prediction]) -> str:
        return format_csv(map(self._row, predictions))

    def _row(self, prediction: Prediction) -> list:
        guesses = prediction.top or [("", "", "")] * self.num_guesses
        cells = [prediction.path, *(cell for guess in guesses for cell in guess)]
        cells += [prediction.true_label, prediction.true_name] if self.has_labels else []
        return [*cells, prediction.error]


class JsonLinesFormat:
    """One JSON object per line: path, the best class, top (a list of classes), the true class or error, if any."""

    def header(self) -> str:
        return ""

    def rows(self, predictions: list[Prediction]) -> str:
        return "".join(format_json(self._record(prediction)) + "\n" for prediction in predictions)

    def _record(self, prediction: Prediction) -> dict:
        record = {"path": prediction.path}
        if prediction.top:
            record |= {**prediction.top[0]._asdict(), "top": [guess._asdict() for guess in prediction.top]}
        if prediction.true_label is not None:
            record |= {"true_label": prediction.true_label, "true_class_name": prediction.true_name}
        return record | ({"error": prediction.error} if prediction.error else {})
