"""The command-line parser, which reports a wrong flag in one line, and types of numbers for its arguments."""

import argparse
import sys
import textwrap
from collections.abc import Callable, Iterable

from utils import launchers, recipes
from utils.distributed import log
from utils.safe_load import MAX_COUNT

Group = argparse._ArgumentGroup  # argparse has no public name for it
RECIPES = """@FILE reads flags from a file (see recipes/). If a flag is given more than once,
its last value is used. Write a value that begins with @ as --name=@value."""
MOST_USED = "Most used"  # the title of the first group in --help
MACHINES = ("world_size", "rank", "dist_url")  # arguments that only --multiprocessing-distributed uses


class Parser(argparse.ArgumentParser):
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

    def format_help(self) -> str:
        """Return the help text: usage, description, the most used flags, all other flags in their groups."""
        by_name = {action.dest: action for action in self._actions}
        first = [by_name[name] for name in ("help", *self.most_used)] if self.most_used else []
        sections = [(MOST_USED, None, first)]
        for group in self._action_groups:
            rest = [action for action in group._group_actions if action not in first]
            sections += [(group.title, group.description, rest)] if rest else []
        formatter = self._get_formatter()
        formatter.add_usage(self.usage, self._actions, self._mutually_exclusive_groups)
        formatter.add_text(self.description)
        for title, description, actions in sections:
            formatter.start_section(title)
            formatter.add_text(description)
            formatter.add_arguments(actions)
            formatter.end_section()
        formatter.add_text(self.epilog)
        return formatter.format_help()

    def parse_known_args(self, args=None, namespace=None):
        words = sys.argv[1:] if args is None else list(args)
        if not self._subparsers:  # otherwise the subcommand's parser expands recipes
            words = recipes.expand(words, self._check_line)
        namespace, rest = super().parse_known_args(words, namespace)
        self._check_no_empty_value(namespace)
        return namespace, rest

    def _check_no_empty_value(self, namespace: argparse.Namespace) -> None:
        for action in self._actions:
            value = getattr(namespace, action.dest, None)
            if value != action.default and "" in (value if isinstance(value, list) else [value]):
                name = "/".join(action.option_strings) or action.metavar or action.dest
                self.error(f"argument {name}: found an empty value, expected a path or a name")

    def _check_line(self, words: list[str]) -> None:
        """Raise ValueError unless `words` are flags of this parser with valid values."""

        def raise_error(message: str):
            if not message.startswith("the following arguments are required"):  # other lines may contain them
                raise ValueError(message)

        outer = vars(self).get("error")
        self.error = raise_error  # on this instance only
        try:
            namespace, rest = super().parse_known_args(words)
            self._check_no_empty_value(namespace)
            if rest:
                raise ValueError(f"found {' '.join(rest)}, expected flags of --help with their values")
        finally:
            del self.error
            vars(self).update({"error": outer} if outer else {})

    def error(self, message: str):
        self.exit(2, f"error: {message} (--help lists the flags)\n")


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


FlagConditions = list[tuple[str, Iterable[str]]]  # a condition such as "without --targeted", and names of arguments


def parse(
    parser: Parser,
    argv: list[str] | None,
    ignored_flags: Callable = lambda args: [],
    unsupported_flags: Callable = lambda args: [],
) -> argparse.Namespace:
    """Parse a command line, print a note about ignored flags, and exit with an error for unsupported combinations.

    Args:
        ignored_flags: maps the arguments to the FlagConditions of the flags that are ignored.
        unsupported_flags: maps the arguments to the FlagConditions of the flags that are errors. Both functions apply
            only to flags that were typed, whatever their value.
    """
    args = parser.parse_args(argv)
    spelling = {action.dest: action.option_strings[0] for action in parser._actions if action.option_strings}
    typed_names = _typed_names(parser, argv)

    def typed_flags(conditions: FlagConditions) -> list[tuple[str, list[str]]]:
        flags = [(text, [spelling[n] for n in spelling if n in {*names} & typed_names]) for text, names in conditions]
        return [(text, typed) for text, typed in flags if typed]

    single_process = not (getattr(args, "multiprocessing_distributed", True) or launchers.under_launcher())
    unsupported = [("without --multiprocessing-distributed", ("dist_url",))] if single_process else []
    for condition, flags in typed_flags([*unsupported_flags(args), *unsupported]):
        parser.error(f"{', '.join(flags)}: not supported {condition}; omit it")
    ignored = [*ignored_flags(args)]
    if hasattr(args, "cos"):
        ignored += [("with --cos", ("schedule",))] if args.cos else [("without --cos", ("lr_end",))]
        ignored += [("with --optimizer adamw", ("momentum",))] if args.optimizer == "adamw" else []
        ignored += [] if args.warmup_epochs else [("without --warmup-epochs", ("warmup_from",))]
    ignored += [("for one process", ("dist_backend",))] if single_process else []
    ignored += [("under torchrun", ("multiprocessing_distributed", *MACHINES))] if launchers.under_torchrun() else []
    ignored += [("under srun", MACHINES)] if launchers.under_srun() and not args.multiprocessing_distributed else []
    for condition, flags in typed_flags(ignored):
        log(f"note: {', '.join(flags)} ignored {condition}")
    return args


def _typed_names(parser: Parser, argv: list[str] | None) -> set[str]:
    """Return the names of the arguments that were typed, even if the value is the default."""
    unset = object()
    namespace = parser.parse_args(argv, argparse.Namespace(**{action.dest: unset for action in parser._actions}))
    return {name for name, value in vars(namespace).items() if value is not unset}


def number_type(
    name: str, python_type: type, allowed: Callable[[float], bool], expected: str
) -> Callable[[str], float]:
    """Return a type for `add_argument` that accepts allowed numbers only.

    Args:
        name: what argparse calls the type in its messages.
        python_type: int or float.
        allowed: returns whether a value is accepted.
        expected: description of the accepted values, for the message.
    """

    def convert(text: str) -> float:
        value = python_type(text)
        if not allowed(value):
            raise argparse.ArgumentTypeError(f"found {text}, expected {expected}")
        return value

    convert.__name__ = name  # argparse prints it if the text is not a number
    return convert


def int_type(name: str, least: int) -> Callable[[str], int]:
    """Return a type for `add_argument` that accepts integers from `least` to MAX_COUNT - 1, valid library indices."""
    at_least = number_type(name, int, lambda value: value >= least, f"{least} or more")

    def convert(text: str) -> int:
        if (value := at_least(text)) >= MAX_COUNT:
            raise argparse.ArgumentTypeError(f"found {text}, expected at most {MAX_COUNT - 1}")
        return value

    convert.__name__ = name
    return convert


positive_int, nonnegative_int = int_type("positive_int", 1), int_type("nonnegative_int", 0)
seconds = number_type("seconds", int, lambda value: 1 <= value <= 10**6, "1 to 1000000")
seed_number = number_type("seed_number", int, lambda value: 0 <= value < 2**63, "0 to 2**63 - 1")
positive_float = number_type("positive_float", float, lambda value: 0 < value < float("inf"), "a number above 0")
nonnegative_float = number_type(
    "nonnegative_float", float, lambda value: 0 <= value < float("inf"), "a number of at least 0"
)
fraction = number_type("fraction", float, lambda value: 0 <= value <= 1, "0 to 1")
