"""Find the weights of an encoder in a checkpoint of this project or of another tool.

Tools store the same network under different prefixes (`module.encoder_q.`, `backbone.`) and in different entries of the
checkpoint (`model`, `teacher`), and some number its children, as torch.nn.Sequential does. The names and shapes of the
network's own tensors decide what fits.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from moco.encoders.library import Backbone

MAX_DEPTH = 3  # nesting of the entries that are searched
AVERAGES = ("momentum", "encoder_k")  # in the prefix of a moving average of the encoder, which is never loaded
WRAPPERS = ("module", "_orig_mod", "model")  # prefixes that add no information to the name of an unused part
MAX_NAMES = 8  # unused parts named in the summary
COUNTER = "num_batches_tracked"  # absent in files of old PyTorch versions; used only by batch norm without a momentum


class FoundEncoder(NamedTuple):
    """The weights of an encoder, found in a checkpoint.

    Attributes:
        weights: Tensors under the names of the network's library, without the classifier.
        entry: Name of the checkpoint's entry that contains them; empty if the file is the state dict itself.
        prefix: Prefix of their keys.
        missing: Names of the network's tensors that the file lacks.
        other_shapes: Names of tensors with another shape: shape in the file and in the network.
        unknown: Keys of layers inside the network's modules that the network does not have.
        unused: Names of the other parts, such as heads and projectors.
        num_tensors: Number of tensors of the network.
        note: What else the user should know about the choice.
    """

    weights: dict[str, Tensor]
    entry: str
    prefix: str
    missing: list[str]
    other_shapes: dict[str, tuple[tuple, tuple]]
    unknown: list[str]
    unused: list[str]
    num_tensors: int
    note: str = ""

    @property
    def place(self) -> str:
        return f"entry {self.entry or '(the file itself)'}, prefix {self.prefix or '(none)'}"

    def fits(self, new: Iterable[str] = ()) -> bool:
        """Return whether all tensors were found, except those in `new`, and no layer is left."""
        return bool(self.weights) and not self.unknown and {*self.missing, *self.other_shapes} <= {*new}

    def summary(self) -> str:
        """Return one line: the number of tensors found, where they were, what stays random and what is not used."""
        more = f" and {len(self.unused) - MAX_NAMES} more" if len(self.unused) > MAX_NAMES else ""
        random = ", ".join(sorted({*self.missing, *self.other_shapes}))
        parts = [f"loaded {len(self.weights)} of {self.num_tensors} encoder tensors ({self.place})"]
        parts += [f"still random: {random}"] if random else []
        parts += [f"not used: {', '.join(self.unused[:MAX_NAMES])}{more}"] if self.unused else []
        return "; ".join([*parts, self.note] if self.note else parts)


def entries_with_tensors(state: dict, name: str = "", depth: int = 0) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield the name and the tensors of each dict in a checkpoint that contains tensors by name.

    The state of an optimiser is skipped. The checkpoint itself has the empty name.
    """
    tensors = {key: value for key, value in state.items() if isinstance(key, str) and torch.is_tensor(value)}
    if tensors:
        yield name, tensors
    for key, value in state.items():
        if isinstance(value, dict) and isinstance(key, str) and "optim" not in key and depth < MAX_DEPTH:
            yield from entries_with_tensors(value, f"{name}.{key}" if name else key, depth + 1)


def encoder_tensors(network: nn.Module) -> dict[str, Tensor]:
    """Return a network's tensors except `fc`, under the names of its library."""
    if isinstance(network, Backbone):
        return network.backbone.state_dict()
    return {name: value for name, value in network.state_dict().items() if not name.startswith("fc.")}


def find_encoders(network: nn.Module, state: dict) -> list[FoundEncoder]:
    """Return every place of a checkpoint where tensors of the network were found, the best place first.

    Places with more fitting tensors are better. If two are equal, a teacher or a moving average stored as an entry of
    its own is better than the trained network, because DINO, timm and torchvision evaluate it. Moving averages inside
    the same state dict are omitted, such as the key encoder of MoCo.
    """
    own = encoder_tensors(network)
    places = [
        place
        for entry, tensors in entries_with_tensors(state)
        for place in _places(network, own, entry, tensors)
        if not any(word in f"{entry}.{place.prefix}" for word in AVERAGES)
    ]
    return sorted(places, key=lambda place: (not place.fits(), -len(place.weights), entry_rank(place.entry)))


