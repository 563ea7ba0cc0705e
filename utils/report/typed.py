"""Extract the typed flags that affect the result from the command stored in a run folder."""

import re
import shlex
from pathlib import Path

from utils.cli.flags import declared_flags, effect_of

FLAG = re.compile(r"--?[A-Za-z][\w-]*(=.*)?", re.DOTALL)  # excludes -1, which is a value


def typed_flags(command: str) -> str:
    """Return the script's file name and the typed flags that affect the result.

    Of a repeated flag, the last value is returned.

    Recipes are already expanded in a stored command. In old run folders the command contains @FILE, which is shown.
    """
    try:
        words = shlex.split(command)
    except ValueError:  # the oldest run folders have no quotes in their command
        words = command.split()
    script, *words = words[1:] or ["unknown"]
    name, words_by_flag = "", {"": []}  # no script of this project has positional arguments
    for word in words:
        if FLAG.fullmatch(word) or word.startswith("@"):
            name = word if word.startswith("@") else argument_name(word)
            words_by_flag.pop(name, None)  # the last value stays in its place, after a recipe that it overrides
            words_by_flag[name] = []
        words_by_flag[name].append(word)
    free = {
        flag.dest for flag in declared_flags() if not (effect_of(flag).affects_result or effect_of(flag).by_content)
    }
    kept_words = [word for name, flag_words in words_by_flag.items() if name not in free for word in flag_words]
    return shlex.join([Path(script).name, *kept_words])


def argument_name(flag: str) -> str:
    """Return the name of the argument of a flag in any form: `--moco-k`, `--moco-k=8`, `-b`, `-b8`."""
    flag = flag.partition("=")[0]
    flag = flag if flag.startswith("--") else flag[:2]
    spellings = {spelling: action.dest for action in declared_flags() for spelling in action.option_strings}
    return spellings.get(flag, flag.lstrip("-").replace("-", "_"))
