"""Errors: one line and exit code 2 for a user's mistake, a traceback only for a bug of this project."""

import errno
import multiprocessing
import os
import re
import reprlib
import select
import signal
import sys
from collections.abc import Callable
from contextlib import suppress

from tqdm import tqdm

# Signals that ask a run to stop, and their exit codes. SIGUSR1 is a scheduler's warning of a planned end: no failure.
EXIT_CODES = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGUSR1: 0}
# Characters that a terminal or a page interprets instead of showing: control and bidirectional characters, surrogates.
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # errors of a full disk, which often carry no file name


def printable(text: str) -> str:
    r"""Return text that is safe to print: characters that a terminal interprets are escaped, such as `\x1b`.

    Line breaks and tabs are kept.
    """
    return CONTROL.sub(lambda found: repr(found[0])[1:-1], text)


def brief(value: object) -> str:
    """Return a value as text of at most 60 characters for a message, however large or deeply nested it is."""
    try:
        return reprlib.repr(value)[:60]
    except Exception as error:  # untrusted values can fail here, such as an integer with too many digits
        return f"a {type(value).__name__} that cannot be printed ({type(error).__name__})"


class InputError(Exception):
    """An input of the user that cannot be used.

    The message is one line: what was found, where, what was expected, what to type.
    """


class Stopped(Exception):  # noqa: N818, it is not an error
    """The planned end of a run: it has saved its checkpoint and stops, because of a signal or after --dry-run.

    Attributes:
        exit_code: one of EXIT_CODES.
    """

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


class CannotMeet(InputError):  # noqa: N818
    """The processes of a job could not form a process group."""


class PeerLost(Exception):  # noqa: N818, the cause lies in another process
    """Another process of the job exited or stopped responding.

    The message is one line. It is empty if another process prints it.
    """


OF_THE_JOB = (CannotMeet, PeerLost)  # all processes of a machine raise these: their parent prints the message once


def first_line(error: Exception) -> str:
    """Return the first line of a library's error, with the next line if it ends in a colon; without text, its class."""
    first, *others = str(error).splitlines() or [type(error).__name__]
    return f"{first} {others[0].strip()}" if first.endswith(":") and others else first


def one_line(error: Exception) -> str:
    """Return the message without the traceback that a loader worker or a launched process wraps around it."""
    return re.split("(?:InputError|CannotMeet|PeerLost): ", str(error))[-1].strip()


def of_the_job(error: Exception) -> Exception:
    """Return the error of OF_THE_JOB that is named in the traceback of a launched process; without one, `error`."""
    told = (kind(one_line(error)) for kind in OF_THE_JOB if f"{kind.__name__}: " in str(error))
    return next(told, error)


def tell(text: str) -> None:
    """Print a line on stderr, below any progress bar; stdout may be read by a program."""
    for bar in [*getattr(tqdm, "_instances", ())]:
        bar.close()
    print(printable(text), file=sys.stderr, flush=True)


def _complain(text: str) -> None:
    """Print an error as a single line, even if a file name in it contains a line break."""
    tell("error: " + text.replace("\n", "\\n"))


def run(main: Callable[[], None], interrupted: str = "no file is half written") -> None:
    """Run a command line's main function and exit with a code: 2 for bad input, 130 for Ctrl-C, or `Stopped`'s.

    The exit code is 1 if memory runs out, if a loader process or another process of the job dies, or if the reader of
    stdout has gone (`| head`).

    Args:
        interrupted: message after Ctrl-C: what has been written and how to continue.
    """
    _print_anywhere()
    try:
        main()
    except (InputError, PeerLost) as error:
        if isinstance(error, OF_THE_JOB) and multiprocessing.parent_process():
            raise
        if line := one_line(error):  # one process prints for all
            _complain(line)
        sys.exit(1 if isinstance(error, PeerLost) else 2)
    except OSError as error:
        if isinstance(error, BrokenPipeError) and unread():
            sys.exit(1)
        if error.filename is None and error.errno not in FULL:
            raise
        sys.unraisablehook = lambda _: None  # a half-made PyTorch loader fails once more at exit: do not print that
        _complain(f"{error.filename or 'a log file, or shared memory (/dev/shm)'}: {error.strerror}")
        sys.exit(2)
    except Stopped as stop:
        if message := str(stop):  # one process prints for all
            tell(message)
        sys.exit(stop.exit_code)
    except (RuntimeError, MemoryError) as error:
        message, exit_code = _of_library(error)
        if not message:
            raise
        _complain(message)
        sys.exit(exit_code)
    except KeyboardInterrupt:
        tell(f"\ninterrupted: {interrupted}")
        sys.exit(130)
    finally:
        flush()


def _of_library(error: Exception) -> tuple[str, int]:
    """Return the message for a library's error, and the exit code; the message is "" for a bug of this project."""
    first = first_line(error).rstrip(".")
    if type(error).__name__ == "OutOfMemoryError":  # torch's class, compared by name to avoid importing torch
        return f"{first}. Reduce -b, or use --amp bf16", 1
    asked = re.search(r"you tried to allocate (\d+) bytes", first)
    if asked or isinstance(error, MemoryError) or first.startswith("Storage size calculation overflowed"):
        size = f"{int(asked[1]) / 2**30:,.1f} GiB" if asked else first
        return f"not enough memory ({size}); reduce -b (--batch-size)", 1
    operation, nondeterministic, _ = first.partition(" does not have a deterministic implementation")
    if nondeterministic:
        advice = "omit --deterministic, or choose another --arch"
        return f"--deterministic: {operation} has no deterministic implementation on a GPU; {advice}", 2
    if "unable to allocate shared memory" in str(error):
        return (
            "loader processes: no shared memory (/dev/shm) left; increase it, or reduce -j (0: no loader processes)",
            1,
        )
    if str(error).startswith("DataLoader worker"):
        return f"a loader process died: {first}. If memory ran out, reduce -j (0: no loader processes)", 1
    return "", 0


def _print_anywhere() -> None:
    """Make printing safe on a console that is closed or lacks characters such as ÷ or ≤."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed: without this, a file that is opened later would get the stream's descriptor
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115, PTH123
        elif hasattr(stream, "reconfigure"):
            with suppress(OSError):  # a redirected stream may refuse
                stream.reconfigure(errors="backslashreplace")


def flush() -> None:
    """Flush stdout; if its reader has gone, as after `| head`, discard further output."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def unread() -> bool:
    """Whether the reader of stdout has gone."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(state & select.POLLERR for _, state in poll.poll(0))
