"""The flags of the KCL authors' own code, and of methods that also train a classifier: --joint, BCL and PaCo."""

from moco.methods.method_flags import WITH_MOCO
from moco.views.rows import VIEWS
from utils.cli.flags import Group, When
from utils.cli.numbers import nonnegative_float, positive_float

ONLY_KCL = {
    "refused": (When("with --targeted", lambda args: args.targeted),),
    "ignored": (WITH_MOCO, When("with --K 0", lambda args: args.K == 0)),
}


def add_authors_kcl_arguments(model: Group, loss: Group) -> None:
    """Add the flags with which the KCL authors' own code differs from that of the TSC authors."""
    for name, values, text, conditions in (
        (
            "--queue-init",
            ["random", "keys"],
            "Queue before the first step: random vectors, or keys of training images.",
            {},
        ),
        (
            "--positives",
            ["random", "first"],
            "Positives if the queue has more than K of the class: random ones, or the newest (first).",
            ONLY_KCL,
        ),
        (
            "--unused-positives",
            ["keep", "drop", "zero"],
            "Queue entries of the class that are not positives: keep in the denominator, drop, or zero their logit.",
            ONLY_KCL,
        ),
    ):
        loss.add_argument(
            name, choices=values, metavar="HOW", default=values[0], help=text, rare=True, legacy=values[0], **conditions
        )


def add_joint_arguments(model: Group, loss: Group) -> None:
    loss.add_argument(
        "--joint",
        type=nonnegative_float,
        default=0.0,
        metavar="W",
        help="Train with a classifier (--joint-classifier): add W times its balanced-softmax cross-entropy to "
        "the loss. 1 is a good start. Evaluate it with --head own in stage 2.",
        refused=(When("with --accum-steps", lambda args: args.accum_steps > 1),),
        legacy=0.0,
    )
    loss.add_argument(
        "--joint-classifier",
        choices=["linear", "targets"],
        default="linear",
        help="Classifier of --joint. linear: linear layer on the encoder's features. targets: cosines of the projected "
        "features to the class targets (TSC only); its loss is added from the TSC phase on.",
        rare=True,
        refused=(
            When("without --joint", lambda args: not args.joint),
            When(
                "without --targeted, whose targets it uses",
                lambda args: args.joint_classifier == "targets" and not args.targeted,
            ),
        ),
        legacy="linear",
    )


def add_classifier_view_argument(model: Group, loss: Group) -> None:
    loss.add_argument(
        "--classifier-view",
        choices=list(VIEWS),
        metavar="NAME",
        help="Augmentation of the first view, which the classifier sees (--contrast bcl or paco; default: that of "
        "--views, which lists the names). --crop-scale does not apply to this view.",
        rare=True,
        legacy=None,
    )


def add_bcl_arguments(model: Group, loss: Group) -> None:
    loss.add_argument(
        "--ce-weight",
        type=nonnegative_float,
        default=1.0,
        metavar="W",
        help="Weight of the cross-entropy (--contrast bcl); 2 in the paper on CIFAR.",
        rare=True,
        legacy=1.0,
    )
    loss.add_argument(
        "--contrast-weight",
        type=nonnegative_float,
        default=0.35,
        metavar="W",
        help="Weight of the contrastive loss (--contrast bcl); 0.6 in the paper on CIFAR.",
        rare=True,
        legacy=0.35,
    )


def add_paco_arguments(model: Group, loss: Group) -> None:
    for name, kind, default, text in (
        (
            "--alpha",
            nonnegative_float,
            0.05,
            "Weight of each positive image (--contrast paco); 0.02 to 0.05 in the paper.",
        ),
        ("--beta", positive_float, 1.0, "Weight of the anchor's class logit (--contrast paco)."),
        (
            "--gamma",
            nonnegative_float,
            1.0,
            "Weight of the images in the denominator (--contrast paco); that of the class logits is 1.",
        ),
    ):
        loss.add_argument(name, type=kind, default=default, metavar="W", help=text, rare=True, legacy=default)
    model.add_argument(
        "--no-momentum-keys",
        action="store_true",
        help="Train GPaCo: one encoder without momentum processes both views, and both are anchors (--contrast paco).",
        rare=True,
        legacy=False,
    )
