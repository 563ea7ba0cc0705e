"""Flags of the stage-2 classifier, their defaults and the combinations that are supported."""

from moco.heads import ADJUSTMENTS, HEADS, Head
from moco.heads.candidates import Balancing
from utils.errors import InputError
from utils.parser import FlagConditions, Group, nonnegative_int

# Values for checkpoints that were written before these flags existed.
HEAD_LEGACY_DEFAULTS = {"sampling": "class-balanced", "logit_adjustment": "off", "feature_views": 0, "head": "linear"}
HEAD_LEGACY_DEFAULTS |= {"finetune": False, "compare_heads": False}
COMPARISON_FLAGS = ("head", "sampling", "logit_adjustment", "finetune")
TRAINING_FLAGS = (
    *("epochs", "start_epoch", "lr", "schedule", "cos", "lr_end", "warmup_epochs", "warmup_from", "momentum"),
    *("weight_decay", "optimizer", "clip_grad", "bn_mode", "eval_freq", "save_steps", "print_freq"),
)


def add_head_arguments(group: Group) -> None:
    group.add_argument(
        "--head",
        choices=list(HEADS),
        metavar="NAME",
        default="linear",
        help="Classifier. linear and ldam are trained on random views; the others are fitted to features that are "
        "computed once, in seconds to minutes.\n" + "\n".join(f"{name}: {head.help}" for name, head in HEADS.items()),
    )
    group.add_argument(
        "--sampling",
        choices=["class-balanced", "instance"],
        metavar="HOW",
        help=f"Sampling of the training images (default: {_defaults('samplings')}).\n"
        "class-balanced: all classes count equally\ninstance: all images count equally",
    )
    group.add_argument(
        "--logit-adjustment",
        choices=list(ADJUSTMENTS),
        help="Correction for class frequencies; requires --sampling instance (default: "
        f"{_defaults('adjustments')}).\n"
        "train: add the log class prior to the logits during training (balanced softmax)\n"
        "post: subtract t × log prior afterwards, with t selected on validation",
    )
    group.add_argument(
        "--compare-heads",
        action="store_true",
        help="Fit all classifiers of --head that need no training epochs and compare them in one table and figure, "
        "together with linear classifiers trained before. No classifier is saved.",
    )
    group.add_argument(
        "--feature-views",
        type=nonnegative_int,
        default=0,
        metavar="N",
        help="Fit to N random views of each training image, at N times the cost (default: one evaluation view).",
    )
    group.add_argument(
        "--finetune",
        action="store_true",
        help="Train the whole network, not only the classifier; use a smaller --lr. The paper's CIFAR recipe is "
        "@recipes/cifar_ldam_drw.txt.",
    )


def _defaults(field: str) -> str:
    """Describe the default of each head for --help: `class-balanced for linear; instance for the others`."""
    firsts = {name: getattr(head, field)[0] for name, head in HEADS.items()}
    *few, most = sorted(dict.fromkeys(firsts.values()), key=[*firsts.values()].count)
    named = [f"{value} for {', '.join(name for name in firsts if firsts[name] == value)}" for value in few]
    return "; ".join([*named, f"{most} for the others"])


def is_fitted(args) -> bool:
    """Return whether the classifier is fitted to features instead of trained step by step."""
    return args.compare_heads or HEADS[args.head].is_fitted


def ignored_flags(args) -> FlagConditions:
    """Return the flags that other flags make irrelevant."""
    if args.evaluate or not is_fitted(args):
        return []
    return [("with --compare-heads" if args.compare_heads else f"with --head {args.head}", TRAINING_FLAGS)]


def unsupported_flags(args) -> FlagConditions:
    """Return the flags that other flags do not allow."""
    cases = [("with --evaluate", ("dry_run",))] if args.evaluate else []
    if args.compare_heads:
        return [*cases, ("with --compare-heads", (*COMPARISON_FLAGS, "evaluate", "dry_run"))]
    if not is_fitted(args):
        return [*cases, (f"with --head {args.head} (trained on random views)", ("feature_views",))]
    fitted = f"with --head {args.head} (fitted to features of a frozen encoder)"
    return [*cases, (fitted, ("finetune", "dry_run"))]


def resolve_defaults(args, processes: int) -> None:
    """Set --sampling and --logit-adjustment to the defaults of the head, and check the given values.

    Raises:
        InputError: The head does not support a value, or several processes were started for a fitted head.
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
            raise InputError(
                f"{flag} {value}: not supported with --head {args.head}, expected {' or '.join(sorted(allowed))}"
            )
    if args.sampling == "class-balanced" and args.logit_adjustment != "off":
        raise InputError(
            f"--logit-adjustment {args.logit_adjustment}: not supported with --sampling class-balanced (both correct "
            "for class sizes). Use --sampling instance, or omit --logit-adjustment"
        )
    if is_fitted(args) and processes > 1:
        raise InputError(
            f"{'--compare-heads' if args.compare_heads else f'--head {args.head}'}: found {processes} "
            "processes, expected 1. Fitted classifiers need a single process"
        )


def build_balancing(sampling: str, adjustment: str) -> Balancing:
    return Balancing(sampling == "class-balanced", adjustment == "train", adjustment == "post")


def compared_settings(head: Head) -> list[tuple[str, str]]:
    """Return the (--sampling, --logit-adjustment) pairs of a fitted head to compare.

    If the head supports post, off is omitted, because post includes t = 0.
    """
    of_instances = [a for a in head.adjustments if a != "off" or "post" not in head.adjustments]
    settings = [("instance", adjustment) for adjustment in of_instances]
    return settings + [("class-balanced", "off")] * ("class-balanced" in head.samplings)
