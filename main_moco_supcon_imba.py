"""Pre-train an encoder on long-tailed images with KCL or TSC (stage 1).

Try KCL on a laptop: five minutes, no download (see also `make demo`):
    python main_moco_supcon_imba.py --dataset digits --mlp --cos --epochs 20 \\
        -b 64 --lr 0.03 --moco-k 1024 --moco-m 0.99

Train KCL, or TSC, on ImageNet-LT with one process per GPU of this machine:
    torchrun --nproc-per-node 4 main_moco_supcon_imba.py --data-root IMAGENET \\
        --mlp --cos --lr 0.1 --epochs 200
    torchrun --nproc-per-node 4 main_moco_supcon_imba.py --data-root IMAGENET \\
        --mlp --cos --lr 0.1 --epochs 400 --targeted --sep_t --tw 0.2

Use a recipe, which is a file of flags (here the paper's TSC on CIFAR-10-LT):
    python main_moco_supcon_imba.py @recipes/cifar10_tsc_100.txt
"""

import utils.startup  # noqa: F401, imported before the modules that take seconds to load

# isort: split

from pathlib import Path

import torch

from imagenet_inat import data_flags, options
from imagenet_inat.loaders import DeviceBatches, build_eval_loaders, build_stage1_loader
from imagenet_inat.samplers import check_batch_size
from moco import methods
from moco.encoders import get_encoder
from moco.methods import METHOD_LEGACY_DEFAULTS, Method
from utils import distributed, errors
from utils.distributed import log
from utils.measure import feature_file
from utils.measure.dry_run import DryRun
from utils.measure.metrics import Means
from utils.measure.monitor import Monitor, Vote, add_monitor_arguments, format_measures
from utils.measure.online_probe import OnlineProbe
from utils.optimizers import build_optimizer
from utils.parser import Parser, parse, positive_int
from utils.run import arguments, checkpoint, launch
from utils.run.checkpointer import Checkpointer
from utils.run.compute import ComputeConfig
from utils.run.folder import check_resume, lock_run_dir, resumable_checkpoints
from utils.run.logger import Progress, RunLog, format_means, open_log
from utils.run.loop import Epoch, Schedule, epochs, get_lr
from utils.run.resume import check_epochs_left, load_run
from utils.run.signals import StopSignals

MOST_USED = ("dataset", "data_root", "arch", "epochs", "batch_size", "lr", "targeted", "run_dir", "resume", "seed")


def get_args_parser() -> Parser:
    parser = Parser(MOST_USED, description=__doc__)
    data_flags.add_data_arguments(parser)
    methods.add_method_arguments(parser, arguments.add_model_group(parser))
    optimisation = arguments.add_optim_arguments(parser, epochs=200, lr=0.03, schedule=[120, 160], weight_decay=1e-4)
    optimisation.description = "TSC has two phases, KCL and KCL with targets. Each restarts the schedule."
    running = arguments.add_running_arguments(parser)
    running.add_argument("--save-folder", default="runs", metavar="DIR", help="Parent of the run folder.")
    running.add_argument(
        "-s", "--save_freq", type=positive_int, default=20, metavar="E", help="Epochs between kept checkpoints."
    )
    add_monitor_arguments(running)
    arguments.add_speed_arguments(parser)
    launch.add_distributed_arguments(parser)
    return parser


def main(argv: list[str] | None = None) -> None:
    args = parse(get_args_parser(), argv, methods.ignored_flags, methods.unsupported_flags)
    check_and_complete_args(args)
    launch.launch(main_worker, arguments.FrozenArgs(args))


