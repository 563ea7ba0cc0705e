"""The command line the two scripts share: its groups of flags. What they mean is in resolve.py."""

import argparse

from imagenet_inat import datasets
from utils import distributed
from utils.logger import say

Group = argparse._ArgumentGroup  # argparse has no public name for it
LAUNCH_FLAGS = ("multiprocessing_distributed", "world_size", "rank", "dist_url")
TARGET_FLAGS = ("tr", "sep_t", "tw", "loss_form", "centroid_init", "assignment_interval")


class Parser(argparse.ArgumentParser):
    """Shows defaults in --help and answers a wrong flag in one line.

    An empty value, as of a shell variable that is not set, is wrong for every argument but --name, whose default it is:
    a path that is empty would stand for the default, or for the folder one is in.
    """

    def __init__(self, **kwargs):
        super().__init__(formatter_class=HelpFormatter, allow_abbrev=False, **kwargs)

    def parse_known_args(self, args=None, namespace=None):
        namespace, rest = super().parse_known_args(args, namespace)
        for action in self._actions:
            value = getattr(namespace, action.dest, None)
            if value != action.default and "" in (value if isinstance(value, list) else [value]):
                name = "/".join(action.option_strings) or action.metavar or action.dest
                self.error(f"argument {name}: found an empty value, expected a path or a name")
        return namespace, rest

    def error(self, message: str):
        self.exit(2, f"error: {message} (--help lists the flags)\n")


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """The description as it is typed; defaults behind the help, but not where there is none."""

    def _get_help_string(self, action):
        if action.default in (None, "", False):
            return action.help
        return super()._get_help_string(action)


def parse(parser: Parser, argv: list[str] | None) -> argparse.Namespace:
    """Parse a command line, and say which of its flags the others leave without effect."""
    args = parser.parse_args(argv)
    idle = (
        ("without --targeted", not getattr(args, "targeted", True), TARGET_FLAGS),
        ("with --loss MoCo", getattr(args, "loss", "") == "MoCo", ("K",)),
        ("with --cos", getattr(args, "cos", False), ("schedule",)),
        ("under torchrun", distributed.under_torchrun(), LAUNCH_FLAGS),
    )
    spelling = {action.dest: action.option_strings[0] for action in parser._actions if action.option_strings}
    for condition, holds, names in idle:
        given = [spelling[name] for name in names if holds and getattr(args, name) != parser.get_default(name)]
        if given:
            say(f"note: {', '.join(given)} without effect {condition}")
    return args


def positive_int(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"found {text}, expected 1 or more")
    return value


def natural(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"found {text}, expected 0 or more")
    return value


def seed_number(text: str) -> int:
    value = natural(text)
    if value >= 2**63:
        raise argparse.ArgumentTypeError(f"found {text}, expected less than 2**63")
    return value


def positive_float(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"found {text}, expected a number above 0")
    return value


def unsigned_float(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"found {text}, expected a number, 0 or above")
    return value


def fraction(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"found {text}, expected 0 to 1")
    return value


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("Data")
    group.add_argument(
        "--dataset",
        choices=datasets.names(),
        default="imagenet",
        help="a row of imagenet_inat/datasets.py; custom: your images with your lists",
    )
    group.add_argument(
        "--data-root",
        default="data",
        metavar="DIR",
        help="folder that the split lists' paths start from; digits are written there",
    )
    group.add_argument(
        "--splits",
        metavar="DIR",
        help="folder of the lists <Set>_{train,val,test}.txt (default: imagenet_inat/data/<Set>)",
    )
    for split in ("train", "val", "test"):
        group.add_argument(
            f"--{split}-txt", metavar="FILE", help=f"this list, instead of the one in --splits, as {split}"
        )
    group.add_argument(
        "--imbalance",
        type=positive_float,
        help="digits, cifar10, cifar100: largest class ÷ smallest, 1 (balanced) to the images of a class "
        "(default: 50 for digits, 100 for CIFAR, as in most papers)",
    )
    group.add_argument(
        "--image-size",
        type=positive_int,
        metavar="PX",
        help="side of the network's input (default: the data set's)",
    )
    group.add_argument(
        "-j",
        "--workers",
        type=natural,
        help="loader processes over all training processes of a machine; 0: none, load in between steps "
        "(default: the cores this job may use, at most the release's 32; on the CPU half of them)",
    )
    group.add_argument(
        "--on-bad-image",
        choices=["stop", "skip"],
        default="stop",
        help="a training image that cannot be read ends the run; skip: take another of its class, count it, list it "
        "in bad_images.txt. In evaluation it always ends the run: an accuracy is over all images",
    )
    group.add_argument(
        "--device-aug",
        action="store_true",
        help="finish the training views on the device: colour jitter as one affine map an image, no rounding or "
        "clipping between its steps (pixels differ by 1.6 of 255 on average), and a faster resize (by 1 at most); "
        "loader processes need about 0.6 of the time. For GPUs that wait, when Data is much of Time in the console",
    )


def add_model_group(parser: argparse.ArgumentParser) -> Group:
    group = parser.add_argument_group("Model")
    group.add_argument(
        "-a",
        "--arch",
        help="a torchvision network with an fc head, or resnet20, resnet32 for small images (default: the data set's)",
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
    group.add_argument("--momentum", type=fraction, default=0.9, help="of SGD")
    group.add_argument(
        "--wd",
        "--weight-decay",
        dest="weight_decay",
        type=unsigned_float,
        default=weight_decay,
        help="of SGD",
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
    group = parser.add_argument_group("Distributed", "torchrun needs none of these")
    group.add_argument(
        "--multiprocessing-distributed",
        action="store_true",
        help="start one process per GPU of this machine (two processes where there is none)",
    )
    group.add_argument("--world-size", type=int, default=-1, help="machines in the job")
    group.add_argument("--rank", type=int, default=-1, help="number of this machine, from 0")
    group.add_argument("--dist-url", default="tcp://localhost:10000", help="address and free port of machine 0")
    group.add_argument("--dist-backend", choices=["nccl", "gloo"], help="(default: nccl with GPUs, gloo without)")
