"""One line for a user's mistake, exit code 2; a traceback only for a fault of ours."""

import errno
import signal
import sys
from collections.abc import Callable

# Signals that ask a run to stop, and the exit codes they get. SIGUSR1 is a scheduler's warning: a planned end.
EXIT_CODES = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGUSR1: 0}
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no room: of a file that does not say which it is


class InputError(Exception):
    """Something the user gave cannot be used.

    The message is one line: what was found, where, what was expected, what to do.
    """


class Stopped(Exception):  # noqa: N818, it is no error
    """The run has saved itself and ends because a signal has asked it to.

    exit_code: one of EXIT_CODES.
    """

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


def first_line(error: Exception) -> str:
    """The first line of what a library says of a failure, with the next one if it ends in a colon; else its class."""
    first, *others = str(error).splitlines() or [type(error).__name__]
    return f"{first} {others[0].strip()}" if first.endswith(":") and others else first


def one_line(error: InputError) -> str:
    """The message without the traceback a loader worker wraps around it."""
    return str(error).rsplit("InputError: ", 1)[-1].strip()


def run(main: Callable[[], None], interrupted: str = "nothing is half written") -> None:
    """Run a command line's main and turn its ends into exit codes: 2 bad input, 130 Ctrl-C, or `Stopped`'s.

    And 1 where memory has run out, or a loader process has died.

    Args:
        interrupted: what to say after Ctrl-C about what is there and how to go on.
    """
    try:
        main()
    except InputError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.filename is None and error.errno not in FULL:
            raise
        print(f"error: {error.filename or 'a log file'}: {error.strerror}", file=sys.stderr)
        sys.exit(2)
    except Stopped as stop:
        if message := str(stop):  # not every process has one
            print(message, file=sys.stderr)
        sys.exit(stop.exit_code)
    except RuntimeError as error:
        first = first_line(error).rstrip(".")
        if type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported for this
            print(f"error: {first}. Training needs less with a smaller -b or --amp bf16", file=sys.stderr)
            sys.exit(1)
        operation, nondeterministic, _ = first.partition(" does not have a deterministic implementation")
        if nondeterministic:
            print(
                f"error: --deterministic: {operation} has no deterministic form on a GPU; leave --deterministic out, "
                "or choose another --arch",
                file=sys.stderr,
            )
            sys.exit(2)
        if not str(error).startswith("DataLoader worker"):
            raise
        print(
            f"error: a loader process died: {first}. Too little memory? -j asks for fewer, or for none", file=sys.stderr
        )
        sys.exit(1)
    except KeyboardInterrupt:
        print(f"\ninterrupted: {interrupted}", file=sys.stderr)
        sys.exit(130)
