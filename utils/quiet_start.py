"""Imported first by a script: Ctrl-C while its modules load, for some seconds, ends in one line and not in a traceback.

From then on `utils.errors.run` sees to it.
"""

import os
import sys


def _interrupted(kind: type, error: BaseException, trace) -> None:
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    print("\ninterrupted before it began", file=sys.stderr, flush=True)
    os._exit(130)  # Python itself would end by the signal


sys.excepthook = _interrupted
