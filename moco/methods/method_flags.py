"""Flags that several methods share, and the flags of KCL, TSC and MoCo, with a queue and in the batch."""

from utils.cli.flags import Group, When
from utils.cli.numbers import fraction, nonnegative_float, nonnegative_int, positive_float, positive_int

WITH_MOCO = When("with --loss MoCo", lambda args: args.loss == "MoCo")
WITHOUT_TARGETED = When("without --targeted", lambda args: not args.targeted)
# In-batch contrast has two forms of the TSC loss, and in each a flag for the weight of the target term.
WITH_TR = When(
    "with --loss-form release, where --tr is the weight",
    lambda args: args.contrast == "batch" and args.loss_form == "release",
)
WITH_TW = When(
    "with --loss-form paper, where --tw is the weight",
    lambda args: args.contrast == "batch" and args.loss_form != "release",
)


def add_encoder_arguments(model: Group, loss: Group) -> None:
    """Add the flags of all methods that train an encoder."""
    model.add_argument("--moco-dim", type=positive_int, default=128, metavar="D", help="Feature dimension.")
    model.add_argument(
        "--moco-t", type=positive_float, default=0.07, metavar="T", help="Temperature, usually 0.05 to 0.2."
    )
    model.add_argument(
        "--init-from",
        metavar="FILE",
        help="Pre-trained encoder: a checkpoint, a state dict (.pth, .safetensors), or the word torchvision or timm to "
        "download the library's weights.",
        affects_result=False,
        by_content=True,
        legacy=None,
    )
    _add_fine_tuning_arguments(model)
    _add_memory_arguments(model)
    loss.add_argument(
        "--sampling",
        choices=["instance", "class-balanced"],
        metavar="HOW",
        default="instance",
        help="Sampling of the training images.\ninstance: every image once per epoch (digits: 8 times)\n"
        "class-balanced: all classes equally often",
        legacy="instance",
    )


def add_mlp_argument(model: Group, loss: Group) -> None:
    model.add_argument("--mlp", action="store_true", help="Use a two-layer projection head, as the authors.")


def add_contrast_arguments(model: Group, loss: Group) -> None:
    """Add the flags of KCL, TSC and MoCo, with a queue and in the batch."""
    loss.add_argument(
        "--loss",
        choices=["SupCon", "MoCo"],
        default="SupCon",
        help="SupCon: use labels (KCL, TSC). MoCo: the image's own key (or other view) is the only positive.",
    )
    loss.add_argument(
        "--K",
        type=nonnegative_int,
        default=6,
        metavar="K",
        help="Number of positives sampled from the anchor's class. 0 uses all of them, as SupCon does.",
        ignored=(WITH_MOCO,),
    )
    loss.add_argument(
        "--targeted",
        action="store_true",
        help="Train TSC: KCL for the first half of the epochs (see --kcl-epochs), then with class targets.",
    )
    loss.add_argument(
        "--kcl-epochs",
        type=nonnegative_int,
        metavar="E",
        help="Epochs of KCL before TSC (default: half of --epochs).",
        ignored=(WITHOUT_TARGETED,),
        legacy=None,
    )
    loss.add_argument(
        "--tr",
        type=positive_int,
        default=1,
        metavar="R",
        help="Copies of each target in the denominator. The copies of the anchor's class are candidates for positives; "
        "with --sep_t, all of these are positives. With --contrast batch --loss-form release, copies are also anchors.",
        ignored=(WITHOUT_TARGETED, WITH_TW),
    )
    loss.add_argument(
        "--tw",
        "--target-weight",
        type=nonnegative_float,
        default=1.0,
        metavar="W",
        help="Weight of the target term; the paper's TSC uses 0.2.",
        ignored=(WITHOUT_TARGETED, WITH_TR),
    )
    loss.add_argument(
        "--loss-form",
        choices=["release", "paper"],
        metavar="FORM",
        help="TSC loss of the authors' code (release) or of the paper's equation (paper). By default release with a "
        "queue, paper in the batch.",
        ignored=(WITHOUT_TARGETED,),
        rare=True,
    )
    loss.add_argument(
        "--assignment-interval",
        type=nonnegative_int,
        default=1,
        metavar="N",
        help="Steps between target assignments. 1: every step (the method). Larger values save time with many "
        "thousands of classes; in between, classes keep their targets. 0: never; class y keeps target y.",
        ignored=(WITHOUT_TARGETED,),
        rare=True,
    )
    loss.add_argument(
        "--centroid-init",
        choices=["random", "queue", "kcl"],
        metavar="FROM",
        default="random",
        help="Class centroids when TSC starts.\nrandom: as in the authors' code\nqueue: class means of the queue\n"
        "kcl: running class means, updated in every step of the KCL phase",
        ignored=(WITHOUT_TARGETED,),
        rare=True,
    )
    loss.add_argument(
        "--targets",
        metavar="FILE",
        help="File of class targets (default: the checkpoint's; in a new run optimal_<C>_<D>.npy in the current "
        "folder, created if missing).",
        affects_result=False,
        ignored=(WITHOUT_TARGETED,),
    )


