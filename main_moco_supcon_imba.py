"""Stage 1: contrastive pre-training with KCL or TSC on long-tailed data.

Five minutes on a laptop, no download (see also `make demo`):
    python main_moco_supcon_imba.py --dataset digits --mlp --cos --epochs 20 -b 64 --lr 0.03 --moco-k 1024 --moco-m 0.99

KCL and TSC on ImageNet-LT, one process per GPU of this machine:
    torchrun --nproc-per-node 4 main_moco_supcon_imba.py --data-root IMAGENET --mlp --cos --lr 0.1 --epochs 200
    torchrun --nproc-per-node 4 main_moco_supcon_imba.py --data-root IMAGENET --mlp --cos --lr 0.1 --epochs 400 \\
        --targeted --sep_t --tw 0.2
"""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from imagenet_inat.bad_images import report_bad_images
from imagenet_inat.datasets import DatasetSpec
from imagenet_inat.loaders import DeviceBatches, train_loader
from imagenet_inat.samplers import ShuffledBatches
from moco.builder import KCL
from moco.encoders import get_encoder
from moco.loader import TwoCropsTransform, train_transform
from moco.targets import check_targets, load_targets, target_file_name
from target_generation import TEMPERATURE, brief, generate_file
from utils import arguments, checkpoint, distributed, errors, method_arguments, resolve
from utils.keeper import Keeper
from utils.logger import Progress, RunLog, describe, say
from utils.metrics import Means, in_top_k
from utils.monitor import Monitor, assignment_of, describe_facts, describe_measures, target_facts
from utils.resume import candidates, check_queue, check_resume, check_step, hold, load_run, queue_grid
from utils.schedules import learning_rate, set_learning_rate
from utils.signals import StopSignals
from utils.speed import Speed, arithmetic, sgd


def get_args_parser() -> arguments.Parser:
    parser = arguments.Parser(description=__doc__)
    arguments.add_data_arguments(parser)
    method_arguments.add_model_arguments(arguments.add_model_group(parser))
    method_arguments.add_loss_arguments(parser)
    optim = arguments.add_optim_arguments(parser, epochs=200, lr=0.03, schedule=[120, 160], weight_decay=1e-4)
    optim.add_argument("--cos", action="store_true", help="cosine schedule over each phase, instead of --schedule")
    running = arguments.add_running_arguments(parser)
    running.add_argument("--save-folder", default="runs", metavar="DIR", help="where run folders go without --run-dir")
    running.add_argument(
        "-s",
        "--save_freq",
        type=arguments.positive_int,
        default=20,
        help="epochs between checkpoints that are kept",
    )
    running.add_argument(
        "--monitor-freq",
        type=arguments.natural,
        default=0,
        metavar="E",
        help="measure the features every E epochs: kNN accuracy on the validation split, alignment, uniformity; "
        "costs one pass over both splits without augmentation and changes nothing in training; 0: never",
    )
    arguments.add_speed_arguments(parser)
    arguments.add_distributed_arguments(parser)
    return parser


def main(argv: list[str] | None = None) -> None:
    args = arguments.parse(get_args_parser(), argv)
    prepare(args)
    distributed.launch(main_worker, args)


