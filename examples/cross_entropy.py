"""The baseline to compare with: the same network by cross-entropy, in one stage, on class-balanced batches.

    python -m examples.cross_entropy --dataset digits --imbalance 50 --epochs 40 -b 64 --cos --seed 0

Everything trains, from random weights. Views, batches and what is measured are the linear probe's, and so
is the run folder: utils.report shows it beside others.
"""

from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from imagenet_inat.bad_images import report_bad_images
from imagenet_inat.datasets import LongTailDataset
from imagenet_inat.loaders import train_loader
from imagenet_inat.samplers import ClassAwareBatches
from moco.encoders import get_encoder
from moco.loader import train_transform
from utils import arguments, checkpoint, distributed, errors, evaluation, resolve
from utils.classifier import with_float32_logits
from utils.keeper import Keeper
from utils.logger import Progress, RunLog, say
from utils.metrics import Means, in_top_k, rank_of_label
from utils.resume import check_resume, check_step, hold, load_run
from utils.schedules import learning_rate, set_learning_rate
from utils.signals import StopSignals
from utils.speed import Speed, arithmetic, sgd


def get_args_parser() -> arguments.Parser:
    parser = arguments.Parser(description=__doc__)
    arguments.add_data_arguments(parser)
    arguments.add_model_group(parser)
    optim = arguments.add_optim_arguments(parser, epochs=200, lr=0.1, schedule=[120, 160], weight_decay=1e-4)
    optim.add_argument("--cos", action="store_true", help="cosine schedule, instead of --schedule")
    evaluation.add_evaluation_arguments(arguments.add_running_arguments(parser))
    arguments.add_speed_arguments(parser)
    arguments.add_distributed_arguments(parser)
    parser.set_defaults(pretrained=None)  # the probe's entry in args.json and results.json: nothing went before
    return parser


def main(argv: list[str] | None = None) -> None:
    args = arguments.parse(get_args_parser(), argv)
    prepare(args)
    distributed.launch(main_worker, args)


def prepare(args) -> None:
    """Check everything that can be checked before a process group or a file is made."""
    spec = resolve.resolve(args)
    args.run_dir = args.run_dir or str(Path("runs") / run_name(args))
    check_resume(args.resume, Path(args.run_dir))
    get_encoder(args.arch, args.image_size, args.batch_size // distributed.world_size_from(args))
    evaluation.check_splits(args, spec)


def run_name(args) -> str:
    return (
        f"{resolve.data_name(args)}_cross_entropy_{args.arch}_lr_{args.lr}_bsz_{args.batch_size}"
        f"_ep_{args.epochs}_seed_{args.seed}_{args.name}"
    )


def main_worker(args) -> None:
    """The run, in one of its processes."""
    spec, speed = resolve.spec_of(args), Speed(args)
    resume, state = load_run(args)
    resolve.resolve_seed(args, state)
    torch.manual_seed(args.seed)

    model = with_float32_logits(get_encoder(args.arch, args.image_size)(num_classes=spec.num_classes))
    if resume:
        checkpoint.load_into(model, checkpoint.unpacked(state), resume)
        speed.load(state, resume)
        say(f"resumed {resume} after epoch {state['epoch']} and {state['step']} steps")
    evaluation.check_epochs_left(args, state)
    train_set = resolve.open_split(args, "train", train_transform(spec, args.image_size, args.device_aug))
    check_step(state, len(ClassAwareBatches(train_set.labels, spec.repeat, args.batch_size, args.seed)))
    loaders = evaluation.open_eval_loaders(args, spec)
    speed.apply_to(model.to(args.device))
    with StopSignals() as stop, hold(Path(args.run_dir), state), arithmetic(args):
        keeper = Keeper(args, model, stop, live=speed.state)
        results = train(args, model, speed, train_set, loaders, keeper, state)
        evaluation.finish(args, Path(args.run_dir), results, train_set.class_counts)


def train(
    args, model: nn.Module, speed: Speed, train_set: LongTailDataset, loaders: dict, keeper: Keeper, state: dict
) -> dict:
    """Train from where `state` stands, and measure every --eval-freq epochs; returns the results."""
    spec, device, results = resolve.spec_of(args), args.device, state.get("results", {})
    batches = ClassAwareBatches(train_set.labels, spec.repeat, args.batch_size, args.seed)
    loader = train_loader(train_set, batches, args.workers, spec, device)
    ddp = distributed.wrap(model, device)
    optimizer = sgd(model.parameters(), args)
    if "optimizer" in state:
        checkpoint.load_optimizer(optimizer, state, args.resume)

    log = RunLog(Path(args.run_dir), args, ("train", "val", "test"), state["epoch"])
    say(f"{len(train_set)} images, {len(loader)} steps an epoch, seed {args.seed}, {device}: {args.run_dir}")
    done = state["epoch"] * len(loader) + state["step"]
    progress = Progress(args.epochs * len(loader), done, args.batch_size, args.print_freq)
    for epoch in range(state["epoch"], args.epochs):
        rate = learning_rate(args.lr, epoch, args.epochs, args.schedule, cosine=args.cos)
        set_learning_rate(optimizer, rate)
        first = state["step"] if epoch == state["epoch"] else 0  # of an epoch that goes on
        batches.set_epoch(epoch, first)
        means = Means(f"Epoch: [{epoch + 1}/{args.epochs}]", device, state.get("means") if first else None)
        keeper.begin_epoch(epoch, first, optimizer, means, results=results)
        train_one_epoch(loader, ddp, speed, optimizer, means, progress, keeper)
        distributed.broadcast_buffers(model)
        measured = evaluation.measure_if_due(
            args, epoch + 1, loaders, model, speed, train_set.class_counts, keeper.stop_if_asked
        )
        best = (evaluation.BEST,) if evaluation.choose(results, epoch + 1, measured) else ()
        evaluation.log_epoch(log, means, epoch + 1, rate, measured, progress)
        keeper.end_epoch(also=best, best_acc1=evaluation.best_on_test(results))
        report_bad_images(train_set, keeper.run_dir, device)
    progress.close()
    return results


def train_one_epoch(loader, model, speed: Speed, optimizer, means: Means, progress: Progress, keeper: Keeper) -> None:
    """What is left of an epoch of class-balanced batches; adds to its means."""
    model.train()
    for images, labels in progress.epoch(loader, means.where, keeper.step):
        with speed.autocast():
            logits = model(images)  # (N, C)
        loss = cross_entropy(logits, labels)
        speed.step(loss, optimizer)

        rank = rank_of_label(logits.detach(), labels)
        means.add(len(labels), loss=loss, top1=in_top_k(rank, 1), top5=in_top_k(rank, 5))
        progress.step(means)
        keeper.after_step()


if __name__ == "__main__":
    errors.run(main, "the last checkpoint stays; --resume auto continues from it")
