"""A study whose two runs are short scripts instead of training: python tests/results/played.py FOLDER."""

import sys
from pathlib import Path
from types import SimpleNamespace

from examples.results import running
from examples.results.trials import Trial
from utils import errors

# Like a training run: lock the folder, resume if something was saved, save and exit on SIGTERM.
RUN = """
import fcntl, os, pathlib, signal, sys, time

folder = pathlib.Path(sys.argv[1])
lock = open(folder / ".lock", "a+")
fcntl.lockf(lock, fcntl.LOCK_EX)
print(f"process {os.getpid()}", file=lock, flush=True)

def save(*_):
    time.sleep(0.5)
    (folder / "saved").touch()
    sys.exit(143)

signal.signal(signal.SIGTERM, save)
print("resumed" if (folder / "saved").exists() else "started", flush=True)
time.sleep(60)
"""


def trials(folder: Path) -> list[Trial]:
    return [Trial(folder / name, (["-c", RUN, str(folder / name)],)) for name in ("a", "b")]


def main() -> None:
    folder = Path(sys.argv[1])
    study = SimpleNamespace(folder=folder, prepare=lambda: None, stages=lambda: [("methods", trials(folder))])
    running.unfinished_part = lambda trial: trial  # the scripts never finish
    with running.open_study(study):
        running.run_stages(study, jobs=2)


if __name__ == "__main__":
    errors.run(main)
