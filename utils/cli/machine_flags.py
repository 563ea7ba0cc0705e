"""Flags of the machine that the training scripts share: speed and precision, processes."""

import argparse

from utils.cli.flags import RESULT, Group, When
from utils.cli.numbers import seconds
from utils.distributed import launchers

ONE_PROCESS = When("for one process", lambda args: not (args.multiprocessing_distributed or launchers.under_launcher()))
NOT_SPAWNED = When("without --multiprocessing-distributed", ONE_PROCESS.holds)
UNDER_TORCHRUN = When("under torchrun", lambda args: launchers.under_torchrun())
UNDER_SRUN = When("under srun", lambda args: launchers.under_srun() and not args.multiprocessing_distributed)


def add_speed_arguments(parser: argparse.ArgumentParser) -> Group:
    group = parser.add_argument_group(
        "Speed", "By default all are off: float32, but convolutions on Ampere or newer GPUs use TF32."
    )
    group.add_argument(
        "--amp",
        choices=["off", "bf16", "fp16"],
        metavar="TYPE",
        default="off",
        help="Half precision for the encoders, which halves activation memory. Use bf16 on Ampere or newer GPUs and on "
        "CPUs with AMX or AVX512-BF16, fp16 on older GPUs.",
        stored=RESULT,
    )
    group.add_argument(
        "--channels-last",
        action="store_true",
        help="Use the channels-last memory format, recommended with --amp on GPUs. Results differ by rounding.",
        stored=RESULT,
    )
    group.add_argument(
        "--compile",
        action="store_true",
        help="Compile the encoders, which takes about a minute.",
    )
    group.add_argument(
        "--tf32",
        action="store_true",
        help="Use TF32 for float32 matrix products on Ampere or newer GPUs, including the loss. Convolutions "
        "use it anyway. No effect on other devices.",
        stored=RESULT,
    )
    group.add_argument(
        "--deterministic",
        action="store_true",
        help="Use deterministic GPU algorithms: the same seed, GPU type and versions give identical results, also "
        "after resuming. Some operations are slower.",
        stored=RESULT,
    )
    return group


def add_distributed_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "Distributed", "Under torchrun or srun, you need at most --dist-backend and --dist-timeout."
    )
    group.add_argument(
        "--multiprocessing-distributed",
        action="store_true",
        help="Start one process per GPU of this machine, or two processes if it has no GPU.",
        affects_result=False,
        ignored=(UNDER_TORCHRUN,),
    )
    group.add_argument(
        "--world-size",
        type=int,
        default=-1,
        metavar="N",
        help="Number of machines (default: 1).",
        affects_result=False,
        ignored=(UNDER_TORCHRUN, UNDER_SRUN),
    )
    group.add_argument(
        "--rank",
        type=int,
        default=-1,
        metavar="N",
        help="Index of this machine (default: 0).",
        affects_result=False,
        ignored=(UNDER_TORCHRUN, UNDER_SRUN),
    )
    group.add_argument(
        "--dist-url",
        default="tcp://localhost:10000",
        metavar="URL",
        help="Address and free port of machine 0.",
        affects_result=False,
        refused=(NOT_SPAWNED,),
        ignored=(UNDER_TORCHRUN, UNDER_SRUN),
    )
    group.add_argument(
        "--dist-backend",
        choices=["nccl", "gloo"],
        metavar="NAME",
        help="Communication backend (default: nccl with GPUs, gloo without).",
        affects_result=False,
        ignored=(ONE_PROCESS,),
    )
    group.add_argument(
        "--dist-timeout",
        type=seconds,
        default=1800,
        metavar="S",
        help="Seconds that a process waits for the others before it fails; 60 to 600 fits most runs. It must exceed "
        "the longest work of one process, such as creating targets.",
        affects_result=False,
    )


def add_machine_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of speed and of processes."""
    add_speed_arguments(parser)
    add_distributed_arguments(parser)
