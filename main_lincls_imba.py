"""Stage 2: a linear classifier on the frozen encoder of stage 1, on class-balanced batches.

On the embedded digits:
    python main_lincls_imba.py --dataset digits --pretrained RUN/last.pth.tar --epochs 10 --schedule 5 8 -b 64 --seed 0

On ImageNet-LT, the recipe of the release:
    python main_lincls_imba.py --data-root IMAGENET --pretrained RUN/last.pth.tar \\
        --epochs 40 --schedule 20 30 -b 2048 --seed 0
"""

from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from imagenet_inat.bad_images import report_bad_images
from imagenet_inat.datasets import DatasetSpec, LongTailDataset
from imagenet_inat.loaders import train_loader
from imagenet_inat.samplers import ClassAwareBatches
from moco.loader import train_transform
from utils import arguments, checkpoint, distributed, errors, resolve
from utils.classifier import build_classifier, frozen_weights, moved
from utils.evaluation import (
    BEST,
    add_evaluation_arguments,
    best_on_test,
    check_epochs_left,
    check_splits,
    choose,
    finish,
    log_epoch,
    measure_if_due,
    open_eval_loaders,
    validate,
)
from utils.keeper import Keeper
from utils.logger import Progress, RunLog, say
from utils.metrics import Means, in_top_k, rank_of_label
from utils.resume import check_resume, check_step, hold, load_run
from utils.schedules import learning_rate, set_learning_rate
from utils.signals import StopSignals
from utils.speed import Speed, arithmetic, sgd
from utils.tables import show_accuracies


def get_args_parser() -> arguments.Parser:
    parser = arguments.Parser(description=__doc__)
    arguments.add_data_arguments(parser)
    model = arguments.add_model_group(parser)
    model.add_argument(
        "--pretrained",
        metavar="PATH",
        help="whose encoder is probed: a stage-1 checkpoint (ours, the release's, MoCo's) or a torchvision state dict",
    )
    model.add_argument(
        "--bn-mode",
        choices=["train", "eval"],
        default="train",
        help="batch-norm of the frozen encoder while the classifier trains: batch statistics, and running ones "
        "that move on (train, the release), or everything frozen (eval, MoCo)",
    )
    arguments.add_optim_arguments(parser, epochs=100, lr=10.0, schedule=[60, 80], weight_decay=0.0)
    running = arguments.add_running_arguments(parser)
    running.add_argument(
        "-e",
        "--evaluate",
        action="store_true",
        help="measure the stage-2 checkpoint given with --resume; train nothing",
    )
    add_evaluation_arguments(running)
    arguments.add_speed_arguments(parser)
    arguments.add_distributed_arguments(parser)
    return parser


def main(argv: list[str] | None = None) -> None:
    args = arguments.parse(get_args_parser(), argv)
    prepare(args)
    distributed.launch(main_worker, args)


def prepare(args) -> None:
    """Check everything that can be checked before a process group or a file is made."""
    spec = resolve.resolve(args)
    if args.evaluate and args.pretrained:
        raise errors.InputError("--evaluate measures the checkpoint given with --resume: leave --pretrained out")
    if args.evaluate:
        if not Path(args.resume or "").is_file():
            raise errors.InputError(
                f'--evaluate: --resume "{args.resume or ""}" is no file, expected a stage-2 checkpoint'
            )
    elif not args.pretrained or not Path(args.pretrained).is_file():
        raise errors.InputError(
            f'--pretrained "{args.pretrained or ""}": no such file, expected a checkpoint of main_moco_supcon_imba.py'
        )
    else:
        args.run_dir = args.run_dir or str(Path(args.pretrained).parent / run_name(args))
        check_resume(args.resume, Path(args.run_dir))
    build_classifier(args, spec.num_classes)
    check_splits(args, spec)


def run_name(args) -> str:
    """The release's name of a probe, a folder beside the pre-trained file."""
    return (
        f"{resolve.data_name(args)}_linear_seed{args.seed}_lr{args.lr}_decay{args.weight_decay}"
        f"_bsz{args.batch_size}_{args.name}"
    )


def main_worker(args) -> None:
    """The probe, in one of its processes."""
    spec, speed = resolve.spec_of(args), Speed(args)
    if args.evaluate:
        evaluate(args, spec, speed)
        return
    resume, state = load_run(args)
    resolve.resolve_seed(args, state)
    torch.manual_seed(args.seed)

    model = build_classifier(args, spec.num_classes)
    if resume:
        encoder = frozen_weights(model, "train")
        checkpoint.load_into(model, checkpoint.unpacked(state), resume)
        if moved(model, encoder):
            raise errors.InputError(f"checkpoint {resume}: is a probe of another encoder than {args.pretrained}")
        say(f"resumed {resume} after epoch {state['epoch']} and {state['step']} steps")
    check_epochs_left(args, state)
    train_set = resolve.open_split(args, "train", train_transform(spec, args.image_size, args.device_aug))
    check_step(state, len(ClassAwareBatches(train_set.labels, spec.repeat, args.batch_size, args.seed)))
    loaders = open_eval_loaders(args, spec)
    speed.apply_to(model.to(args.device))
    with StopSignals() as stop, hold(Path(args.run_dir), state), arithmetic(args):
        results = train(args, model, speed, train_set, loaders, Keeper(args, model, stop), state)
        finish(args, Path(args.run_dir), results, train_set.class_counts)