def check_and_complete_args(args) -> None:
    """Check the arguments and the data, and set the arguments that depend on the data, before anything is created."""
    options.resolve_defaults(args)
    processes, method = launch.check(args), methods.build_method(args)
    method.check()
    Schedule.from_args(args).check(method.phases())
    get_encoder(args.arch, args.image_size, args.batch_size // processes)
    data = options.build_data_config(args)
    args.num_classes = data.spec.num_classes
    method.check_files(args.num_classes)
    args.run_dir = args.run_dir or str(Path(args.save_folder) / run_name(args))
    check_resume(args.resume, Path(args.run_dir))
    train_set = data.open("train")
    options.choose_loading(args, train_set, processes)
    args.train_list = train_set.digest  # a resumed run must use the list that it started with
    needs_val_split = args.monitor_freq or args.online_probe != "off"
    if needs_val_split and (images := len(data.open("val"))) < processes:
        raise errors.InputError(
            f"--monitor-freq: {images} validation images for {processes} processes, expected at least one per process; "
            "start fewer processes, or omit --monitor-freq and --online-probe"
        )
    check_batch_size(args.sampling, train_set.labels, data.spec.repeat, method.global_batch_size, args.keep_last)


def run_name(args) -> str:
    """Return the run's name, in the format of the authors' code (released with TSC).

    With in-batch contrast, the value of --contrast takes the place of the queue length.
    """
    queue = args.moco_k if args.contrast == "queue" else args.contrast
    return (
        f"{options.data_name(args)}LT_{args.arch}_lr_{args.lr}_bsz_{args.batch_size}_wd_{args.weight_decay}"
        f"_mlp_{args.mlp}_t_{args.moco_t}_{queue}_seed_{args.seed}_k_{args.K}_dim_{args.moco_dim}_tgted_{args.targeted}"
        f"_tr_{args.tr}_tw_{args.tw}_ep_{args.epochs}_{args.name}"
    )


def main_worker(args, process: launch.ProcessInfo) -> None:
    """Run pre-training in one process of the job."""
    run_dir, compute = Path(args.run_dir), ComputeConfig.from_args(args, process.device)
    method, data = methods.build_method(args), options.build_data_config(args)
    state = load_run(args, process, method.check_extra_state, METHOD_LEGACY_DEFAULTS | options.legacy_defaults(args))
    check_epochs_left(state, args.epochs, ended=bool(resumable_checkpoints(run_dir)))
    loader = build_stage1_loader(data, args.sampling, method.global_batch_size, state.seed, process, args.keep_last)
    state.check_step(len(loader))

    model = method.build(data.spec.num_classes, state, process.device).to(process.device)
    if state.source:
        state.load_weights(model)
        method.load_extra_state(state)
        compute.load_scaler_state(state.scaler, state.source)
        log(f"resumed {state.source} after {state}")
    online_probe, counts = None, loader.dataset.class_counts
    if args.online_probe != "off":
        adjusted = args.online_probe == "adjusted"
        # The probe adjusts for the class balance of its batches, so balanced batches need uniform counts.
        probe_class_counts = torch.from_numpy(counts) if args.sampling == "instance" else torch.ones(len(counts))
        online_probe = OnlineProbe(model.encoder_q, probe_class_counts, adjusted).to(process.device)
        online_probe.restore(state.extra.get("online_probe"), state.source)
    compute.apply_to(*method.encoders())

    def collect_state(state) -> None:
        state.extra, state.scaler = method.extra_state(), compute.scaler_state()
        state.extra |= {"online_probe": online_probe.state()} if online_probe else {}

    with StopSignals() as stop, lock_run_dir(run_dir, state.source, state.broken), compute.precision_context():
        local_batch_size = max(1, args.batch_size // distributed.world_size())
        splits = ("train", "val") if args.monitor_freq else ("val",) if online_probe else ()
        loaders = build_eval_loaders(data, splits, local_batch_size, process)
        vote = Vote(args.knn_k, args.knn_vote == "class-balanced")
        monitor = Monitor(args.monitor_freq, counts, loaders, run_dir, vote, data.spec.superclasses, online_probe)
        dry_run = DryRun.from_args(args, loader)
        checkpointer = Checkpointer(run_dir, state, model, stop, args.save_steps, collect_state, dry_run)
        train(args, method, compute, loader, checkpointer, monitor)
        finish(args, run_dir)


def train(
    args, method: Method, compute: ComputeConfig, loader: DeviceBatches, checkpointer: Checkpointer, monitor: Monitor
) -> None:
    """Train all phases, starting or resuming at the checkpointer's state."""
    model, state, device, schedule = method.model, checkpointer.state, compute.device, Schedule.from_args(args)
    ddp, optimizer = distributed.wrap_ddp(model, device), build_optimizer(args, method.parameters())
    first = next(epochs(method.phases(), state, len(loader)), None)
    if state.source and first and not first.fresh:  # load before any file is written: the checkpoint may be rejected
        state.load_optimizer(optimizer)
    run_log, progress = open_log(checkpointer.run_dir, state, loader, ("train", "val") if monitor.names else ("train",))
    for epoch in epochs(method.phases(), state, len(loader)):
        if epoch.starts_phase:
            method.begin_phase(epoch.phase.name, epoch.fresh)
        if epoch.fresh:  # each phase starts without the momentum of the previous phase
            optimizer = build_optimizer(args, method.parameters())
        method.begin_epoch(epoch.number * len(loader) + epoch.first_step, resumed=epoch.first_step > 0)
        means = Means(epoch.title, device, state.means if epoch.first_step else None)
        loader.start_at(epoch.number, epoch.first_step)
        checkpointer.begin_epoch(epoch, optimizer, means)
        train_one_epoch(loader, ddp, method, compute, epoch, schedule, progress, checkpointer, monitor)
        checkpointer.save_before_first_measurement(monitor.due(epoch.number + 1))
        val = monitor.measure(
            model.encoder_q, epoch.number + 1, checkpointer.stop_if_asked, method.class_targets_and_cosines
        )
        lr = get_lr(optimizer)  # of the epoch's last step
        # Log before saving: a run killed in between repeats both the epoch and its log line.
        log_epoch(run_log, means, epoch, lr, progress, method.epoch_metrics(), val)
        checkpointer.end_epoch(also=kept_checkpoint_names(epoch.number + 1, args.save_freq))
        loader.report_bad_images(checkpointer.run_dir)
    progress.close()
    monitor.finish(model.encoder_q, state.epoch, method.class_targets_and_cosines)


def train_one_epoch(
    loader,
    model,
    method: Method,
    compute: ComputeConfig,
    epoch: Epoch,
    schedule: Schedule,
    progress: Progress,
    checkpointer: Checkpointer,
    monitor: Monitor,
) -> None:
    """Train on the remaining batches of the epoch and add their metrics to the checkpointer's means."""
    optimizer, means = checkpointer.optimizer, checkpointer.means
    model.train()
    for (im_q, im_k), labels in progress.iterate(loader, epoch.title, epoch.first_step):
        epoch.set_lr(optimizer, schedule, checkpointer.state.step)
        checkpointer.before_step()
        try:
            with compute.autocast():
                out = model(im_q, im_k, labels)
        except FloatingPointError as error:
            raise means.divergence_error(str(error)) from None
        compute.step(out.loss, optimizer)

        means.add(len(labels), **method.step_metrics(out), **monitor.train_online_probe(labels))
        progress.step(means, len(labels))
        checkpointer.after_step()


def kept_checkpoint_names(epochs_done: int, save_freq: int) -> tuple[str, ...]:
    """Return the names of the epoch's kept checkpoints: one name every `save_freq` epochs, otherwise none."""
    return () if epochs_done % save_freq else (f"checkpoint_{epochs_done:04d}.pth.tar",)


def log_epoch(
    run_log: RunLog, means: Means, epoch: Epoch, lr: float, progress: Progress, metrics: tuple[dict, str], val: dict
) -> None:
    """Log a finished epoch to TensorBoard, log.jsonl and the console.

    metrics: from `Method.epoch_metrics`. val: from `Monitor.measure`; empty if nothing is measured.
    """
    values, timing, done = means.read(over_ranks=True), progress.timing(), epoch.number + 1
    method_values, console_text = metrics
    run_log.scalars("train", values | method_values | {"lr": lr} | timing, done)
    run_log.scalars("val", val, done)
    split_values = {"val": val} if val else {}
    run_log.record(epoch=done, phase=epoch.phase.name, lr=lr, **values, **method_values, **timing, **split_values)
    log(
        f"{epoch.title}  {format_means(values)}{console_text}  lr {lr:.4g}  "
        f"{progress.speed():.0f} img/s  data {timing['data_share']:.0f} %  ETA {progress.eta()}"
    )
    if any(value is not None for value in val.values()):
        log(f"{epoch.title}  {format_measures(val)}")


def finish(args, run_dir: Path) -> None:
    features = f", {feature_file.NAME}" if args.monitor_freq else ""
    log(f"wrote {run_dir}: args.json, log.jsonl, epochs.csv, train/ (TensorBoard), {checkpoint.LAST}{features}")
    probe = options.command_line("main_lincls_imba.py", args, pretrained=run_dir / checkpoint.LAST)
    log(f"next: train the linear probe (add --compare-heads to compare all classifiers in one table): {probe}")


if __name__ == "__main__":
    errors.run(main, "the last checkpoint stays; --resume auto continues from it")
