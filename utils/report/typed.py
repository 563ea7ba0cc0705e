"""What was typed: of the command that a run folder keeps, the flags that decide the result."""

import re
import shlex
from pathlib import Path

from utils.run.arguments import FREE, SPELLINGS

# Free to differ when a run goes on, by what its checkpoint knows of them, and yet what the result depends on.
DECIDING = {"init_from", "splits", "train_txt", "val_txt", "test_txt"}
FLAG = re.compile(r"--?[A-Za-z][\w-]*(=.*)?", re.DOTALL)  # and not -1, which is a value


def typed(command: str) -> str:
    """The script's file name and its flags as they were typed, but for those of FREE; of a flag given again the later.

    The flags of a recipe are among them, for a command is kept with what was in the file. Folders of before have
    the @FILE itself, which is shown.
    """
    try:
        words = shlex.split(command)
    except ValueError:  # of the first run folders, whose words are joined without quotes
        words = command.split()
    script, *words = words[1:] or ["unknown"]
    name, given = "", {"": []}  # what stands before any flag is no script's of ours
    for word in words:
        if FLAG.fullmatch(word) or word.startswith("@"):
            name = word if word.startswith("@") else argument_of(word)
            given.pop(name, None)  # the later stands where it was typed: behind a recipe that it overrides
            given[name] = []
        given[name].append(word)
    kept = [word for name, part in given.items() if name not in FREE - DECIDING for word in part]
    return shlex.join([Path(script).name, *kept])


def argument_of(flag: str) -> str:
    """The name of the argument: `--moco-k`, `--moco-k=8`, `-b`, `-b8`."""
    flag = flag.partition("=")[0]
    flag = flag if flag.startswith("--") else flag[:2]
    return SPELLINGS.get(flag, flag.lstrip("-").replace("-", "_"))
