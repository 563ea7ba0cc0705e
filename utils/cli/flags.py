"""What a flag declares besides its name, type and help: its effect on a run, and when it is ignored or refused.

`add_argument` of this project's parser accepts these as keywords, so that all facts about a flag stand in one place.
"""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import cache
from importlib import import_module
from types import MappingProxyType
from typing import NamedTuple

STAGES = (
    "main_moco_supcon_imba",
    "main_lincls_imba",
)  # the examples add almost no flags of their own


ENCODER, RESULT = "encoder", "result"  # values of Effect.stored


class When(NamedTuple):
    """A condition on the arguments of a command.

    Attributes:
        text: The condition in words, such as "without --targeted". {NAME} stands for the value of an argument.
        holds: Maps the arguments to whether the condition holds.
    """

    text: str
    holds: Callable[[argparse.Namespace], bool]


@dataclass(frozen=True)
class Effect:
    """What a flag declares. Each attribute is a keyword of `add_argument`.

    Attributes:
        affects_result: Whether the flag changes what a run computes. A resumed run must keep such a flag.
        by_content: Whether it names a file or folder whose content affects the result, although a resumed run may
            use another path. Set it together with affects_result=False; reports then still show the flag.
        same_everywhere: Whether it must be equal in all processes of a job. Default: if it affects the result.
        trains: Whether only training steps use it, so that a classifier that is fitted to features ignores it.
        ignored: Conditions in which the flag has no effect. A note is printed if it was typed.
        refused: Conditions in which the flag must not be typed.
        stored: Whether stage 2 takes the flag from its checkpoint, unless it is typed. ENCODER: always, because the
            encoder was trained with it. RESULT: with --evaluate, because the stored accuracies depend on it.
        rare: Whether only --help-all lists it, not --help.
        legacy: The value, or a function of the arguments that returns it, in checkpoints older than the flag.
    """

    affects_result: bool = True
    by_content: bool = False
    same_everywhere: bool | None = None
    trains: bool = False
    ignored: tuple[When, ...] = ()
    refused: tuple[When, ...] = ()
    stored: str | None = None
    rare: bool = False
    legacy: object = argparse.SUPPRESS  # no such checkpoints exist

    def legacy_value(self, args: argparse.Namespace) -> object:
        """Return the value in checkpoints older than the flag. args: the other arguments."""
        return self.legacy(args) if callable(self.legacy) else self.legacy


NAMES = tuple(field.name for field in fields(Effect))


class Declarations:
    """A mix-in of argparse's parsers and groups whose `add_argument` accepts the attributes of `Effect`."""

    def add_argument(self, *names: str, **keywords) -> argparse.Action:
        effect = Effect(**{name: keywords.pop(name) for name in NAMES if name in keywords})
        action = super().add_argument(*names, **keywords)
        action.effect = effect
        return action


class Group(Declarations, argparse._ArgumentGroup):
    """A titled group of flags in --help."""


class Arguments(NamedTuple):
    """The arguments of a run, as args.json and checkpoints store them, and what their flags declare.

    Attributes:
        values: Name -> plain value.
        free: Names of arguments that a resumed run may change.
        shared: Names of arguments that must be equal in all processes of a job.
        legacy: Name -> value in checkpoints that lack the argument.
    """

    values: dict[str, object]
    free: frozenset[str]
    shared: frozenset[str]
    legacy: dict[str, object]

    def changes_since(self, then: dict[str, object]) -> dict[str, str]:
        """Return {"lr": "0.1 -> 0.03"} for each argument that affects the result and differs from `then`."""
        then = self.legacy | then
        names = sorted(then.keys() & self.values.keys() - self.free)
        return {name: f"{then[name]} -> {self.values[name]}" for name in names if then[name] != self.values[name]}

    def agreed(self) -> dict[str, object]:
        """Return the arguments that must be equal in all processes of a job."""
        return {name: self.values[name] for name in self.shared}

    def with_values(self, **values: object) -> "Arguments":
        """Return a copy with other or further values, which affect the result unless a flag declares otherwise."""
        return self._replace(values=dict(sorted((self.values | values).items())))


def describe_arguments(
    parser: argparse.ArgumentParser,
    args: argparse.Namespace,
    facts: Mapping[str, object] = MappingProxyType({}),
    legacy: Mapping[str, object] = MappingProxyType({}),
) -> Arguments:
    """Return the arguments with what their flags declare.

    Args:
        facts: Further values to store, such as the hash of a list. They affect the result.
        legacy: Name -> value of `facts` in older checkpoints, which do not store them.
    """
    effects = {action.dest: effect_of(action) for action in parser._actions}
    declared = {n: effect.legacy_value(args) for n, effect in effects.items() if effect.legacy is not argparse.SUPPRESS}
    return Arguments(
        plain_values(vars(args) | dict(facts)),
        frozenset(name for name, effect in effects.items() if not effect.affects_result),
        frozenset(
            name
            for name in vars(args) | dict(facts)
            if (effect := effects.get(name, Effect())).same_everywhere
            or (effect.same_everywhere is None and effect.affects_result)
        ),
        declared | dict(legacy),
    )


def effect_of(action: argparse.Action) -> Effect:
    return getattr(action, "effect", Effect())


def plain_values(values: dict[str, object]) -> dict[str, object]:
    """Return the values as JSON and safe checkpoints can hold them, sorted by name."""
    keep = (str, int, float, bool, list, type(None))
    return {name: value if isinstance(value, keep) else str(value) for name, value in sorted(values.items())}


@cache
def declared_flags() -> list[argparse.Action]:
    """Return the flags of both stages. Import their scripts, for commands that read the run folders of both."""
    return [action for name in STAGES for action in import_module(name).get_args_parser()._actions]
