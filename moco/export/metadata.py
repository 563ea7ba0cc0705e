"""What another program must know to use an exported network: how it sees images, and the names of the classes."""

import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from moco.loader import describe_eval_view
from utils.errors import InputError, short_repr
from utils.run.state import are_statistics
from utils.safe_load import are_texts, is_count, parse_json

KEY = "metadata"  # entry of an ONNX file; a .pt2 file has an extra file of this name, ending in .json


@dataclass(frozen=True)
class Metadata:
    """What is stored with an exported network. Unknown values are None.

    Attributes:
        arch: name of the network.
        image_size: side of the input in pixels.
        outputs: names of the outputs.
        num_classes: number of classes; None without a classifier.
        class_names: names of the classes in label order.
        head: kind of classifier, a key of HEADS.
        dataset: --dataset of the run.
        as_shown: whether training turned images upright by their EXIF orientation and laid them over white.
        views: --views of the run, which decides how an image becomes a square.
        statistics: the data set whose mean and std normalise the images.
        mean, std: of the three channels, for values from 0 to 1.
    """

    arch: str
    image_size: int
    outputs: list[str]
    num_classes: int | None = None
    class_names: list[str] | None = None
    head: str | None = None
    dataset: str | None = None
    as_shown: bool | None = None
    views: str | None = None
    statistics: str | None = None
    mean: list[float] | None = None
    std: list[float] | None = None

    @classmethod
    def of_run(cls, state: dict, **others: object) -> "Metadata":
        """Return what a checkpoint of either stage stores, as far as it stores it.

        Args:
            state: entries of the checkpoint.
            others: arch, image_size, outputs, num_classes.
        """
        args = state["args"] if isinstance(state.get("args"), dict) else {}
        texts = {name: args.get(name) for name in ("head", "dataset", "views")}
        texts["statistics"] = args.get("statistics") or args.get("dataset")
        texts = {name: value for name, value in texts.items() if isinstance(value, str)}
        as_shown = args["images_as_shown"] if isinstance(args.get("images_as_shown"), bool) else None
        numbers = state.get("statistics") if are_statistics(state.get("statistics")) else {}
        names = state.get("class_names")
        names = names if are_texts(names) and len(names) == others.get("num_classes") else None
        return cls(**others, **texts, **numbers, class_names=names, as_shown=as_shown)

    def with_statistics(self, mean: list[float], std: list[float]) -> "Metadata":
        """Return a copy with mean and std, unless they are known."""
        return self if self.mean else replace(self, mean=list(mean), std=list(std))

    def to_json(self) -> str:
        """Return the metadata as a JSON object, with a description of how an image becomes a square."""
        view = describe_eval_view(self.views, self.image_size) if self.views else None
        return json.dumps({**asdict(self), "evaluation_view": view}, indent=1)

    @classmethod
    def from_json(cls, text: str | bytes | None, source: Path) -> "Metadata":
        """Return the metadata of an exported network.

        Raises:
            InputError: there is no metadata, or it is invalid.
        """
        if not text:
            raise InputError(
                f"{source}: has no metadata, expected a file that `python -m moco.export` wrote; export again"
            )
        try:
            entries = parse_json(text)
        except ValueError as error:
            raise InputError(f"{source}: its metadata is not JSON ({error}); export again") from None
        if not isinstance(entries, dict):
            raise InputError(f"{source}: its metadata is {short_repr(entries)}, expected an object; export again")
        known = {field.name: entries.get(field.name) for field in fields(cls)}
        if problem := _problem(known):
            raise InputError(f"{source}: its metadata has {problem}; export again")
        return cls(**known)


def _problem(entries: dict[str, object]) -> str | None:
    """Return why these entries are not valid metadata, or None if they are."""
    required = ("arch", "image_size", "outputs")
    checks = dict.fromkeys(entries, lambda value: isinstance(value, str))
    checks |= {"image_size": _is_positive, "num_classes": _is_positive, "outputs": are_texts}
    checks |= {"as_shown": lambda value: isinstance(value, bool)}
    checks |= {"class_names": lambda names: are_texts(names) and len(names) == entries["num_classes"]}
    whole = {"mean": entries["mean"], "std": entries["std"]}
    checks |= dict.fromkeys(whole, lambda value: are_statistics(whole))
    for name, value in entries.items():
        if not checks[name](value) and (value is not None or name in required):
            return f"{name} {short_repr(value)}"
    return None


def _is_positive(value: object) -> bool:
    return is_count(value) and value > 0
