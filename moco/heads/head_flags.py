"""Flags of the stage-2 classifier, their defaults and the combinations that are supported."""

from dataclasses import dataclass
from pathlib import Path

from moco.heads import ADJUSTMENTS, HEADS, Head
from moco.pretrained import checkpoint_file
from utils.cli.flags import Group, When, effect_of
from utils.cli.numbers import nonnegative_int
from utils.cli.parser import Parser
from utils.configs import FromArgs
from utils.errors import InputError
from utils.files import file_problem
from utils.run import evaluation

EVALUATING = When("with --evaluate", lambda args: args.evaluate)
COMPARING = When("with --compare-heads", lambda args: args.compare_heads)
TRAINED = When("with --head {head} (trained on random views)", lambda args: not is_fitted(args))
FITTED = When("with --head {head} (fitted to features of a frozen encoder)", lambda args: is_fitted(args))


def _add_encoder_arguments(model: Group) -> None:
    model.add_argument(
        "--pretrained",
        metavar="PATH",
        help="File or run folder whose encoder is evaluated. docs/starts.md lists the tools whose files are supported.",
        affects_result=False,
    )
    model.add_argument(
        "--bn-mode",
        choices=["train", "eval"],
        default="train",
        help="Batch norm of the frozen encoder: train uses batch statistics, as the authors do; eval uses fixed ones.",
        trains=True,
    )


def add_evaluation_arguments(running: Group) -> None:
    running.add_argument(
        "-e",
        "--evaluate",
        action="store_true",
        help="Evaluate the checkpoint of --resume, without training.",
        affects_result=False,
        same_everywhere=True,
        refused=(COMPARING,),
    )
    evaluation.add_evaluation_arguments(running)


def add_head_arguments(group: Group, model: Group) -> None:
    """Add the flags of the classifier to a group, and those of its encoder to another one."""
    _add_encoder_arguments(model)
    group.add_argument(
        "--head",
        choices=list(HEADS),
        metavar="NAME",
        default="linear",
        help="Classifier. linear and ldam are trained on random views; the others are fitted to features that are "
        "computed once, in seconds to minutes.\n" + "\n".join(f"{name}: {head.help}" for name, head in HEADS.items()),
        refused=(COMPARING,),
        ignored=(EVALUATING,),
        legacy="linear",
    )
    group.add_argument(
        "--sampling",
        choices=["class-balanced", "instance"],
        metavar="HOW",
        help=f"Sampling of the training images (default: {_defaults('samplings')}).\n"
        "class-balanced: all classes count equally\ninstance: all images count equally",
        refused=(COMPARING,),
        legacy="class-balanced",
    )
    group.add_argument(
        "--logit-adjustment",
        choices=list(ADJUSTMENTS),
        help="Correction for class frequencies; requires --sampling instance (default: "
        f"{_defaults('adjustments')}).\n"
        "train: add the log class prior to the logits during training (balanced softmax)\n"
        "post: subtract t × log prior afterwards, with t selected on validation",
        refused=(COMPARING,),
        legacy="off",
    )
    group.add_argument(
        "--compare-heads",
        action="store_true",
        help="Fit all classifiers of --head that need no training epochs and compare them in one table and figure, "
        "together with linear classifiers trained before. No classifier is saved.",
        legacy=False,
    )
    group.add_argument(
        "--feature-views",
        type=nonnegative_int,
        default=0,
        metavar="N",
        help="Fit to N random views of each training image, at N times the cost (default: one evaluation view).",
        refused=(TRAINED,),
        legacy=0,
    )
    group.add_argument(
        "--finetune",
        action="store_true",
        help="Train the whole network, not only the classifier; use a smaller --lr. The paper's CIFAR recipe is "
        "@recipes/cifar_ldam_drw.txt.",
        refused=(COMPARING, FITTED),
        legacy=False,
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


@dataclass(frozen=True)
class HeadFlags(FromArgs):
    """The flags of the classifier; see --help."""

    head: str
    sampling: str
    logit_adjustment: str
    compare_heads: bool
    feature_views: int
    finetune: bool

    @property
    def is_fitted(self) -> bool:
        return is_fitted(self)


def restrict_training_flags(parser: Parser) -> None:
    """Declare for which heads the flags that other modules have declared are ignored or refused."""
    parser.restrict("dry_run", refused=(EVALUATING, COMPARING, FITTED))
    unused = [
        When(when.text, lambda args, holds=when.holds: holds(args) and not args.evaluate)
        for when in (COMPARING, FITTED)
    ]
    for flag in parser._actions:
        if effect_of(flag).trains:
            parser.restrict(flag.dest, ignored=unused)


def check_files(args) -> None:
    """Raise InputError unless the file of --pretrained, or with --evaluate that of --resume, is named and exists.

    --pretrained RUN_FOLDER becomes the path of its last checkpoint.
    """
    if args.evaluate:
        if args.pretrained:
            raise InputError("--evaluate: --pretrained is not supported; name the checkpoint with --resume")
        if not Path(args.resume or "").is_file():
            raise InputError(f'--evaluate: --resume "{args.resume or ""}" is not a file, expected a checkpoint')
        return
    args.pretrained = args.pretrained and str(checkpoint_file(args.pretrained))
    if problem := file_problem(args.pretrained) if args.pretrained else "no such file":
        raise InputError(
            f'--pretrained "{args.pretrained or ""}": {problem}, expected a file or run folder with a trained encoder'
        )


def resolve_run_dir(args, data_name: str) -> None:
    """Set --run-dir to its default, a folder beside the pre-trained file. --evaluate writes no files."""
    if not args.evaluate:
        args.run_dir = args.run_dir or str(Path(args.pretrained).parent / run_name(args, data_name))


def run_name(args, data_name: str) -> str:
    """Return the name of the run folder, beside the pre-trained file; for probes as in the TSC authors' code."""
    if args.compare_heads:
        return f"heads{args.name and '_'}{args.name}"
    if is_fitted(args):
        return f"{data_name}_{args.head}_{args.sampling}_{args.logit_adjustment}_{args.name}"
    return (
        f"{data_name}_{args.head}{'_finetune' if args.finetune else ''}_seed{args.seed}_lr{args.lr}"
        f"_decay{args.weight_decay}_bsz{args.batch_size}_{args.name}"
    )


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
    if is_fitted(args) and processes > 1 and not args.evaluate:
        raise InputError(
            f"{'--compare-heads' if args.compare_heads else f'--head {args.head}'}: found {processes} "
            "processes, expected 1. Fitted classifiers need a single process"
        )


def compared_settings(head: Head) -> list[tuple[str, str]]:
    """Return the (--sampling, --logit-adjustment) pairs of a fitted head to compare.

    If the head supports post, off is omitted, because post includes t = 0.
    """
    instance_adjustments = [a for a in head.adjustments if a != "off" or "post" not in head.adjustments]
    settings = [("instance", adjustment) for adjustment in instance_adjustments]
    return settings + [("class-balanced", "off")] * ("class-balanced" in head.samplings)
