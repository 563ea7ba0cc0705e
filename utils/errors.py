"""One line for a user's mistake, exit code 2; a traceback only for a fault of ours."""

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

# Signals that ask a run to stop, and the exit codes they get. SIGUSR1 is a scheduler's warning: a planned end.
EXIT_CODES = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGUSR1: 0}
# What a terminal or a page acts on and does not show: control characters, directions of writing, halves of letters.
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no room: of a file that does not say which it is


def printable(text: str) -> str:
    r"""Text of a file or of a name as it can be shown: what would act on a terminal is spelled, as `\x1b` is.

    Line breaks and tabs stay.
    """
    return CONTROL.sub(lambda found: repr(found[0])[1:-1], text)


def brief(value: object) -> str:
    """What was found, for a message: 60 letters at most, however large or deep the value is."""
    try:
        return reprlib.repr(value)[:60]
    except Exception as error:  # of a value from elsewhere, as a number of too many digits
        return f"a {type(value).__name__} that cannot be shown ({type(error).__name__})"


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


class CannotMeet(InputError):  # noqa: N818
    """The processes of a job do not come together."""


class PeerLost(Exception):  # noqa: N818, whose fault it is nobody knows
    """Another process of the job has ended, or does not answer. The message is one line; empty: another says it."""


OF_THE_JOB = (CannotMeet, PeerLost)  # all processes of a machine end so: the one that launched them says it, once


def first_line(error: Exception) -> str:
    """The first line of what a library says of a failure, with the next one if it ends in a colon; else its class."""
    first, *others = str(error).splitlines() or [type(error).__name__]
    return f"{first} {others[0].strip()}" if first.endswith(":") and others else first


def one_line(error: Exception) -> str:
    """The message without the traceback that a loader worker, or a launched process, wraps around it."""
    return re.split("(?:InputError|CannotMeet|PeerLost): ", str(error))[-1].strip()


def of_the_job(error: Exception) -> Exception:
    """The one of OF_THE_JOB that is told in the traceback which a launched process has left, or else the error."""
    told = (kind(one_line(error)) for kind in OF_THE_JOB if f"{kind.__name__}: " in str(error))
    return next(told, error)


def tell(text: str) -> None:
    """Say something on stderr, where a bar may still stand: stdout may be read by a program."""
    for bar in [*getattr(tqdm, "_instances", ())]:
        bar.close()
    print(printable(text), file=sys.stderr, flush=True)


def _complain(text: str) -> None:
    """A line, whatever the names in it."""
    tell("error: " + text.replace("\n", "\\n"))


def run(main: Callable[[], None], interrupted: str = "nothing is half written") -> None:
    """Run a command line's main and turn its ends into exit codes: 2 bad input, 130 Ctrl-C, or `Stopped`'s.

    And 1 where memory has run out, a loader process or another one of the job has died, or nobody reads what is printed
    (`| head`).

    Args:
        interrupted: what to say after Ctrl-C about what is there and how to go on.
    """
    _print_anywhere()
    try:
        main()
    except (InputError, PeerLost) as error:
        if isinstance(error, OF_THE_JOB) and multiprocessing.parent_process():
            raise
        if line := one_line(error):  # not every process has one
            _complain(line)
        sys.exit(1 if isinstance(error, PeerLost) else 2)
    except OSError as error:
        if isinstance(error, BrokenPipeError) and unread():
            sys.exit(1)
        if error.filename is None and error.errno not in FULL:
            raise
        sys.unraisablehook = lambda _: None  # PyTorch's loader, half made for want of room, fails once more as it ends
        _complain(f"{error.filename or 'a log file, or shared memory (/dev/shm)'}: {error.strerror}")
        sys.exit(2)
    except Stopped as stop:
        if message := str(stop):  # not every process has one
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
    """What a library's error means to the user, and the exit code; "" for a fault of ours."""
    first = first_line(error).rstrip(".")
    if type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported for this
        return f"{first}. Training needs less with a smaller -b or --amp bf16", 1
    asked = re.search(r"you tried to allocate (\d+) bytes", first)
    if asked or isinstance(error, MemoryError) or first.startswith("Storage size calculation overflowed"):
        size = f"{int(asked[1]) / 2**30:,.1f} GiB" if asked else first
        return f"this machine has not the memory ({size}); smaller numbers need less, in training -b first of all", 1
    operation, nondeterministic, _ = first.partition(" does not have a deterministic implementation")
    if nondeterministic:
        advice = "leave --deterministic out, or choose another --arch"
        return f"--deterministic: {operation} has no deterministic form on a GPU; {advice}", 2
    if "unable to allocate shared memory" in str(error):
        return (
            "no shared memory (/dev/shm) is left for loader processes; give more, or -j for fewer or none",
            1,
        )
    if str(error).startswith("DataLoader worker"):
        return f"a loader process died: {first}. Too little memory? -j asks for fewer, or for none", 1
    return "", 0


def _print_anywhere() -> None:
    """Where the console has no ÷ or ≤, or is closed, printing is no error."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed: a file that is opened later would else take its number
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115, PTH123
        elif hasattr(stream, "reconfigure"):
            with suppress(OSError):  # one that now leads elsewhere than when it was opened
                stream.reconfigure(errors="backslashreplace")


def flush() -> None:
    """Bring out what was printed; where nobody reads on, as behind `| head`, what follows goes nowhere."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def unread() -> bool:
    """Whether the one who read what is printed has gone."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(state & select.POLLERR for _, state in poll.poll(0))