def evaluate(args, spec: DatasetSpec, speed: Speed) -> None:
    """Show the accuracies of the checkpoint given with --resume; write nothing."""
    state = checkpoint.load(args.resume, needs=("state_dict", "epoch"))
    model = build_classifier(args, spec.num_classes)
    checkpoint.load_into(model, checkpoint.unpacked(state), args.resume)
    speed.apply_to(model.to(args.device))
    class_counts = resolve.open_split(args, "train", None).class_counts
    with arithmetic(args):
        for split, loader in open_eval_loaders(args, spec).items():
            accuracies = validate(loader, model, speed, class_counts, where=f"checkpoint {args.resume}, {split}")
            show_accuracies(f"{split}, epoch {state['epoch']}", accuracies)


def train(args, model, speed: Speed, train_set: LongTailDataset, loaders: dict, keeper: Keeper, state: dict) -> dict:
    """Train `fc` from where `state` stands, and measure every --eval-freq epochs; returns the results."""
    spec, device, results = resolve.spec_of(args), args.device, state.get("results", {})
    batches = ClassAwareBatches(train_set.labels, spec.repeat, args.batch_size, args.seed)
    loader = train_loader(train_set, batches, args.workers, spec, device)
    ddp = distributed.wrap(model, device)
    # No weight decay and no momentum reaches the encoder: only what trains is given.
    optimizer = sgd(model.fc.parameters(), args)
    if "optimizer" in state:
        checkpoint.load_optimizer(optimizer, state, args.resume)

    log = RunLog(Path(args.run_dir), args, ("train", "val", "test"), state["epoch"])
    say(f"{len(train_set)} images, {len(loader)} steps an epoch, seed {args.seed}, {device}: {args.run_dir}")
    done = state["epoch"] * len(loader) + state["step"]
    progress = Progress(args.epochs * len(loader), done, args.batch_size, args.print_freq)
    frozen = frozen_weights(model, args.bn_mode)
    for epoch in range(state["epoch"], args.epochs):
        rate = learning_rate(args.lr, epoch, args.epochs, args.schedule, cosine=False)
        set_learning_rate(optimizer, rate)
        first = state["step"] if epoch == state["epoch"] else 0  # of an epoch that goes on
        batches.set_epoch(epoch, first)
        means = Means(f"Epoch: [{epoch + 1}/{args.epochs}]", device, state.get("means") if first else None)
        keeper.begin_epoch(epoch, first, optimizer, means, results=results)
        train_one_epoch(loader, ddp, speed, optimizer, means, args.bn_mode, progress, keeper)
        if epoch == state["epoch"]:
            assert not (names := moved(model, frozen)), f"training the classifier has moved {names[:3]}"
        distributed.broadcast_buffers(model)
        measured = measure_if_due(args, epoch + 1, loaders, model, speed, train_set.class_counts, keeper.stop_if_asked)
        is_best = choose(results, epoch + 1, measured)
        log_epoch(log, means, epoch + 1, rate, measured, progress)
        # The files hold the frozen encoder too, for they are the release's: written once an epoch, from one encoding.
        keeper.end_epoch(also=(BEST,) if is_best else (), best_acc1=best_on_test(results))
        report_bad_images(train_set, keeper.run_dir, device)
    progress.close()
    return results


def train_one_epoch(
    loader, model, speed: Speed, optimizer, means: Means, bn_mode: str, progress: Progress, keeper: Keeper
) -> None:
    """What is left of an epoch of class-balanced batches; adds to its means."""
    model.train(bn_mode == "train")
    for images, labels in progress.epoch(loader, means.where, keeper.step):
        with speed.autocast():
            logits = model(images)  # (N, C); of the frozen encoder nothing is kept for the backward pass
        loss = cross_entropy(logits, labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # through fc alone, in float32: float16 needs no scaled loss here
        optimizer.step()

        rank = rank_of_label(logits.detach(), labels)
        means.add(len(labels), loss=loss, top1=in_top_k(rank, 1), top5=in_top_k(rank, 5))
        progress.step(means)
        keeper.after_step()


if __name__ == "__main__":
    errors.run(main, "the last checkpoint stays; --resume auto continues from it")