def entry_rank(entry: str) -> int:
    """Return 0 for a teacher or a moving average, 2 for a student, and 1 for other entries."""
    words = {word for part in entry.lower().split(".") for word in part.split("_")}
    return 0 if words & {"teacher", "ema"} else 2 if "student" in words else 1


def same_weights(a: FoundEncoder, b: FoundEncoder) -> bool:
    """Return whether two places contain the same numbers, as if a module is registered under two names."""
    return a.weights.keys() == b.weights.keys() and all(torch.equal(a.weights[k], b.weights[k]) for k in a.weights)


def _places(
    network: nn.Module, own: dict[str, Tensor], entry: str, tensors: dict[str, Tensor]
) -> Iterator[FoundEncoder]:
    inner = network.backbone if isinstance(network, Backbone) else network
    modules = {name for name, _ in inner.named_children()}
    classifiers = tuple(f"{name}." for name in getattr(network, "classifiers", ("fc",)))
    numbered_children = [
        name for name, child in inner.named_children() if f"{name}." not in classifiers and child.state_dict()
    ]
    for prefix, keys in [*_by_suffix(own, tensors).items(), *_by_number(numbered_children, own, tensors).items()]:
        weights = {name: tensors[key] for name, key in keys.items() if tensors[key].shape == own[name].shape}
        missing = [name for name in own if name not in keys and not name.endswith(COUNTER)]
        shapes = {
            name: (*(tuple(t.shape) for t in (tensors[keys[name]], own[name])),) for name in keys.keys() - weights
        }
        rest = sorted(tensors.keys() - keys.values())
        inside = [key.removeprefix(prefix) for key in rest if key.startswith(prefix)]
        firsts = {key.removeprefix(prefix).split(".")[0] for key in keys.values()}
        unknown = [
            key
            for key in inside
            if key.split(".")[0] in modules | firsts
            and not key.startswith(("fc.", *classifiers))
            and tensors[prefix + key].is_floating_point()  # indices and masks that some versions store
        ]
        unused = {_part(key.removeprefix(prefix)) for key in rest if key.removeprefix(prefix) not in unknown}
        yield FoundEncoder(weights, entry, prefix, missing, shapes, unknown, sorted(unused), len(own))


def _by_suffix(own: dict[str, Tensor], tensors: dict[str, Tensor]) -> dict[str, dict[str, str]]:
    """Return, for each prefix, the key of each of the network's tensors that is stored under prefix + name."""
    # The ResNets of SupContrast call the projection of a shortcut `shortcut`, torchvision's `downsample`.
    names = {name.replace(".downsample.", ".shortcut."): name for name in own} | {name: name for name in own}
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for key in tensors:
        starts = [0, *(at + 1 for at, letter in enumerate(key) if letter == ".")]
        for start in starts:
            if name := names.get(key[start:]):
                found[key[:start]][name] = key
    return found


def _by_number(children: list[str], own: dict[str, Tensor], tensors: dict[str, Tensor]) -> dict[str, dict[str, str]]:
    """Return the same as `_by_suffix` for networks that were stored as a Sequential of their children, in order.

    Children without tensors, such as a ReLU, have numbers of their own or are absent, so that the order of the numbers
    counts, not their values.
    """
    numbers: dict[str, set[int]] = defaultdict(set)
    parts = {key: key.split(".") for key in tensors}
    for words in parts.values():
        for at, word in enumerate(words[:-1]):
            if word.isdecimal():
                numbers[".".join([*words[:at], ""])].add(int(word))
    found = {}
    for prefix in (prefix for prefix, values in numbers.items() if len(values) == len(children) > 1):
        child_of = dict(zip(map(str, sorted(numbers[prefix])), children, strict=True))
        depth = prefix.count(".")
        keys = {
            ".".join([child_of[words[depth]], *words[depth + 1 :]]): key
            for key, words in parts.items()
            if key.startswith(prefix) and words[depth] in child_of
        }
        found[prefix] = {name: key for name, key in keys.items() if name in own}
    return found


def _part(key: str) -> str:
    """Return the name of the part of a model that a key belongs to, without wrappers: encoder_k, fc, queue."""
    words = key.split(".")
    return next((word for word in words if word not in WRAPPERS), words[-1])
