"""Extract the typed flags that affect the result from the command stored in a run folder."""

import re
import shlex
from pathlib import Path

from utils.run.arguments import RESUME_CHANGEABLE, SPELLINGS

# Arguments that a resumed run may change (its checkpoint records their contents), but that affect the result.
DECIDING = {"init_from", "splits", "train_txt", "val_txt", "test_txt"}
FLAG = re.compile(r"--?[A-Za-z][\w-]*(=.*)?", re.DOTALL)  # excludes -1, which is a value


def typed_flags(command: str) -> str:
    """Return the script's file name and its typed flags, except those of RESUME_CHANGEABLE.

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
    kept_words = [
        word
        for name, flag_words in words_by_flag.items()
        if name not in RESUME_CHANGEABLE - DECIDING
        for word in flag_words
    ]
    return shlex.join([Path(script).name, *kept_words])


def argument_name(flag: str) -> str:
    """Return the name of the argument of a flag in any form: `--moco-k`, `--moco-k=8`, `-b`, `-b8`."""
    flag = flag.partition("=")[0]
    flag = flag if flag.startswith("--") else flag[:2]
    return SPELLINGS.get(flag, flag.lstrip("-").replace("-", "_"))
