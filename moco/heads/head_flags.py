"""Flags of the stage-2 classifier, their defaults and the combinations that are supported."""

from dataclasses import dataclass, replace
from pathlib import Path

from moco.heads import ADJUSTMENTS, HEADS, Head
from utils.cli import evaluation_flags
from utils.cli.flags import Group, When, effect_of
from utils.cli.numbers import nonnegative_int
from utils.cli.parser import Parser
from utils.configs import FromArgs
from utils.errors import InputError
from utils.files import file_problem

EVALUATING = When("with --evaluate", lambda args: args.evaluate)
COMPARING = When("with --compare-heads", lambda args: args.compare_heads)
TRAINED = When(
    "with --head {head} (trained on random views)", lambda args: not is_fitted(args.head, args.compare_heads)
)
FITTED = When(
    "with --head {head} (fitted to features of a frozen encoder)", lambda args: is_fitted(args.head, args.compare_heads)
)


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
    evaluation_flags.add_evaluation_arguments(running)


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


def is_fitted(head: str, compare_heads: bool) -> bool:
    """Return whether the classifier is fitted to features instead of trained step by step."""
    return compare_heads or HEADS[head].is_fitted


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
        return is_fitted(self.head, self.compare_heads)

    def resolved(self, processes: int) -> "HeadFlags":
        """Return the flags with the head's defaults of --sampling and --logit-adjustment.

        Args:
            processes: Number of processes, or 1 if nothing is fitted or trained.

        Raises:
            InputError: The head does not support a value, or several processes were started for a fitted head.
        """
        head, sampling, adjustment = HEADS[self.head], self.sampling, self.logit_adjustment
        if sampling is None:
            adjusted = adjustment not in (None, "off")
            sampling = "instance" if adjusted and "instance" in head.samplings else head.samplings[0]
        if adjustment is None:
            adjustment = head.adjustments[0] if sampling == "instance" else "off"
        for flag, value, allowed in (
            ("--sampling", sampling, head.samplings),
            ("--logit-adjustment", adjustment, head.adjustments),
        ):
            if value not in allowed:
                raise InputError(
                    f"{flag} {value}: not supported with --head {self.head}, expected {' or '.join(sorted(allowed))}"
                )
        if sampling == "class-balanced" and adjustment != "off":
            raise InputError(
                f"--logit-adjustment {adjustment}: not supported with --sampling class-balanced (both correct "
                "for class sizes). Use --sampling instance, or omit --logit-adjustment"
            )
        if self.is_fitted and processes > 1:
            raise InputError(
                f"{'--compare-heads' if self.compare_heads else f'--head {self.head}'}: found {processes} "
                "processes, expected 1. Fitted classifiers need a single process"
            )
        return replace(self, sampling=sampling, logit_adjustment=adjustment)

    def run_name(self, data_name: str, seed: int | None, lr: float, weight_decay: float, batch_size: int) -> str:
        """Return the name of the run folder without --name; for probes as in the TSC authors' code."""
        if self.compare_heads:
            return "heads"
        if self.is_fitted:
            return f"{data_name}_{self.head}_{self.sampling}_{self.logit_adjustment}"
        head = f"{self.head}_finetune" if self.finetune else self.head
        return f"{data_name}_{head}_seed{seed}_lr{lr}_decay{weight_decay}_bsz{batch_size}"


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


def find_checkpoint(evaluate: bool, resume: str | None, pretrained: str | None) -> Path:
    """Return the file of --pretrained, or with --evaluate that of --resume. Of a run folder, it is the last checkpoint.

    Raises:
        InputError: The file is not named, or does not exist.
    """
    if evaluate:
        if pretrained:
            raise InputError("--evaluate: --pretrained is not supported; name the checkpoint with --resume")
        if not Path(resume or "").is_file():
            raise InputError(f'--evaluate: --resume "{resume or ""}" is not a file, expected a checkpoint')
        return Path(resume)
    from moco.pretrained import checkpoint_file  # here, because PyTorch takes seconds to import

    file = pretrained and checkpoint_file(pretrained)
    if problem := file_problem(file) if file else "no such file":
        raise InputError(
            f'--pretrained "{file or ""}": {problem}, expected a file or run folder with a trained encoder'
        )
    return file


def compared_settings(head: Head) -> list[tuple[str, str]]:
    """Return the (--sampling, --logit-adjustment) pairs of a fitted head to compare.

    If the head supports post, off is omitted, because post includes t = 0.
    """
    instance_adjustments = [a for a in head.adjustments if a != "off" or "post" not in head.adjustments]
    settings = [("instance", adjustment) for adjustment in instance_adjustments]
    return settings + [("class-balanced", "off")] * ("class-balanced" in head.samplings)
