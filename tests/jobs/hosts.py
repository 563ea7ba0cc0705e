"""One machine of a job of two, for tests. After the rendezvous the second machine performs ACTION.

Start it as `python -m tests.jobs.hosts ACTION FOLDER`, with the variables that torchrun sets, or with the launch flags
of the authors' code. The environment variable NAMESPACE names the network namespace to run in.
"""

import ctypes
import os
import signal
import sys
import time
from pathlib import Path

from tqdm import tqdm

from utils import distributed, errors
from utils.cli import machine_flags, shared_flags
from utils.cli.flags import describe_arguments
from utils.cli.parser import Parser
from utils.distributed import launch
from utils.distributed.launch import LaunchConfig
from utils.errors import InputError


def raise_error(error: Exception) -> None:
    raise error


def barrier_forever() -> None:
    while True:
        distributed.barrier()


ACTIONS = {
    "die": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "keep silent": lambda: time.sleep(3600),
    "refuse": lambda: raise_error(InputError("--this: cannot be")),
    "go on": barrier_forever,
    "fail": lambda: raise_error(RuntimeError("a fault of the program")),
}


def work(args, process: launch.ProcessInfo) -> None:
    bar = tqdm(total=10, initial=4, desc="a bar", leave=False, disable=not sys.stderr.isatty())
    distributed.barrier()
    (args.folder / "met").touch()
    if distributed.rank() == 1 or args.action == "go on":
        ACTIONS[args.action]()
    distributed.barrier()
    bar.close()


def enter_namespace(name: str) -> None:
    """Move this process to a network namespace created by `ip netns add`."""
    with Path("/var/run/netns", name).open() as namespace:
        assert ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), 0) == 0


def main() -> None:
    if "NAMESPACE" in os.environ:
        enter_namespace(os.environ["NAMESPACE"])
    parser = Parser(description=__doc__)
    parser.add_argument("action", choices=list(ACTIONS))
    parser.add_argument("folder", type=Path)
    shared_flags.add_running_arguments(parser)
    machine_flags.add_distributed_arguments(parser)
    parser.add_argument("-b", "--batch-size", type=int, default=256)
    parser.set_defaults(device="cpu", workers=0)
    args = parser.parse_args()
    launch.PROCESSES_WITHOUT_GPU = 1
    # Wait for the other machine: on a busy system a start can take longer than the --dist-timeout of a test.
    own_rank = os.environ.get("RANK", str(args.rank))
    (args.folder / own_rank).touch()
    while not (args.folder / str(1 - int(own_rank))).exists():
        time.sleep(0.05)
    arguments = describe_arguments(parser, args)
    launch.launch(work, args, LaunchConfig.from_args(args), arguments.agreed())


if __name__ == "__main__":
    errors.run(main)
