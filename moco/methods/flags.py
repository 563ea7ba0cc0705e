"""The flags of KCL, TSC and MoCo: those they share, those of the queue, those of the batch."""

from moco.losses import LOSS_FORMS
from utils.parser import Group, fraction, natural, positive_float, positive_int, unsigned_float

TARGET_FLAGS = (  # TSC's alone
    *("tr", "sep_t", "tw", "loss_form", "kcl_epochs", "centroid_init", "assignment_interval"),
)


def add_contrast_arguments(model: Group, loss: Group) -> None:
    model.add_argument("--moco-dim", type=positive_int, default=128, help="D, dimension of the features")
    model.add_argument("--moco-t", type=positive_float, default=0.07, help="softmax temperature, 0.05 to 0.2")
    model.add_argument("--mlp", action="store_true", help="two-layer projection head (all recipes use it)")
    model.add_argument(
        "--init-from",
        metavar="FILE",
        help="start the encoder from these weights instead of random ones: a torchvision or timm state dict (.pth, "
        ".safetensors), or a checkpoint that --pretrained takes; or the word torchvision or timm: those that the "
        "network's library publishes, downloaded. Key by key: what was taken and what not is said",
    )
    _add_fine_tuning_arguments(model)
    _add_memory_arguments(model)
    loss.add_argument(
        "--sampling",
        choices=["instance", "class-balanced"],
        default="instance",
        help="which images make up the batches. instance: every image once an epoch, the paper; class-balanced: every "
        "class alike, rare images again and again, as in the probe: their anchors and targets then count as much",
    )
    loss.add_argument(
        "--loss",
        choices=["SupCon", "MoCo"],
        default="SupCon",
        help="SupCon: KCL and TSC; MoCo: the own key, or the other view, is the only positive, labels are not used",
    )
    loss.add_argument(
        "--K",
        type=natural,
        default=6,
        help="positives drawn per anchor; 0: all of its class that there are",
    )
    loss.add_argument(
        "--targeted", action="store_true", help="TSC: half of the epochs KCL (--kcl-epochs), then targets join the loss"
    )
    loss.add_argument(
        "--kcl-epochs",
        type=natural,
        metavar="E",
        help="epochs of KCL before the targets join; 0: none, which costs a point on ImageNet-LT in the paper "
        "(default: half of --epochs)",
    )
    loss.add_argument(
        "--tr",
        type=positive_int,
        default=1,
        help="copies of each target; in the batch, with --loss-form release, their weight: 25 there (TSC)",
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
        help="whose TSC. With a queue: release, class and target term over the number of all positives, the code that "
        "was run and that --tw 0.2 was tuned on; paper, class term over 1 + drawn, target term times --tw. In the "
        "batch: paper, the same; release, --tr copies of each target in each view as if they were images, drawn and "
        "anchors too, without --tw (default: release with a queue, paper in the batch)",
    )
    loss.add_argument(
        "--assignment-interval",
        type=natural,
        default=1,
        metavar="STEPS",
        help="steps from one assignment of targets to classes to the next (TSC); 1: every step, the method; more "
        "only if many thousand classes, not yet settled, hold the step up: the targets are then some steps stale; "
        "0: never, class y has target y of the file, as in the release on CIFAR",
    )
    loss.add_argument(
        "--targets",
        metavar="FILE",
        help="the targets, a file that is there; another one than a checkpoint's needs --override (default: the "
        "checkpoint's, and of a new run optimal_<C>_<D>.npy in this folder, made if missing)",
    )


def _add_fine_tuning_arguments(model: Group) -> None:
    model.add_argument(
        "--freeze",
        nargs="+",
        default=[],
        metavar="PART",
        help="parts of an encoder that --init-from started, which stay as they are, batch norm included: conv1 bn1 "
        "layer1 of a ResNet, features.0 features.1 of a ConvNeXt, by the names in its state dict. The first half of "
        "it where images are few, some thousand, and like those it was trained on",
    )
    model.add_argument(
        "--lr-backbone",
        type=positive_float,
        default=1.0,
        metavar="FACTOR",
        help="learning rate of the encoder, as a share of the projection head's; 0.1 keeps more of what --init-from "
        "gave, 1 where there are images enough to learn anew",
    )


def _add_memory_arguments(model: Group) -> None:
    model.add_argument(
        "--accum-steps",
        type=positive_int,
        default=1,
        metavar="N",
        help="a step is of N times --batch-size images, which the encoder sees a batch at a time: the memory of one, "
        "the loss and gradients of all, and up to half more time. --lr and --moco-k are for the whole. Exact, but that "
        "batch norm sees a batch alone",
    )
    model.add_argument(
        "--grad-checkpointing",
        action="store_true",
        help="compute each block's activations again in the backward pass instead of keeping them: the same numbers "
        "in less memory, a fifth to a third more time",
    )


def add_queue_arguments(model: Group, loss: Group) -> None:
    model.add_argument(
        "--moco-k",
        type=positive_int,
        default=65536,
        help="(queue) Q, its length, a multiple of the batch; on small data a few times the training set is enough",
    )
    model.add_argument(
        "--moco-m",
        type=fraction,
        default=0.999,
        help="(queue) momentum of the key encoder; 0.99 when a run has only some thousand steps",
    )
    loss.add_argument(
        "--sep_t",
        action="store_true",
        help="(queue) the target is always a positive, besides the K drawn ones (TSC's recipe)",
    )
    loss.add_argument(
        "--centroid-init",
        choices=["random", "queue"],
        default="random",
        help="(queue) class centroids when TSC starts. random: the release, first assignments are arbitrary; queue: "
        "the classes' means in the queue, random only for a class that is not in it",
    )


def add_batch_arguments(model: Group, loss: Group) -> None:
    model.add_argument(
        "--sync-bn",
        action="store_true",
        help="(batch) batch norm over all processes, by PyTorch's SyncBatchNorm (GPUs): for small shares of the batch",
    )
    loss.add_argument(
        "--keep-last",
        action="store_true",
        help="(batch) train on an epoch's last, incomplete batch too, as the release on CIFAR; what does not divide "
        "over the processes is left out",
    )
    loss.add_argument(
        "--only_t",
        action="store_true",
        help="(batch) the loss is the mean over the anchors that are targets alone (TSC with --loss-form release; an "
        "ablation)",
    )
    loss.add_argument(
        "--unbiased",
        action="store_true",
        help="(batch) images of the anchor's class leave the denominator, but for the positive in the numerator: they "
        "are not pushed apart; an ablation of the release",
    )
