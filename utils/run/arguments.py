"""Flags that both scripts share, in groups."""

import argparse

from utils.optimizers import OPTIMIZERS
from utils.parser import Group, fraction, nonnegative_float, nonnegative_int, positive_float, positive_int, seed_number

# Arguments that do not change what a run computes: a resumed run may change them.
# The seed and the pre-trained weights are compared with the checkpoint's contents, not with its arguments.
# fmt: off
RESUME_CHANGEABLE = frozenset((
    "data_root", "splits", "train_txt", "val_txt", "test_txt", "on_bad_image", "targets", "pretrained", "workers",
    "run_dir", "save_folder", "name", "resume", "override", "start_epoch", "seed", "evaluate", "print_freq",
    "save_freq", "save_steps", "monitor_freq", "knn_k", "knn_vote", "online_probe", "init_from", "device", "gpu",
    "grad_checkpointing", "dry_run",
    "multiprocessing_distributed", "world_size", "rank", "dist_url", "dist_backend", "dist_timeout",
    "eval_batch_size", "cache",
))
# Members of RESUME_CHANGEABLE that must be equal on all machines of a job. Otherwise a process would wait for a
# collective operation that another process skips.
JOB_SHARED = frozenset((
    "seed", "start_epoch", "evaluate", "dry_run", "save_steps", "monitor_freq", "knn_k", "knn_vote", "online_probe",
    "eval_batch_size", "on_bad_image",
))
# fmt: on

# Flags whose spelling differs from the name of their argument.
SPELLINGS = {
    **{"-a": "arch", "-b": "batch_size", "-e": "evaluate", "-j": "workers", "-p": "print_freq", "-s": "save_freq"},
    **{"--learning-rate": "lr", "--wd": "weight_decay", "--target-weight": "tw"},
}

# Values of arguments that old checkpoints do not contain.
RUN_LEGACY_DEFAULTS = {"cos": False, "lr_end": 0.0, "warmup_epochs": 0, "optimizer": "sgd", "clip_grad": None}


def changed_arguments(old: dict, new: dict, ignored: frozenset[str] = RESUME_CHANGEABLE) -> dict[str, str]:
    """Return the arguments that both dicts have with different values, as {"lr": "0.1 -> 0.03"}, except `ignored`."""
    names = sorted(old.keys() & new.keys() - ignored)
    return {name: f"{old[name]} -> {new[name]}" for name in names if old[name] != new[name]}


def args_shared_by_job(args: argparse.Namespace) -> dict:
    """Return the arguments that must be equal in all processes of a job."""
    return {name: value for name, value in plain_args(args).items() if name not in RESUME_CHANGEABLE - JOB_SHARED}


class FrozenArgs(argparse.Namespace):
    """Read-only arguments."""

    def __init__(self, args: argparse.Namespace):
        vars(self).update(vars(args))

    def __setattr__(self, name: str, value) -> None:
        raise AttributeError(f"{name}: the arguments of a run cannot be changed after its start")


def plain_args(args: argparse.Namespace) -> dict:
    """Return the arguments as plain values that JSON and safe checkpoints can hold."""
    plain_types = (str, int, float, bool, list, type(None))
    return {k: v if isinstance(v, plain_types) else str(v) for k, v in sorted(vars(args).items())}


def add_model_group(parser: argparse.ArgumentParser) -> Group:
    group = parser.add_argument_group("Model")
    group.add_argument(
        "-a",
        "--arch",
        help="Network of torchvision or timm (timm:NAME), or for small images lenet, resnet32, resnet18_small, ... "
        "(default: the data set's).",
    )
    return group