def prepare(args) -> None:
    """Check everything that can be checked before a process group, a model or a file is made."""
    spec = resolve.resolve(args)
    if args.moco_k % args.batch_size:
        raise errors.InputError(
            f"--moco-k {args.moco_k}: not a multiple of the global batch, --batch-size {args.batch_size}"
        )
    if args.loss == "MoCo" and args.targeted:
        raise errors.InputError("--loss MoCo uses no labels, --targeted needs them: leave one of the two out")
    get_encoder(args.arch, args.image_size, args.batch_size // distributed.world_size_from(args))
    if args.targeted and (args.targets or (not args.resume and target_file(args).exists())):  # a checkpoint has its own
        load_targets(target_file(args), spec.num_classes, args.moco_dim)
    args.run_dir = args.run_dir or str(Path(args.save_folder) / run_name(args))
    check_resume(args.resume, Path(args.run_dir))
    train_set = resolve.open_split(args, "train", None)
    args.train_list = train_set.digest  # a run goes on with the list it began with
    if args.monitor_freq:
        images, processes = len(resolve.open_split(args, "val", None)), distributed.world_size_from(args)
        if images < processes:
            raise errors.InputError(
                f"--monitor-freq: {images} validation images for {processes} processes, expected one each or more; "
                "start fewer, or leave it out"
            )
    ShuffledBatches(len(train_set), spec.repeat, args.batch_size, seed=0)


def run_name(args) -> str:
    """The release's name of a run."""
    return (
        f"{resolve.data_name(args)}LT_{args.arch}_lr_{args.lr}_bsz_{args.batch_size}_wd_{args.weight_decay}"
        f"_mlp_{args.mlp}_t_{args.moco_t}_{args.moco_k}_seed_{args.seed}_k_{args.K}_dim_{args.moco_dim}_tgted_{args.targeted}"
        f"_tr_{args.tr}_tw_{args.tw}_ep_{args.epochs}_{args.name}"
    )


def target_file(args) -> Path:
    """The file of --targets, or the one of the default name in this folder."""
    return Path(args.targets or target_file_name(args.num_classes, args.moco_dim))


class Phase(NamedTuple):
    """A stretch of epochs with its own optimiser and schedule."""

    name: str
    start: int
    epochs: int


def get_phases(epochs: int, targeted: bool) -> list[Phase]:
    """KCL alone, or KCL for the first half (rounded down) and TSC for the rest."""
    if not targeted:
        return [Phase("KCL", 0, epochs)]
    warm_up = epochs // 2
    return [Phase("KCL", 0, warm_up), Phase("TSC", warm_up, epochs - warm_up)]


def main_worker(args) -> None:
    """The run, in one of its processes."""
    device, run_dir, speed = args.device, Path(args.run_dir), Speed(args)
    resume, state = load_run(args)
    if state["epoch"] >= args.epochs and not candidates(run_dir):
        raise errors.InputError(f"--epochs {args.epochs}: {state['epoch']} are done, none is left to train")
    resolve.resolve_seed(args, state)
    spec = resolve.spec_of(args)

    view = train_transform(spec, args.image_size, args.device_aug)
    train_set = resolve.open_split(args, "train", TwoCropsTransform(view))
    batches = ShuffledBatches(len(train_set), spec.repeat, args.batch_size, args.seed)
    loader = train_loader(train_set, batches, args.workers, spec, device)
    check_step(state, len(loader))

    weights = checkpoint.unpacked(state) if resume else {}
    targets = choose_targets(args, weights, state, resume) if args.targeted else None
    model = build_model(args, spec, targets).to(device)
    grid = queue_grid(state, args.batch_size)
    if resume:
        checkpoint.load_into(model, weights, resume)
        check_queue(model, grid, resume)
        assignment = state.get("assignment")  # what a stale one was, with --assignment-interval
        model.assignment = None if assignment is None else assignment.to(device)
        speed.load(state, resume)
        say(f"resumed {resume} after epoch {state['epoch']} and {state['step']} steps")
    speed.apply_to(model.encoder_q, model.encoder_k)
    with StopSignals() as stop, hold(run_dir, state), arithmetic(args):
        live = {"queue_grid": grid}
        keeper = Keeper(args, model, stop, lambda: live | {"assignment": model.assignment} | speed.state())
        train(args, model, speed, loader, batches, keeper, state)
        finish(args, run_dir)


def train(
    args, model: KCL, speed: Speed, loader: DeviceBatches, batches: ShuffledBatches, keeper: Keeper, state: dict
) -> None:
    """All phases, from where `state` stands."""
    device, steps = args.device, len(loader)
    done = state["epoch"] * steps + state["step"]
    ddp = distributed.wrap(model, device)
    monitor = Monitor(args, loader.dataset.class_counts)
    log = RunLog(Path(args.run_dir), args, ("train", "val") if args.monitor_freq else ("train",), state["epoch"])
    say(f"{len(loader.dataset)} images, {steps} steps an epoch, seed {args.seed}, {device}: {args.run_dir}")
    progress = Progress(args.epochs * steps, done, args.batch_size, args.print_freq)
    for phase in get_phases(args.epochs, args.targeted):
        model.targeted = phase.name == "TSC"
        starts = done <= phase.start * steps
        if model.targeted and starts and args.centroid_init == "queue":
            model.centroids_from_queue()
        # A phase starts with a fresh optimiser: the momentum of the last one is not carried over.
        optimizer = sgd(model.parameters(), args)
        if "optimizer" in state and not starts and done <= (phase.start + phase.epochs) * steps:
            checkpoint.load_optimizer(optimizer, state, args.resume)
        for epoch in range(max(phase.start, state["epoch"]), phase.start + phase.epochs):
            first = state["step"] if epoch == state["epoch"] else 0  # of an epoch that goes on
            rate = learning_rate(args.lr, epoch - phase.start, phase.epochs, args.schedule, args.cos)
            set_learning_rate(optimizer, rate)
            batches.set_epoch(epoch, first)
            model.step = epoch * steps + first
            title = f"Epoch: [{epoch + 1}/{args.epochs}] {phase.name}"
            means = Means(title, device, state.get("means") if first else None)
            before = state.get("assignment_before") if first else assignment_of(model)  # the targets of an epoch ago
            keeper.begin_epoch(epoch, first, optimizer, means, phase=phase.name, assignment_before=before)
            train_one_epoch(loader, ddp, speed, optimizer, means, progress, keeper)
            measured = monitor.measure(model, epoch + 1, keeper.stop_if_asked)
            # Logged before it is saved: a run killed in between does the epoch, and its line, again.
            log_epoch(log, means, epoch + 1, phase, rate, progress, target_facts(model, before), measured)
            keeper.end_epoch(also=kept_name(epoch + 1, args.save_freq))
            report_bad_images(loader.dataset, keeper.run_dir, device)
    progress.close()


def choose_targets(args, weights: dict[str, Tensor], state: dict, resume: Path | None) -> Tensor:
    """The targets of a TSC run, (C, D) float32, in a line that says which: the checkpoint's, else a file's.

    With --override a file that --targets names takes the place of the checkpoint's; those are then taken out of
    `weights`, and what was assigned of them out of `state`, to be solved anew.

    Raises:
        InputError: without --override, the named file's targets are others than the checkpoint's; or they do not fit.
    """
    held = held_targets(args, weights, resume)
    targets, source = held, f"those of {resume}"
    if args.targets or held is None:
        targets, source = file_targets(args), str(target_file(args))
    if held is not None and not torch.equal(targets, held):
        if not args.override:
            raise errors.InputError(
                f"--targets {args.targets}: other targets than those of {resume}; leave --targets out to go on with "
                "the checkpoint's, or give --override to go on with the file's"
            )
        weights.pop("optimal_target")
        state |= {"assignment": None, "assignment_before": None}
        source += f", in place of those of {resume}"
    if distributed.is_main():  # a second of the host's, with 8142 classes
        say(f"targets: {source}; {brief(targets, TEMPERATURE)}")
    return targets


def held_targets(args, weights: dict[str, Tensor], resume: Path | None) -> Tensor | None:
    """The targets in a checkpoint, (C, D) float32, one copy of each; None: it has none."""
    copies = weights.get("optimal_target")
    if copies is None:
        return None
    expected = (args.num_classes * args.tr, args.moco_dim)
    if tuple(copies.shape) != expected:
        raise errors.InputError(
            f"checkpoint {resume}: does not fit the model: its targets have shape {tuple(copies.shape)}, expected "
            f"{expected}; check --dataset, --moco-dim and --tr"
        )
    held = copies[:: args.tr].float()
    check_targets(held, args.num_classes, args.moco_dim, source=f"checkpoint {resume}: its targets")
    return held


def file_targets(args) -> Tensor:
    """The targets of `target_file`, (C, D) float32; the file is made if it is not there."""
    file = target_file(args)
    with distributed.main_process_first():
        if not file.exists():
            say(f"{file}: not there yet, making it")
            generate_file(file, args.num_classes, args.moco_dim, device=args.device)
    # Rank 0's for all: machines that do not share a folder may have made different ones.
    return distributed.same_on_all_ranks(load_targets(file, args.num_classes, args.moco_dim))


def build_model(args, spec: DatasetSpec, targets: Tensor | None) -> KCL:
    """The model of these arguments; all ranks start from the same weights, queue and centroids."""
    torch.manual_seed(args.seed)
    model = KCL(
        get_encoder(args.arch, args.image_size),
        args.moco_dim,
        args.moco_k,
        args.moco_m,
        args.moco_t,
        args.mlp,
        args.K,
        args.targeted,
        args.tr,
        args.sep_t,
        args.tw,
        num_classes=spec.num_classes,
        targets=targets,
        supervised=args.loss == "SupCon",
        loss_form=args.loss_form,
        assignment_interval=args.assignment_interval,
    )
    model.seed = args.seed
    return model


def train_one_epoch(loader, model, speed: Speed, optimizer, means: Means, progress: Progress, keeper: Keeper) -> None:
    """One pass over what is left of the epoch; adds to its means."""
    model.train()
    for (im_q, im_k), labels in progress.epoch(loader, means.where, keeper.step):
        try:
            with speed.autocast():
                out = model(im_q, im_k, labels)
        except FloatingPointError as error:
            raise means.diverged(str(error)) from None
        speed.step(out.loss, optimizer)

        means.add(
            len(labels),
            loss=out.loss,
            loss_class=out.loss_class,
            loss_target=out.loss_target,
            top1=in_top_k(out.key_rank, 1),
            top5=in_top_k(out.key_rank, 5),
        )
        progress.step(means)
        keeper.after_step()


def kept_name(epochs_done: int, save_freq: int) -> tuple[str, ...]:
    """The name of the checkpoint that stays, every --save_freq epochs."""
    return () if epochs_done % save_freq else (f"checkpoint_{epochs_done:04d}.pth.tar",)


def log_epoch(
    log: RunLog, epoch_means: Means, epoch: int, phase: Phase, rate: float, progress: Progress, facts: dict, val: dict
) -> None:
    """facts: `target_facts` of the epoch. val: `Monitor.measure`, empty without one."""
    means, rates = epoch_means.read(over_ranks=True), progress.rates()
    log.scalars("train", means | facts | {"lr": rate} | rates, epoch)
    log.scalars("val", val, epoch)
    log.record(epoch=epoch, phase=phase.name, lr=rate, **means, **facts, **rates, **({"val": val} if val else {}))
    say(
        f"{epoch_means.where}  {describe(means)}{describe_facts(facts)}  lr {rate:.4g}  "
        f"{progress.speed():.0f} img/s  data {rates['data_share']:.0f} %  ETA {progress.eta()}"
    )
    if any(value is not None for value in val.values()):
        say(f"{epoch_means.where}  {describe_measures(val)}")


def finish(args, run_dir: Path) -> None:
    say(f"wrote {run_dir}: args.json, log.jsonl, epochs.csv, train/ (TensorBoard), {checkpoint.LAST}")
    probe = resolve.command_line("main_lincls_imba.py", args, pretrained=run_dir / checkpoint.LAST)
    say(f"next, the linear probe: {probe}")


if __name__ == "__main__":
    errors.run(main, "the last checkpoint stays; --resume auto continues from it")