def _add_fine_tuning_arguments(model: Group) -> None:
    model.add_argument(
        "--freeze",
        nargs="+",
        default=[],
        metavar="M",
        help="Modules of the pre-trained encoder to freeze, including batch norm, by state-dict name. With a few "
        "thousand images similar to the pre-training data, freeze about the first half.",
        legacy=[],
    )
    model.add_argument(
        "--lr-backbone",
        type=positive_float,
        default=1.0,
        metavar="FACTOR",
        help="Factor on the encoder's learning rate; 0.1 keeps it closer to the pre-trained weights.",
        legacy=1.0,
    )


def _add_memory_arguments(model: Group) -> None:
    model.add_argument(
        "--accum-steps",
        type=positive_int,
        default=1,
        metavar="N",
        help="Accumulate N batches per step: the loss is that of all N together, the memory that of one; up to 60 %% "
        "slower. Choose --lr for N × batch size images. Exact except for batch norm.",
        legacy=1,
    )
    model.add_argument(
        "--grad-checkpointing",
        action="store_true",
        help="Recompute activations in the backward pass: less memory, the same results, 20 to 33 %% slower.",
        affects_result=False,
        legacy=False,
    )


def add_queue_arguments(model: Group, loss: Group) -> None:
    model.add_argument(
        "--moco-k",
        type=positive_int,
        default=65536,
        metavar="Q",
        help="Queue length, a multiple of -b times --accum-steps; a few times the number of training images is enough.",
    )
    model.add_argument(
        "--moco-m",
        type=fraction,
        default=0.999,
        metavar="M",
        help="Momentum of the key encoder; 0.99 if a run has few thousand steps.",
        ignored=(When("with --no-momentum-keys", lambda args: args.no_momentum_keys),),
    )


def add_queue_target_arguments(model: Group, loss: Group) -> None:
    """Add the flags of TSC with a queue."""
    loss.add_argument(
        "--sep_t",
        action="store_true",
        help="Always use the class's target as a positive, in addition to the K sampled ones (--contrast queue). "
        "Without it, positives are sampled from targets and queue together. All TSC recipes with a queue set it.",
        ignored=(WITHOUT_TARGETED,),
    )


def add_batch_arguments(model: Group, loss: Group) -> None:
    model.add_argument(
        "--sync-bn",
        action="store_true",
        help="Use SyncBatchNorm over all GPUs; for small batches per GPU (--contrast batch).",
        legacy=False,
    )
    loss.add_argument(
        "--keep-last",
        action="store_true",
        help="Train on incomplete last batches (--contrast batch).",
        legacy=False,
    )
    loss.add_argument(
        "--only_t",
        action="store_true",
        help="Ablation: use only the targets as anchors, not the images (--contrast batch --loss-form release).",
        ignored=(WITHOUT_TARGETED, WITH_TW),
        legacy=False,
        rare=True,
    )
    loss.add_argument(
        "--unbiased",
        action="store_true",
        help="Ablation: the denominator contains only the positive and the other classes (--contrast batch).",
        legacy=False,
        rare=True,
    )