def add_optim_arguments(
    parser: argparse.ArgumentParser, *, epochs: int, lr: float, schedule: list[int], weight_decay: float
) -> Group:
    group = parser.add_argument_group("Optimisation")
    group.add_argument("--epochs", type=positive_int, default=epochs, metavar="E", help="Total number of epochs.")
    group.add_argument(
        "--start-epoch",
        type=nonnegative_int,
        default=0,
        metavar="E",
        help="First epoch, set automatically by --resume.",
    )
    group.add_argument(
        "-b", "--batch-size", type=positive_int, default=256, metavar="N", help="Total batch size of all processes."
    )
    group.add_argument(
        "--lr",
        "--learning-rate",
        type=positive_float,
        default=lr,
        metavar="LR",
        help="Initial learning rate; scale it with the batch size.",
    )
    group.add_argument(
        "--schedule",
        type=nonnegative_int,
        nargs="*",
        default=schedule,
        metavar="E",
        help="Epochs at which the learning rate drops to a tenth.",
    )
    group.add_argument("--cos", action="store_true", help="Use a cosine schedule instead of --schedule.")
    group.add_argument(
        "--lr-end", type=nonnegative_float, default=0.0, metavar="LR", help="Final learning rate of --cos (default: 0)."
    )
    group.add_argument(
        "--warmup-epochs",
        type=nonnegative_int,
        default=0,
        metavar="E",
        help="Epochs of linear warm-up from --warmup-from (default: none). Use about 10 for batches above 256.",
    )
    group.add_argument(
        "--warmup-from", type=nonnegative_float, default=0.01, metavar="LR", help="Initial rate of the warm-up."
    )
    group.add_argument(
        "--optimizer",
        choices=list(OPTIMIZERS),
        default="sgd",
        metavar="NAME",
        help="Optimiser.\nsgd: for networks with batch norm\n"
        "adamw: for transformers and ConvNeXt; --lr 0.0001 to 0.001, --wd 0.05 to 0.1\n"
        "lars: for batches of thousands; --lr 0.3 per 256 images, --wd 1e-6",
    )
    group.add_argument(
        "--clip-grad",
        type=positive_float,
        metavar="NORM",
        help="Clip the total gradient norm to this value (default: no clipping). 1 to 3 stabilises early transformer "
        "training.",
    )
    group.add_argument("--momentum", type=fraction, default=0.9, metavar="M", help="Momentum of sgd and lars.")
    group.add_argument(
        "--wd",
        "--weight-decay",
        dest="weight_decay",
        type=nonnegative_float,
        default=weight_decay,
        metavar="WD",
        help="Weight decay. Applied to all parameters; LARS skips biases and batch norm.",
    )
    return group


def add_running_arguments(parser: argparse.ArgumentParser) -> Group:
    group = parser.add_argument_group("Run and logging")
    group.add_argument("--name", default="", help="Suffix of the run folder's name.")
    group.add_argument("--run-dir", metavar="DIR", help="Run folder (default: named after the flags).")
    group.add_argument(
        "--resume",
        metavar="PATH",
        help="Checkpoint to resume from. auto: resume from the run folder if it contains a checkpoint.",
    )
    group.add_argument("--dry-run", action="store_true", help="Estimate the time and memory of the run, then stop.")
    group.add_argument(
        "--save-steps",
        type=nonnegative_int,
        default=0,
        metavar="N",
        help="Also write last.pth.tar every N steps (default: off); use it if an epoch takes hours. SIGTERM, SIGINT "
        "and SIGUSR1 always write it.",
    )
    group.add_argument(
        "--override",
        action="store_true",
        help="Resume even if arguments that affect the result differ from the checkpoint's.",
    )
    group.add_argument(
        "--seed", type=seed_number, help="Random seed. Without it, a seed is drawn and written to args.json."
    )
    group.add_argument(
        "-p",
        "--print-freq",
        type=nonnegative_int,
        default=10,
        metavar="N",
        help="Steps between console lines; 0: one per epoch.",
    )
    group.add_argument("--device", default="auto", help="Device, such as cpu or cuda:1; auto uses a GPU if available.")
    group.add_argument(
        "--gpu", type=nonnegative_int, metavar="N", help="Use only this GPU; the same as --device cuda:N."
    )
    return group


def add_speed_arguments(parser: argparse.ArgumentParser) -> Group:
    group = parser.add_argument_group("Speed", "By default all are off, and training runs in float32.")
    group.add_argument(
        "--amp",
        choices=["off", "bf16", "fp16"],
        metavar="TYPE",
        default="off",
        help="Half precision for the encoders, which halves activation memory. Use bf16 on Ampere or newer GPUs and on "
        "CPUs with AMX or AVX512-BF16, fp16 on older GPUs.",
    )
    group.add_argument(
        "--channels-last",
        action="store_true",
        help="Use the channels-last memory format, recommended with --amp on GPUs. Results differ by rounding.",
    )
    group.add_argument(
        "--compile",
        action="store_true",
        help="Compile the encoders, which takes about a minute.",
    )
    group.add_argument(
        "--tf32",
        action="store_true",
        help="Use TF32 for float32 matrix products on Ampere or newer GPUs, including in the loss but not in the class "
        "centroids. No effect on other devices.",
    )
    group.add_argument(
        "--deterministic",
        action="store_true",
        help="Use deterministic GPU algorithms: the same seed, GPU type and versions give identical results, also "
        "after resuming. Some operations are slower.",
    )
    return group
