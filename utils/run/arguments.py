"""The flags the two scripts share, in groups."""

import argparse

from utils.optimizers import OPTIMIZERS
from utils.parser import Group, fraction, natural, positive_float, positive_int, seconds, seed_number, unsigned_float

# Arguments that say where and how a run is done, not what it computes: free to differ when it goes on.
# The seed and the pre-trained weights are compared with the checkpoint's own, not by their argument.
# fmt: off
FREE = frozenset((
    "data_root", "splits", "train_txt", "val_txt", "test_txt", "on_bad_image", "targets", "pretrained", "workers",
    "run_dir", "save_folder", "name", "resume", "override", "start_epoch", "seed", "evaluate", "print_freq",
    "save_freq", "save_steps", "monitor_freq", "knn_k", "knn_vote", "online_probe", "init_from", "device", "gpu",
    "grad_checkpointing", "dry_run",
    "multiprocessing_distributed", "world_size", "rank", "dist_url", "dist_backend", "dist_timeout",
    "eval_batch_size", "cache",
))
# Of those, the ones in which the machines of one job must agree all the same, or one would wait for what another skips.
AGREED = frozenset((
    "seed", "start_epoch", "evaluate", "dry_run", "save_steps", "monitor_freq", "knn_k", "knn_vote", "online_probe",
    "eval_batch_size", "on_bad_image",
))
# fmt: on

# The flags that are not spelled as their argument is called.
SPELLINGS = {
    **{"-a": "arch", "-b": "batch_size", "-e": "evaluate", "-j": "workers", "-p": "print_freq", "-s": "save_freq"},
    **{"--learning-rate": "lr", "--wd": "weight_decay", "--target-weight": "tw"},
}


# Those of the two scripts in checkpoints that do not say them, as they were.
BEFORE = {"cos": False, "lr_end": 0.0, "warmup_epochs": 0, "optimizer": "sgd", "clip_grad": None}


def changed(then: dict, now: dict, free: frozenset[str] = FREE) -> dict[str, str]:
    """`lr` -> `0.1 -> 0.03` for each argument that both have and that differs, but for those that are free to."""
    names = sorted(then.keys() & now.keys() - free)
    return {name: f"{then[name]} -> {now[name]}" for name in names if then[name] != now[name]}


def agreed(args: argparse.Namespace) -> dict:
    """The arguments in which all processes of a job must agree."""
    return {name: value for name, value in plain_args(args).items() if name not in FREE - AGREED}


class Frozen(argparse.Namespace):
    """Arguments that can be read and not written."""

    def __init__(self, args: argparse.Namespace):
        vars(self).update(vars(args))

    def __setattr__(self, name: str, value) -> None:
        raise AttributeError(f"{name}: the arguments of a run are not written to after it has begun")


def plain_args(args: argparse.Namespace) -> dict:
    """The arguments as JSON and safe checkpoints can hold them."""
    keep = (str, int, float, bool, list, type(None))
    return {k: v if isinstance(v, keep) else str(v) for k, v in sorted(vars(args).items())}


def add_model_group(parser: argparse.ArgumentParser) -> Group:
    group = parser.add_argument_group("Model")
    group.add_argument(
        "-a",
        "--arch",
        help="a classification network of torchvision, or timm:NAME of timm; for small images lenet, resnet20, 32, 44, "
        "56, 110, or resnet18_small and its like: 34, 50, 101, wide_resnet50_2 (default: the data set's)",
    )
    return group


def add_optim_arguments(
    parser: argparse.ArgumentParser, *, epochs: int, lr: float, schedule: list[int], weight_decay: float
) -> Group:
    group = parser.add_argument_group("Optimisation")
    group.add_argument(
        "--epochs",
        type=positive_int,
        default=epochs,
        help="in all; a --targeted run spends the first half on KCL",
    )
    group.add_argument(
        "--start-epoch", type=natural, default=0, help="count epochs from here (a resumed run knows its own)"
    )
    group.add_argument("-b", "--batch-size", type=positive_int, default=256, help="global: the sum over all processes")
    group.add_argument(
        "--lr",
        "--learning-rate",
        type=positive_float,
        default=lr,
        help="at the start of each phase; scale it with the batch",
    )
    group.add_argument(
        "--schedule",
        type=natural,
        nargs="*",
        default=schedule,
        help="epochs, counted in each phase, at which the learning rate drops to a tenth",
    )
    group.add_argument("--cos", action="store_true", help="cosine schedule over each phase, instead of --schedule")
    group.add_argument(
        "--lr-end",
        type=unsigned_float,
        default=0.0,
        metavar="LR",
        help="where --cos ends; the release has a thousandth of --lr on CIFAR, 0 elsewhere",
    )
    group.add_argument(
        "--warmup-epochs",
        type=natural,
        default=0,
        metavar="E",
        help="the first epochs of each phase, in which the learning rate rises step by step from --warmup-from to the "
        "schedule's; the release has 10 for batches above 256 on CIFAR",
    )
    group.add_argument(
        "--warmup-from", type=unsigned_float, default=0.01, metavar="LR", help="where the warm-up begins"
    )
    group.add_argument(
        "--optimizer",
        choices=list(OPTIMIZERS),
        default="sgd",
        help="sgd: the release's, for networks with batch norm; adamw: for transformers and ConvNeXt, with an --lr of "
        "about 0.0001 to 0.001 and --wd 0.05 to 0.1; lars: for batches of thousands, with an --lr of about 0.3 for "
        "each 256 images and --wd 1e-6",
    )
    group.add_argument(
        "--clip-grad",
        type=positive_float,
        metavar="NORM",
        help="cut the gradients of all weights together to this length before each step: 1 or 3 steadies a "
        "transformer's start (default: as they are)",
    )
    group.add_argument("--momentum", type=fraction, default=0.9, help="of sgd and lars")
    group.add_argument(
        "--wd",
        "--weight-decay",
        dest="weight_decay",
        type=unsigned_float,
        default=weight_decay,
        help="of all weights; by lars of matrices alone",
    )
    return group


