"""Import this module first in a script: Ctrl-C during the seconds of imports then prints one line, not a traceback.

After the imports, `utils.errors.run` handles Ctrl-C.
"""

import os
import sys


def _interrupted(kind: type, error: BaseException, trace) -> None:
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    print("\ninterrupted before the start", file=sys.stderr, flush=True)
    os._exit(130)  # without this, Python ends by the signal, without an exit code


sys.excepthook = _interrupted
