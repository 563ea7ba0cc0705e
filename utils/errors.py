"""One line for a user's mistake, exit code 2; a traceback only for a fault of ours."""

import sys
from collections.abc import Callable


class InputError(Exception):
    """Something the user gave cannot be used.

    The message is one line: what was found, where, what was expected, what to do.
    """


def one_line(error: InputError) -> str:
    """The message without the traceback a loader worker wraps around it."""
    return str(error).rsplit("InputError: ", 1)[-1].strip()


def run(main: Callable[[], None], interrupted: str = "nothing is half written") -> None:
    """Run a command line's main and turn its ends into exit codes: 2 bad input, 130 Ctrl-C.

    Args:
        interrupted: what to say after Ctrl-C about what is there and how to go on.
    """
    try:
        main()
    except InputError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.filename is None:
            raise
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"\ninterrupted: {interrupted}", file=sys.stderr)
        sys.exit(130)