def add_running_arguments(parser: argparse.ArgumentParser) -> Group:
    group = parser.add_argument_group("Running")
    group.add_argument("--name", default="", help="end of the run folder's name")
    group.add_argument("--run-dir", metavar="DIR", help="the run folder outright (default: named after the flags)")
    group.add_argument(
        "--resume",
        metavar="PATH",
        help="go on from this checkpoint; 'auto': from the run folder if it holds one",
    )
    group.add_argument(
        "--dry-run",
        action="store_true",
        help="build everything, train a few steps, say what the run will take (images, weights, steps, memory, time), "
        "and leave nothing behind",
    )
    group.add_argument(
        "--save-steps",
        type=natural,
        default=0,
        metavar="N",
        help="write last.pth.tar also every N steps of an epoch, for epochs of hours; 0: at its end alone. "
        "SIGTERM, SIGINT and SIGUSR1 save after the step in any case",
    )
    group.add_argument(
        "--override",
        action="store_true",
        help="go on although arguments that change the result are not the checkpoint's",
    )
    group.add_argument(
        "--seed",
        type=seed_number,
        help="of every random draw; without it one is drawn and written into args.json",
    )
    group.add_argument(
        "-p",
        "--print-freq",
        type=natural,
        default=10,
        help="steps between console lines; 0: only one line an epoch",
    )
    group.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ...; auto: a GPU if there is one")
    group.add_argument("--gpu", type=natural, help="this GPU and no other (the release's spelling of --device cuda:N)")
    return group


def add_speed_arguments(parser: argparse.ArgumentParser) -> Group:
    group = parser.add_argument_group("Speed", "all off: float32, as the release")
    group.add_argument(
        "--amp",
        choices=["off", "bf16", "fp16"],
        default="off",
        help="half precision of the encoders alone, all after them is float32. bf16: GPUs since Ampere, CPUs with "
        "AMX or AVX512-BF16; fp16: older GPUs, with a scaled loss. About half of the memory of activations",
    )
    group.add_argument(
        "--channels-last",
        action="store_true",
        help="channels last in the encoders' memory, which a GPU's half precision wants; sums in another order",
    )
    group.add_argument(
        "--compile",
        action="store_true",
        help="the encoders by torch.compile: fused operations, after a minute of compiling at the start",
    )
    group.add_argument(
        "--tf32",
        action="store_true",
        help="float32 products with factors of 10 bits on GPUs since Ampere, in the loss too, not in the class "
        "centroids (convolutions are that by PyTorch's default); on other devices without effect",
    )
    group.add_argument(
        "--deterministic",
        action="store_true",
        help="on a GPU the same seed gives the same bits, on the same kind of GPU and versions, also after a resume: "
        "algorithms without a choice or a race, some of them slower. Without it cuDNN tries its algorithms and takes "
        "the fastest. The CPU gives the same bits anyway",
    )
    return group


def add_distributed_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("Distributed", "torchrun and srun need none of these, and take the last two")
    group.add_argument(
        "--multiprocessing-distributed",
        action="store_true",
        help="start one process per GPU of this machine (two processes where there is none)",
    )
    group.add_argument("--world-size", type=int, default=-1, help="machines in the job")
    group.add_argument("--rank", type=int, default=-1, help="number of this machine, from 0")
    group.add_argument("--dist-url", default="tcp://localhost:10000", help="address and free port of machine 0")
    group.add_argument("--dist-backend", choices=["nccl", "gloo"], help="(default: nccl with GPUs, gloo without)")
    group.add_argument(
        "--dist-timeout",
        type=seconds,
        default=1800,
        metavar="SECONDS",
        help="how long a process waits for the others, at the start and in every step, before it gives up with one "
        "line. One that has died is mostly seen at once; this is for one that is silent, as where the network has "
        "failed. It must be longer than what one process does while the rest wait: loads weights or a large cache, "
        "draws targets for thousands of classes, writes a checkpoint to a slow disk. 60 to 600 is enough for most runs",
    )
