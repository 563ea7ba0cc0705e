"""The command-line parser, which reports a wrong flag in one line."""

import argparse
import difflib
import os
import re
import sys
import textwrap
from collections.abc import Iterable
from dataclasses import replace

from utils.cli import recipes
from utils.cli.flags import Declarations, Group, When, describe_arguments, effect_of
from utils.distributed import log

RECIPES = """@FILE reads flags from a file (see recipes/). If a flag is given more than once,
its last value is used. Write a value that begins with @ as --name=@value."""
PATHS = ("DIR", "FILE", "PATH", "PNG")  # metavars of flags whose value is a path
UNEXPANDED = re.compile(r"\$\w+|\$\{\w+\}|^~\w*")  # a variable that is not set, or the home of an unknown user
RARE = "--help-all also lists {count} rarely used flags."
MOST_USED = "Most used"  # the title of the first group in --help


class Parser(Declarations, argparse.ArgumentParser):
    """A parser that shows defaults in --help, reads recipes (@FILE), and reports a wrong flag in one line.

    An empty value, such as that of an unset shell variable, is an error unless it is the default (--name); an empty
    path would mean the default or the current folder.

    Args:
        most_used: names of arguments (`dest`) that --help lists first, in this order and in a group of their own.
            They follow -h; the group in which an argument is declared does not list it again.
    """

    def __init__(self, most_used: Iterable[str] = (), **kwargs):
        module = getattr(sys.modules["__main__"], "__spec__", None)  # set by `python -m MODULE`
        program = {"prog": f"python -m {module.name.removesuffix('.__main__')}"} if module else {}
        super().__init__(formatter_class=HelpFormatter, epilog=RECIPES, allow_abbrev=False, **(program | kwargs))
        self.most_used = tuple(most_used)
        for action in self._actions:  # only -h exists yet
            action.help = "Show this message and exit."
        if self.most_used:
            self.add_argument(
                "--help-all", action=HelpAll, nargs=0, default=argparse.SUPPRESS, help="Show all flags and exit."
            )

    def add_argument_group(self, *args, **kwargs) -> Group:
        group = Group(self, *args, **kwargs)
        self._action_groups.append(group)
        return group

    def restrict(self, name: str, *, refused: Iterable[When] = (), ignored: Iterable[When] = ()) -> None:
        """Add conditions in which a flag that another module has declared is refused or ignored, before its own."""
        (flag,) = (action for action in self._actions if action.dest == name)
        effect = effect_of(flag)
        flag.effect = replace(effect, refused=(*refused, *effect.refused), ignored=(*ignored, *effect.ignored))

    describe = describe_arguments

    def format_help(self, rare: bool = False) -> str:
        """Return the help text: usage, description, the most used flags, all other flags in their groups.

        rare: whether to list the flags that declare `rare=True`.
        """
        omitted = [action for action in self._actions if effect_of(action).rare and not rare]
        by_name = {action.dest: action for action in self._actions}
        first = [by_name[name] for name in ("help", "help_all", *self.most_used)] if self.most_used else []
        sections = [(MOST_USED, None, first)]
        for group in self._action_groups:
            rest = [action for action in group._group_actions if action not in (*first, *omitted)]
            sections += [(group.title, group.description, rest)] if rest else []
        formatter = self._get_formatter()
        formatter.add_usage(self.usage, self._actions, self._mutually_exclusive_groups)
        formatter.add_text(self.description)
        for title, description, actions in sections:
            formatter.start_section(title)
            formatter.add_text(description)
            formatter.add_arguments(actions)
            formatter.end_section()
        formatter.add_text("\n".join([self.epilog, RARE.format(count=len(omitted))] if omitted else [self.epilog]))
        return formatter.format_help()

    def parse_known_args(self, args=None, namespace=None):
        words = sys.argv[1:] if args is None else list(args)
        if not self._subparsers:  # otherwise the subcommand's parser expands recipes
            words = recipes.expand(words, self.check_words)
        namespace, rest = super().parse_known_args(words, namespace)
        self._check_no_empty_value(namespace)
        self._expand_paths(namespace)
        return namespace, rest

    def parse_args(self, args=None, namespace=None):
        namespace, rest = self.parse_known_args(args, namespace)
        last = next(reversed(self._get_positional_actions()), None)
        if last and last.nargs == "*" and all(word and not word.startswith("-") for word in rest):
            # argparse does not accept values of a list that follow a flag, as in `RUN --output DIR RUN`
            setattr(namespace, last.dest, [*getattr(namespace, last.dest), *rest])
        elif rest:
            self.error(f"unrecognized arguments: {' '.join(rest)}{self._suggested_flag(rest)}")
        return namespace

    def _suggested_flag(self, words: list[str]) -> str:
        """Return "; did you mean FLAG?" for the first unknown flag among words, or "" if no flag has a similar name."""
        parsers = [self, *(self._subparsers._group_actions[0].choices.values() if self._subparsers else ())]
        flags = [flag for parser in parsers for flag in parser._option_string_actions]
        unknown = next((word.partition("=")[0] for word in words if word.startswith("-")), "")
        return suggestion(unknown, flags)

    def _check_value(self, action: argparse.Action, value) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            error.message += suggestion(str(value), map(str, action.choices))
            raise

    def _expand_paths(self, namespace: argparse.Namespace) -> None:
        """Expand ~ and $NAME in paths. The shell does not do so in a recipe, in the plan of a study, or after `=`."""
        for action in self._actions:
            value = getattr(namespace, action.dest, None)
            if action.metavar not in PATHS or not isinstance(value, str):
                continue
            path = os.path.expanduser(os.path.expandvars(value))  # noqa: PTH111, Path fails for an unknown user
            if (unknown := UNEXPANDED.search(path)) and not os.path.lexists(path):
                self.error(f"argument {long_spelling(action)}: {value}: {unknown[0]} is not set")
            setattr(namespace, action.dest, path)

    def _check_no_empty_value(self, namespace: argparse.Namespace) -> None:
        for action in self._actions:
            value = getattr(namespace, action.dest, None)
            if value != action.default and "" in (value if isinstance(value, list) else [value]):
                name = "/".join(action.option_strings) or action.metavar or action.dest
                self.error(f"argument {name}: found an empty value, expected a path or a name")

    def check_words(self, words: list[str]) -> None:
        """Raise ValueError unless `words` are flags of this parser with valid values."""

        def raise_error(message: str):
            if not message.startswith("the following arguments are required"):  # other lines may contain them
                raise ValueError(message)

        previous_error = vars(self).get("error")
        self.error = raise_error  # on this instance only
        try:
            namespace, rest = super().parse_known_args(words)
            self._check_no_empty_value(namespace)
            if rest:
                near = self._suggested_flag(rest)
                raise ValueError(f"found {' '.join(rest)}, expected flags of --help with their values{near}")
        finally:
            del self.error
            vars(self).update({"error": previous_error} if previous_error else {})

    def error(self, message: str):
        self.exit(2, f"error: {message} (--help lists the flags)\n")


