"""The scripts run without the parts of Python that Windows or macOS lack.

The tests take these parts away on Linux, before the script is imported. That is no proof for the other systems, but it
finds each use of a missing part.
"""

import subprocess
import sys

import pytest

from tests import ROOT

LIKE_WINDOWS = """
import os, select, signal, sys
for module in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[module] = None  # its import fails
for name in ("SIGUSR1", "SIGUSR2", "SIGHUP", "SIGCHLD", "SIGALRM"):
    delattr(signal, name)
for name in ("fork", "mkfifo", "getloadavg", "sched_getaffinity", "sysconf", "getuid"):
    delattr(os, name)
del select.poll
open_file = os.open

def open_no_folder(path, *args, **kwargs):
    if os.path.isdir(path):
        raise PermissionError(13, "Permission denied", path)
    return open_file(path, *args, **kwargs)

os.open = open_no_folder
"""
LIKE_MACOS = "import multiprocessing; multiprocessing.set_start_method('spawn')"
RUN_SCRIPT = "\nif __name__ == '__main__':\n    import runpy; runpy.run_path(sys.argv[0], run_name='__main__')"


def run_script(prepare: str, folder, words: list[str]) -> subprocess.CompletedProcess:
    """Run a script of this project after `prepare`, which is in a file because processes that spawn import it."""
    (folder / "start.py").write_text(
        f"import sys\nsys.argv = sys.argv[1:]\nsys.path.insert(0, '.')\n{prepare}{RUN_SCRIPT}"
    )
    command = [sys.executable, str(folder / "start.py"), *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)


@pytest.mark.parametrize("script", ["main_moco_supcon_imba.py", "main_lincls_imba.py", "target_generation.py"])
def test_help_without_the_names_that_windows_lacks(script, tmp_path):
    done = run_script(LIKE_WINDOWS, tmp_path, [script, "--help"])
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("system", "workers"), [(LIKE_WINDOWS, 0), (LIKE_MACOS, 1)])
def test_both_stages_run_as_on_another_system(system, workers, flags, probe_flags, tmp_path):
    """Windows and macOS start loader processes by spawn, so that the data set must be picklable."""
    run, workers = tmp_path / "run", ["-j", str(workers)]
    words = [*flags, *workers, "--epochs", "1", "--run-dir", str(run)]
    done = run_script(system, tmp_path, ["main_moco_supcon_imba.py", *words])
    assert done.returncode == 0, done.stderr
    assert len((run / "log.jsonl").read_text().splitlines()) == 1
    words = [*probe_flags, *workers, "--pretrained", str(run / "last.pth.tar"), "--head", "ncm"]
    done = run_script(system, tmp_path, ["main_lincls_imba.py", *words])
    assert done.returncode == 0, done.stderr
    assert list(run.glob("*/results.json"))
