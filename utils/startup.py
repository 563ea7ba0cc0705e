"""Import this module first in a script: a signal during the seconds of imports then prints one line, not a traceback.

After the imports, `utils.errors.run` handles the signals, with the same exit codes (`EXIT_CODES`).
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SIGUSR1 = getattr(signal, "SIGUSR1", None)  # Windows has no such signal


def _interrupted(kind: type, error: BaseException, trace) -> None:
    if issubclass(kind, KeyboardInterrupt):
        _stop(signal.SIGINT)
    sys.__excepthook__(kind, error, trace)


def _stop(number: int, _frame=None) -> None:
    print(f"\nstopped by {signal.Signals(number).name} before the start", file=sys.stderr, flush=True)
    # Without this, Python ends by the signal, without an exit code. SIGUSR1 announces a planned end: no failure.
    os._exit(0 if number == SIGUSR1 else 128 + number)


@contextmanager
def slow_imports() -> Iterator[None]:
    """Exit at once, with one line, on a signal while a program imports libraries after it has read its arguments.

    An exception that a signal raises inside an import can be lost, or end as another error of the library.
    """
    numbers = [*filter(None, (signal.SIGINT, signal.SIGTERM, SIGUSR1))] if sys.excepthook is _interrupted else []
    handlers = {number: signal.signal(number, _stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def answer_help(module: str, get_parser: Callable) -> None:
    """Exit if the command line of this program asks for help or has a mistyped flag, before the program's slow imports.

    Args:
        module: __name__ of the script. Nothing happens if another program imports the script.
        get_parser: returns the parser. It must not import PyTorch.
    """
    if module == "__main__":
        from utils import errors

        errors.run(lambda: get_parser().parse_args())


def _imported_by_program() -> bool:
    """Whether the module that imports this one is the program itself, and not imported by a test or another program."""
    frame = sys._getframe(1).f_back
    while frame and "importlib" in frame.f_code.co_filename:
        frame = frame.f_back
    return bool(frame) and frame.f_globals["__name__"] == "__main__"


if _imported_by_program():
    sys.excepthook = _interrupted
    for _number in filter(None, (signal.SIGTERM, SIGUSR1)):
        signal.signal(_number, _stop)
