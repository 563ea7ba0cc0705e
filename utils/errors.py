"""Errors: one line and exit code 2 for a user's mistake, a traceback only for a bug of this project."""

import errno
import multiprocessing
import os
import re
import reprlib
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from tqdm import tqdm

# By default, forked processes share tqdm's lock, so that one that is killed while it prints would block all others.
tqdm.set_lock(threading.RLock())
# Signals that ask a run to stop, and their exit codes.
EXIT_CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}
if hasattr(signal, "SIGUSR1"):  # not on Windows
    EXIT_CODES[signal.SIGUSR1] = 0  # a scheduler's warning of a planned end: no failure
# Characters that a terminal or a page interprets instead of showing: control and bidirectional characters, surrogates.
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")
# What `run` prints after a signal that arrived before a checkpoint could be saved.
UNSAVED = (
    "no new checkpoint was saved; with --resume auto, the same command continues from the last checkpoint, or starts "
    "again if there is none"
)
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # errors of a full disk, which often carry no file name


def printable(text: str) -> str:
    r"""Return text that is safe to print: characters that a terminal interprets are escaped, such as `\x1b`.

    Line breaks and tabs are kept.
    """
    return CONTROL.sub(lambda found: repr(found[0])[1:-1], text)


def short_repr(value: object) -> str:
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


class Interrupted(KeyboardInterrupt):
    """SIGTERM or SIGUSR1 has arrived while no training was running that could save a checkpoint.

    Attributes:
        number: the signal.
    """

    def __init__(self, number: int):
        super().__init__()
        self.number = number


class CannotConnect(InputError):  # noqa: N818
    """The processes of a job could not form a process group."""


class PeerLost(Exception):  # noqa: N818, the cause lies in another process
    """Another process of the job exited or stopped responding.

    The message is one line. It is empty if another process prints it.
    """


JOB_ERRORS = (CannotConnect, PeerLost)  # all processes of a machine raise these: their parent prints the message once


def first_line(error: Exception) -> str:
    """Return the first line of a library's error, and the next line if the first one ends in a colon.

    If the error has no text, return the name of its class.
    """
    first, *rest = str(error).splitlines() or [type(error).__name__]
    return f"{first} {rest[0].strip()}" if first.endswith(":") and rest else first


def one_line(error: Exception) -> str:
    """Return the message without the traceback that a loader worker or a launched process wraps around it."""
    return re.split("(?:InputError|CannotConnect|PeerLost): ", str(error))[-1].strip()


def job_error(error: Exception) -> Exception:
    """Return the error of JOB_ERRORS that is named in a launched process's traceback, or `error` if there is none."""
    named = (kind(one_line(error)) for kind in JOB_ERRORS if f"{kind.__name__}: " in str(error))
    return next(named, error)


def print_stderr(text: str) -> None:
    """Print a line on stderr, below any progress bar; stdout may be read by a program."""
    for bar in [*getattr(tqdm, "_instances", ())]:
        bar.close()
    print(printable(text), file=sys.stderr, flush=True)


def print_error(text: str) -> None:
    """Print an error as a single line, even if a file name in it contains a line break."""
    print_stderr("error: " + text.replace("\n", "\\n"))


def run(main: Callable[[], None], interrupted: str = "no file is half written") -> None:
    """Run a command line's main function and exit with a code: 2 for bad input, `Stopped`'s, or one of EXIT_CODES.

    The exit code is 1 if memory runs out, if a loader process or another process of the job dies, or if the program
    that reads stdout has exited (`| head`).

    Args:
        interrupted: message after a signal: what has been written and how to continue; "": print nothing.
    """
    _make_printing_safe()
    try:
        with _raise_on_signals():
            main()
    except (InputError, PeerLost) as error:
        if isinstance(error, JOB_ERRORS) and multiprocessing.parent_process():
            raise
        if line := one_line(error):  # one process prints for all
            print_error(line)
        sys.exit(1 if isinstance(error, PeerLost) else 2)
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _stdout_reader_has_exited():
            sys.exit(1)
        if error.filename is None and error.errno not in DISK_FULL:
            raise
        sys.unraisablehook = lambda _: None  # a half-made PyTorch loader fails once more at exit: do not print that
        print_error(f"{error.filename or 'a log file, or shared memory (/dev/shm)'}: {error.strerror}")
        sys.exit(2)
    except Stopped as stop:
        if message := str(stop):  # one process prints for all
            print_stderr(message)
        sys.exit(stop.exit_code)
    except (RuntimeError, MemoryError) as error:
        message, exit_code = _explain_library_error(error)
        if not message:
            raise
        print_error(message)
        sys.exit(exit_code)
    except KeyboardInterrupt as error:
        number = interrupting_signal(error)
        # Under torchrun and srun, each process receives the signal, and one prints for all.
        if interrupted and os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0":
            print_stderr(f"\nstopped by {number.name}: {interrupted}")
        sys.exit(EXIT_CODES[number])
    finally:
        flush()


@contextmanager
def _raise_on_signals() -> Iterator[None]:
    """Raise Interrupted on SIGTERM and SIGUSR1, as Python raises KeyboardInterrupt on SIGINT."""

    owner = os.getpid()

    def interrupt(number: int, _frame) -> None:
        signal.signal(number, signal.SIG_DFL)  # a second signal ends the process, whatever it is doing
        if os.getpid() != owner:  # a process that was forked from this one, and has not set its own handler yet
            os.kill(os.getpid(), number)
            return
        raise Interrupted(number)

    numbers = EXIT_CODES.keys() - {signal.SIGINT} if threading.current_thread() is threading.main_thread() else ()
    old_handlers = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in old_handlers.items():
            signal.signal(number, handler)


def interrupting_signal(error: KeyboardInterrupt) -> signal.Signals:
    """Return the signal that raised an error: SIGINT, or that of Interrupted."""
    return signal.Signals(getattr(error, "number", signal.SIGINT))


def _explain_library_error(error: Exception) -> tuple[str, int]:
    """Return the message for a library's error, and the exit code; the message is "" for a bug of this project."""
    first = first_line(error).rstrip(".")
    if type(error).__name__ == "OutOfMemoryError":  # torch's class, compared by name to avoid importing torch
        return f"{first}. Reduce -b, or use --amp bf16", 1
    allocation = re.search(r"you tried to allocate (\d+) bytes", first)
    if allocation or isinstance(error, MemoryError) or first.startswith("Storage size calculation overflowed"):
        size = f"{int(allocation[1]) / 2**30:,.1f} GiB" if allocation else first
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


def _make_printing_safe() -> None:
    """Make printing safe on a console that is closed or lacks characters such as ÷ or ≤."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed: without this, a file that is opened later would get the stream's descriptor
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115, PTH123
        elif hasattr(stream, "reconfigure"):
            with suppress(OSError):  # a redirected stream may refuse
                stream.reconfigure(errors="backslashreplace")


def flush() -> None:
    """Flush stdout. If the program that reads it has exited, as after `| head`, discard further output."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _stdout_reader_has_exited() -> bool:
    """Whether the program that reads stdout through a pipe has exited. Windows cannot tell; assume that it has."""
    if not hasattr(select, "poll"):
        return True
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(state & select.POLLERR for _, state in poll.poll(0))
