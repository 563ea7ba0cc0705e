"""One machine of a small job of two, for tests: it meets the other, and the second does what it is told.

python -m tests.jobs.hosts DOES FOLDER, with the variables that torchrun sets, or with the release's flags. NAMESPACE,
a variable, names the network namespace to run in.
"""

import ctypes
import os
import signal
import sys
import time
from pathlib import Path

from tqdm import tqdm

from utils import distributed, errors
from utils.errors import InputError
from utils.parser import Parser
from utils.run import arguments, launch


def raise_(error: Exception) -> None:
    raise error


def go_on() -> None:
    while True:
        distributed.barrier()


DOES = {
    "die": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "keep silent": lambda: time.sleep(3600),
    "refuse": lambda: raise_(InputError("--this: cannot be")),
    "go on": go_on,
    "fail": lambda: raise_(RuntimeError("a fault of the program")),
}


def work(args, place: launch.Place) -> None:
    bar = tqdm(total=10, initial=4, desc="a bar", leave=False, disable=not sys.stderr.isatty())
    distributed.barrier()
    (args.folder / "met").touch()
    if distributed.rank() == 1 or args.does == "go on":
        DOES[args.does]()
    distributed.barrier()
    bar.close()


def enter_namespace(name: str) -> None:
    """Move this process to a network namespace that `ip netns add` has made."""
    with Path("/var/run/netns", name).open() as namespace:
        assert ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), 0) == 0


def main() -> None:
    if "NAMESPACE" in os.environ:
        enter_namespace(os.environ["NAMESPACE"])
    parser = Parser(description=__doc__)
    parser.add_argument("does", choices=list(DOES))
    parser.add_argument("folder", type=Path)
    arguments.add_running_arguments(parser)
    arguments.add_distributed_arguments(parser)
    parser.add_argument("-b", "--batch-size", type=int, default=256)
    parser.set_defaults(device="cpu", workers=0)
    args = parser.parse_args()
    launch.PROCESSES_WITHOUT_GPU = 1
    # A start takes longer on a busy machine than a test lets the two wait for each other.
    me = os.environ.get("RANK", str(args.rank))
    (args.folder / me).touch()
    while not (args.folder / str(1 - int(me))).exists():
        time.sleep(0.05)
    launch.launch(work, arguments.FrozenArgs(args))


if __name__ == "__main__":
    errors.run(main)
