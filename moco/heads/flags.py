"""The flags of stage 2's classifier: which there are, and which go together."""

from moco.heads import ADJUSTMENTS, HEADS, Head
from moco.heads.fitted import Way
from utils.errors import InputError
from utils.parser import Cases, Group, natural

# In checkpoints that do not say them, as they were.
BEFORE = {"sampling": "class-balanced", "logit_adjustment": "off", "feature_views": 0, "head": "linear"}
BEFORE |= {"finetune": False, "compare_heads": False}
CHOSEN_BY_COMPARISON = ("head", "sampling", "logit_adjustment", "finetune")
OF_TRAINING = (
    *("epochs", "start_epoch", "lr", "schedule", "cos", "lr_end", "warmup_epochs", "warmup_from", "momentum"),
    *("weight_decay", "optimizer", "clip_grad", "bn_mode", "eval_freq", "save_steps", "print_freq"),
)


def add_head_arguments(group: Group) -> None:
    group.add_argument(
        "--head",
        choices=list(HEADS),
        default="linear",
        help="; ".join(f"{name}: {head.help}" for name, head in HEADS.items())
        + ". All but linear and ldam are fitted to features that are computed once, in seconds",
    )
    group.add_argument(
        "--sampling",
        choices=["class-balanced", "instance"],
        help="class-balanced: every class counts alike; instance: every image does (default: the head's: "
        f"{_defaults('samplings')})",
    )
    group.add_argument(
        "--logit-adjustment",
        choices=list(ADJUSTMENTS),
        help="with --sampling instance. train: the log of the classes' share is added to the logits while it is "
        "trained (balanced softmax); post: t times it is taken off afterwards, t chosen on validation; off: neither "
        f"(default: the head's: {_defaults('adjustments')})",
    )
    group.add_argument(
        "--compare-heads",
        action="store_true",
        help="fit all heads that this checkpoint can have, and show them in one table and picture, beside the probes "
        "that were trained on it; writes no classifier",
    )
    group.add_argument(
        "--feature-views",
        type=natural,
        default=0,
        metavar="N",
        help="a fitted head is given N random views of each training image; 0: the view of evaluation alone. "
        "N times the features",
    )
    group.add_argument(
        "--finetune",
        action="store_true",
        help="train the whole network on from the pre-trained encoder, not the classifier alone; a smaller --lr than "
        "the probe's. As the paper's second stage on CIFAR: @recipes/cifar_ldam_drw.txt",
    )


def _defaults(field: str) -> str:
    firsts = {name: getattr(head, field)[0] for name, head in HEADS.items()}
    return ", ".join(f"{value} for {_names(firsts, value)}" for value in dict.fromkeys(firsts.values()))


def _names(firsts: dict[str, str], value: str) -> str:
    return "/".join(name for name, first in firsts.items() if first == value)


def is_fitted(args) -> bool:
    """Whether nothing is trained step by step."""
    return args.compare_heads or HEADS[args.head].fit is not None


def idle(args) -> Cases:
    """The flags that others leave without effect."""
    if args.evaluate or not is_fitted(args):
        return []
    return [("with --compare-heads" if args.compare_heads else f"with --head {args.head}", OF_TRAINING)]


def foreign(args) -> Cases:
    """The flags that clash."""
    cases = [("with --evaluate", ("dry_run",))] if args.evaluate else []
    if args.compare_heads:
        return [*cases, ("with --compare-heads", (*CHOSEN_BY_COMPARISON, "evaluate", "dry_run"))]
    if not is_fitted(args):
        return [*cases, (f"with --head {args.head}, which is trained on random views anyway", ("feature_views",))]
    fitted = f"with --head {args.head}, which is fitted to the features of a frozen encoder"
    return [*cases, (fitted, ("finetune", "dry_run"))]


def settle(args, processes: int) -> None:
    """Give --sampling and --logit-adjustment the head's defaults, and refuse what it cannot have.

    Raises:
        InputError: says which.
    """
    head = HEADS[args.head]
    if args.sampling is None:
        adjusted = args.logit_adjustment not in (None, "off")
        args.sampling = "instance" if adjusted and "instance" in head.samplings else head.samplings[0]
    if args.logit_adjustment is None:
        args.logit_adjustment = head.adjustments[0] if args.sampling == "instance" else "off"
    for flag, value, allowed in (
        ("--sampling", args.sampling, head.samplings),
        ("--logit-adjustment", args.logit_adjustment, head.adjustments),
    ):
        if value not in allowed:
            raise InputError(f"{flag} {value}: --head {args.head} has {' or '.join(sorted(allowed))}")
    if args.sampling == "class-balanced" and args.logit_adjustment != "off":
        raise InputError(
            f"--logit-adjustment {args.logit_adjustment}: corrects for the classes' sizes, which --sampling "
            "class-balanced has done: --sampling instance, or leave it out"
        )
    if is_fitted(args) and processes > 1:
        raise InputError(
            f"{'--compare-heads' if args.compare_heads else f'--head {args.head}'}: heads are fitted by one process, "
            f"found {processes}; start one"
        )


def way_of(sampling: str, adjustment: str) -> Way:
    return Way(sampling == "class-balanced", adjustment == "train", adjustment == "post")


def ways(head: Head) -> list[tuple[str, str]]:
    """(--sampling, --logit-adjustment) of a fitted head that are compared; post has t = 0, which is off."""
    of_instances = [a for a in head.adjustments if a != "off" or "post" not in head.adjustments]
    found = [("instance", adjustment) for adjustment in of_instances]
    return found + [("class-balanced", "off")] * ("class-balanced" in head.samplings)
