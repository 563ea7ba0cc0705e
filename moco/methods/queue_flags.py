"""The flags of KCL, TSC and MoCo on a queue."""

from moco.losses import LOSS_FORMS
from utils.parser import Group, fraction, natural, positive_float, positive_int, unsigned_float

TARGET_FLAGS = ("tr", "sep_t", "tw", "loss_form", "centroid_init", "assignment_interval")  # TSC's alone


def add_queue_arguments(model: Group, loss: Group) -> None:
    model.add_argument("--moco-dim", type=positive_int, default=128, help="D, dimension of the features")
    model.add_argument(
        "--moco-k",
        type=positive_int,
        default=65536,
        help="Q, length of the queue, a multiple of the batch; on small data a few times the training set is enough",
    )
    model.add_argument(
        "--moco-m",
        type=fraction,
        default=0.999,
        help="momentum of the key encoder; 0.99 when a run has only some thousand steps",
    )
    model.add_argument("--moco-t", type=positive_float, default=0.07, help="softmax temperature, 0.05 to 0.2")
    model.add_argument("--mlp", action="store_true", help="two-layer projection head (both recipes use it)")
    loss.add_argument(
        "--K",
        type=natural,
        default=6,
        help="positives drawn per anchor; 0: all of its class in the queue",
    )
    loss.add_argument("--targeted", action="store_true", help="TSC: half of the epochs KCL, then targets join the loss")
    loss.add_argument("--tr", type=positive_int, default=1, help="copies of each target (TSC)")
    loss.add_argument(
        "--sep_t",
        action="store_true",
        help="the target is always a positive, besides the K drawn ones (TSC's recipe)",
    )
    loss.add_argument(
        "--tw",
        "--target-weight",
        type=unsigned_float,
        default=1.0,
        help="weight of the target term (TSC's recipe: 0.2)",
    )
    loss.add_argument(
        "--loss-form",
        choices=LOSS_FORMS,
        default="release",
        help="release: class and target term over the number of all positives, the code that was run and that "
        "--tw 0.2 was tuned on; paper: class term over 1 + drawn, target term times --tw (TSC)",
    )
    loss.add_argument(
        "--centroid-init",
        choices=["random", "queue"],
        default="random",
        help="class centroids when TSC starts. random: the release, first assignments are arbitrary; queue: the "
        "classes' means in the queue, random only for a class that is not in it",
    )
    loss.add_argument(
        "--assignment-interval",
        type=positive_int,
        default=1,
        metavar="STEPS",
        help="steps from one assignment of targets to classes to the next (TSC); 1: every step, the method; more "
        "only if many thousand classes, not yet settled, hold the step up: the targets are then some steps stale",
    )
    loss.add_argument(
        "--targets",
        metavar="FILE",
        help="the targets, a file that is there; another one than a checkpoint's needs --override (default: the "
        "checkpoint's, and of a new run optimal_<C>_<D>.npy in this folder, made if missing)",
    )