class HelpAll(argparse.Action):
    """The action of --help-all: print the help text with the rarely used flags, and exit."""

    def __call__(self, parser, namespace, values, option_string=None):
        parser._print_message(parser.format_help(rare=True), sys.stdout)
        parser.exit()


def suggestion(word: str, names: Iterable[str]) -> str:
    """Return "; did you mean NAME?" for the name that is most similar to a word, or "" if none is similar."""
    by_lower = {name.lower(): name for name in names}
    near = difflib.get_close_matches(word.lower(), by_lower, 1, cutoff=0.7)
    return f"; did you mean {by_lower[near[0]]}?" if near else ""


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """A formatter that prints the usage in one line, the description unchanged, and defaults in a help's first line.

    Line breaks in a help text are kept, so that each value of a flag can have its own line.
    """

    def _format_usage(self, usage, actions, groups, prefix):
        positionals = [action for action in actions if not action.option_strings]
        if usage is None and len(positionals) < len(actions):
            metavars = [(action, self._get_default_metavar_for_positional(action)) for action in positionals]
            usage = " ".join(["%(prog)s [flags]", *(self._format_args(*pair) for pair in metavars)])
        return super()._format_usage(usage, actions, groups, prefix)

    def _format_action_invocation(self, action):
        """Return `-a, --arch ARCH`; argparse repeats the metavar after each spelling before Python 3.13."""
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        metavar = self._format_args(action, self._get_default_metavar_for_optional(action))
        return f"{', '.join(action.option_strings)} {metavar}"

    def _split_lines(self, text, width):
        """Wrap each line of a help text, never inside a flag; all but the first have a hanging indent."""
        first, *rest = text.split("\n")
        wrapped = textwrap.wrap(first, width, break_on_hyphens=False)
        for line in rest:
            wrapped += textwrap.wrap(line, width, subsequent_indent="  ", break_on_hyphens=False)
        return wrapped

    def _get_help_string(self, action):
        default = action.default
        if default is False or default in (None, "", [], argparse.SUPPRESS) or "(default" in action.help:
            return action.help
        values = default if isinstance(default, list) else [default]
        first, *rest = action.help.split("\n")
        value_text = " ".join(map(str, values)).replace("%", "%%")
        return "\n".join([f"{first.removesuffix('.')} (default: {value_text}).", *rest])


def parse(parser: Parser, argv: list[str] | None) -> argparse.Namespace:
    """Parse a command line, print a note about ignored flags, and exit with an error for unsupported combinations.

    The conditions are those that the flags declare; see `Effect`. Only flags that were typed are considered.
    """
    args = parser.parse_args(argv)
    refuse_unsupported(parser, argv, args)
    for condition, flags in _matching_conditions("ignored", parser, argv, args).items():
        log(f"note: {', '.join(flags)} ignored {condition}")
    return args


def refuse_unsupported(parser: Parser, argv: list[str] | None, args: argparse.Namespace) -> None:
    """Exit with an error for unsupported combinations of flags."""
    for condition, flags in _matching_conditions("refused", parser, argv, args).items():
        parser.error(f"{', '.join(flags)}: not supported {condition}; omit it")


def _matching_conditions(kind: str, parser: Parser, argv: list[str] | None, args: argparse.Namespace) -> dict:
    """Return condition -> typed flags for which it is the first one that holds. kind: "ignored" or "refused"."""
    matching: dict[str, list[str]] = {}
    names = typed_names(parser, argv)
    for flag in [action for action in parser._actions if action.option_strings and action.dest in names]:
        conditions = [when for when in getattr(effect_of(flag), kind) if when.holds(args)]
        for when in conditions[:1]:
            matching.setdefault(when.text.format_map(vars(args)), []).append(long_spelling(flag))
    return matching


def long_spelling(flag: argparse.Action) -> str:
    """Return the first spelling of a flag that begins with --, otherwise the first one."""
    return next((spelling for spelling in flag.option_strings if spelling.startswith("--")), flag.option_strings[0])


def typed_names(parser: Parser, argv: list[str] | None) -> set[str]:
    """Return the names of the arguments that were typed, even if the value is the default."""
    unset = object()
    flags = {action.dest: unset for action in parser._actions}  # set_defaults can add names that no flag has
    namespace = vars(parser.parse_args(argv, argparse.Namespace(**flags)))
    return {name for name in flags if namespace.get(name) is not unset}
