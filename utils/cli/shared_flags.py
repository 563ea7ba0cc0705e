"""Flags that all training scripts share: network, optimisation, run folder and logging."""

import argparse

from utils.cli.flags import ENCODER, Group, When
from utils.cli.machine_flags import add_machine_arguments as add_machine_arguments
from utils.cli.numbers import fraction, nonnegative_float, nonnegative_int, positive_float, positive_int, seed_number
from utils.optimizers import OPTIMIZERS

RESUMING = When("with --resume, because it measures the first steps of a new run", lambda args: args.resume)
WITH_COS = When("with --cos", lambda args: args.cos)
WITHOUT_COS = When("without --cos", lambda args: not args.cos)
WITH_ADAMW = When("with --optimizer adamw", lambda args: args.optimizer == "adamw")
WITH_RUN_DIR = When("with --run-dir", lambda args: args.run_dir)
WITHOUT_WARMUP = When("without --warmup-epochs", lambda args: not args.warmup_epochs)


def add_model_group(parser: argparse.ArgumentParser) -> Group:
    group = parser.add_argument_group("Model")
    group.add_argument(
        "-a",
        "--arch",
        help="Network of torchvision or timm (timm:NAME), or for small images lenet, resnet32, resnet18_small, ... "
        "(default: the data set's).",
        stored=ENCODER,
    )
    return group


def add_optim_arguments(
    parser: argparse.ArgumentParser, *, epochs: int, lr: float, schedule: list[int], weight_decay: float
) -> Group:
    group = parser.add_argument_group("Optimisation")
    group.add_argument(
        "--epochs", type=positive_int, default=epochs, metavar="E", help="Total number of epochs.", trains=True
    )
    group.add_argument(
        "--start-epoch",
        type=nonnegative_int,
        default=0,
        metavar="E",
        help="First epoch of a new run.",
        affects_result=False,
        same_everywhere=True,
        trains=True,
        rare=True,
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
        trains=True,
    )
    group.add_argument(
        "--schedule",
        type=nonnegative_int,
        nargs="*",
        default=schedule,
        metavar="E",
        help="Epochs at which the learning rate drops to a tenth.",
        trains=True,
        ignored=(WITH_COS,),
    )
    group.add_argument(
        "--cos", action="store_true", help="Use a cosine schedule instead of --schedule.", trains=True, legacy=False
    )
    group.add_argument(
        "--lr-end",
        type=nonnegative_float,
        default=0.0,
        metavar="LR",
        help="Final learning rate of --cos (default: 0).",
        trains=True,
        ignored=(WITHOUT_COS,),
        legacy=0.0,
    )
    group.add_argument(
        "--warmup-epochs",
        type=nonnegative_int,
        default=0,
        metavar="E",
        help="Epochs of linear warm-up from --warmup-from (default: none). Use about 10 for batches above 256.",
        trains=True,
        legacy=0,
    )
    group.add_argument(
        "--warmup-from",
        type=nonnegative_float,
        default=0.01,
        metavar="LR",
        help="Initial rate of the warm-up.",
        trains=True,
        ignored=(WITHOUT_WARMUP,),
    )
    group.add_argument(
        "--optimizer",
        choices=list(OPTIMIZERS),
        default="sgd",
        metavar="NAME",
        help="Optimiser.\nsgd: for networks with batch norm\n"
        "adamw: for transformers and ConvNeXt; --lr 0.0001 to 0.001, --wd 0.05 to 0.1\n"
        "lars: for batches of thousands; --lr 0.3 per 256 images, --wd 1e-6",
        trains=True,
        legacy="sgd",
    )
    group.add_argument(
        "--clip-grad",
        type=positive_float,
        metavar="NORM",
        help="Clip the total gradient norm to this value (default: no clipping). 1 to 3 stabilises early transformer "
        "training.",
        trains=True,
        legacy=None,
    )
    group.add_argument(
        "--momentum",
        type=fraction,
        default=0.9,
        metavar="M",
        help="Momentum of sgd and lars.",
        trains=True,
        ignored=(WITH_ADAMW,),
    )
    group.add_argument(
        "--wd",
        "--weight-decay",
        dest="weight_decay",
        type=nonnegative_float,
        default=weight_decay,
        metavar="WD",
        help="Weight decay. Applied to all parameters; LARS skips biases and batch norm.",
        trains=True,
    )
    return group


def add_running_arguments(parser: argparse.ArgumentParser) -> Group:
    group = parser.add_argument_group("Run and logging")
    group.add_argument(
        "--name", default="", help="Suffix of the run folder's name.", affects_result=False, ignored=(WITH_RUN_DIR,)
    )
    group.add_argument(
        "--run-dir", metavar="DIR", help="Run folder (default: named after the flags).", affects_result=False
    )
    group.add_argument(
        "--resume",
        metavar="PATH",
        help="Checkpoint to resume from. auto: resume from the run folder if it contains a checkpoint.",
        affects_result=False,
    )
    group.add_argument(
        "--dry-run",
        action="store_true",
        help="Estimate the time and memory of the run, then stop.",
        affects_result=False,
        same_everywhere=True,
        refused=(RESUMING,),
    )
    group.add_argument(
        "--save-steps",
        type=nonnegative_int,
        default=0,
        metavar="N",
        help="Also write last.pth.tar every N steps (default: off); use it if an epoch takes hours. SIGTERM, SIGINT "
        "and SIGUSR1 always write it.",
        affects_result=False,
        same_everywhere=True,
        trains=True,
    )
    group.add_argument(
        "--override",
        action="store_true",
        help="Resume even if arguments that affect the result differ from the checkpoint's.",
        affects_result=False,
    )
    group.add_argument(
        "--seed",
        type=seed_number,
        help="Random seed. Without it, a seed is drawn and written to args.json.",
        affects_result=False,
        same_everywhere=True,
    )
    group.add_argument(
        "-p",
        "--print-freq",
        type=nonnegative_int,
        default=10,
        metavar="N",
        help="Steps between console lines; 0: one per epoch.",
        affects_result=False,
        trains=True,
    )
    group.add_argument(
        "--device",
        default="auto",
        help="Device, such as cpu or cuda:1; auto uses a GPU if available.",
        affects_result=False,
    )
    group.add_argument(
        "--gpu",
        type=nonnegative_int,
        metavar="N",
        help="Use only this GPU; the same as --device cuda:N.",
        affects_result=False,
    )
    return group


def add_checkpoint_arguments(group: Group) -> None:
    """Add the flags of the run folder that only stage 1 has."""
    group.add_argument(
        "--save-folder",
        default="runs",
        metavar="DIR",
        help="Parent of the run folder.",
        affects_result=False,
        ignored=(WITH_RUN_DIR,),
    )
    group.add_argument(
        "-s",
        "--save_freq",
        type=positive_int,
        default=20,
        metavar="E",
        help="Epochs between kept checkpoints.",
        affects_result=False,
    )
