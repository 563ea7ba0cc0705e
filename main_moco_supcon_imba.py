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
    python -m imagenet_inat.splits make cifar10 --imbalance 100
    python main_moco_supcon_imba.py @recipes/cifar10_tsc_100.txt
"""

import utils.startup  # first, because it handles signals during the other imports
from imagenet_inat import data_flags
from moco import methods
from utils import errors
from utils.cli import shared_flags
from utils.cli.parser import Parser, parse
from utils.measure import monitor_flags

MOST_USED = ("dataset", "data_root", "arch", "epochs", "batch_size", "lr", "targeted", "run_dir", "resume", "seed")
PHASES = """TSC has two phases: KCL, then KCL with targets. The schedule restarts in each
phase, and the epochs of --schedule are counted from its start."""


def get_args_parser() -> Parser:
    parser = Parser(MOST_USED, description=__doc__)
    data_flags.add_data_arguments(parser)
    methods.add_method_arguments(parser, shared_flags.add_model_group(parser))
    optimisation = shared_flags.add_optim_arguments(parser, epochs=200, lr=0.03, schedule=[120, 160], weight_decay=1e-4)
    optimisation.description = PHASES
    running = shared_flags.add_running_arguments(parser)
    shared_flags.add_checkpoint_arguments(running)
    monitor_flags.add_monitor_arguments(running)
    shared_flags.add_machine_arguments(parser)
    return parser


utils.startup.answer_help(__name__, get_args_parser)  # before the imports below, which take seconds

import dataclasses
from pathlib import Path

from imagenet_inat import loaders, options
from utils import distributed
from utils.distributed import collectives, launch
from utils.measure.metrics import Means
from utils.measure.monitor import Monitor
from utils.run import checkpoint, dry_run, folder, logger, loop, resume, session


@dataclasses.dataclass(frozen=True)
class Plan(session.StagePlan):
    """The plan of stage 1: settings of the run, data, method, and what is measured during training."""

    data: options.DataConfig
    method: "methods.Method"
    measures: monitor_flags.MonitorFlags
    sampling: str
    keep_last: bool
    save_freq: int
    next_command: str

    def with_outputs(self, folder: Path) -> "Plan":
        return dataclasses.replace(super().with_outputs(folder), method=self.method.with_outputs(folder))


def main(argv: list[str] | None = None) -> None:
    parser = get_args_parser()
    plan = prepare(parser, parse(parser, argv))
    with dry_run.redirect_outputs(plan) as plan:
        launch.launch(main_worker, plan, plan.run.launch, plan.run.arguments.agreed())


def prepare(parser: Parser, args) -> Plan:
    """Resolve the arguments, and check them and the data before the processes start and the run folder is created."""
    flags = data_flags.DataFlags.from_args(args).resolved()
    vars(args).update(vars(flags))
    config = launch.LaunchConfig.from_args(args)
    processes, method = launch.check(config, args.batch_size), methods.build_method(vars(args))
    args.loss_form = method.settings.loss_form
    method.check()
    loop.Schedule.from_args(args).check(method.phases())
    method.check_network(args.batch_size // processes)
    data = options.build_data_config(flags, classifier_view=method.classifier_view)
    method.check_files(data.spec.num_classes)
    name = method.run_name(flags.data_name)
    args.run_dir = args.run_dir or folder.default_run_dir(args.save_folder, name, args.name)
    train_set = data.open("train")
    data, args.workers = data.choose_loading(train_set, data_flags.LoadingFlags.from_args(args), processes)
    measures = monitor_flags.MonitorFlags.from_args(args, trains_classifier=method.trains_classifier)
    if measures.splits:
        measures.check(len(data.open("val")), processes)
    repeat, batch_size = data.spec.repeat, method.global_batch_size
    loaders.check_batch_size(args.sampling, train_set.labels, repeat, batch_size, args.keep_last)
    arguments = parser.describe(args, data.facts | {"train_list": train_set.digest}, options.LEGACY_LOADING)
    folder.check_run_dir(arguments)
    run = session.RunPlan.from_args(args, run_dir=Path(args.run_dir), arguments=arguments)
    next_command = options.command_line("main_lincls_imba.py", pretrained=run.run_dir / checkpoint.LAST)
    return Plan(run, data, method, measures, args.sampling, args.keep_last, args.save_freq, next_command)


def main_worker(plan: Plan, process: launch.ProcessInfo) -> None:
    """Run pre-training in one process of the job."""
    run, data, method, compute = plan.run, plan.data, plan.method, plan.run.compute.on(process.device)
    num_classes = data.spec.num_classes
    state = resume.load_run(run, process, lambda state: method.check_extra_state(state, num_classes))
    resume.check_epochs_left(state, run.epochs, ended=bool(folder.resumable_checkpoints(run.run_dir)))
    batch_size, views = method.global_batch_size, method.num_views
    loader = loaders.build_stage1_loader(data, plan.sampling, batch_size, state.seed, process, plan.keep_last, views)
    state.set_data(loader)
    model = method.build(num_classes, state, process.device).to(process.device)
    session.restore(state, model, compute)
    method.load_extra_state(state)
    counts, balanced = loader.dataset.class_counts, plan.sampling == "class-balanced"
    probe = plan.measures.build_probe(model.encoder_q, counts, balanced, state)
    compute.apply_to(*method.encoders())

    def extra_state() -> dict:
        return method.extra_state() | ({"online_probe": probe.state()} if probe else {})

    per_step = (model.encoder_q, method.views_at_once)
    with session.open_run(run, state, model, loader, compute, extra_state, *per_step) as checkpointer:
        local_batch_size = max(1, run.batch_size // distributed.world_size())
        splits = loaders.build_eval_loaders(data, plan.measures.splits, local_batch_size, process)
        vote, groups = plan.measures.vote, data.spec.superclasses
        freq, classifier = plan.measures.monitor_freq, method.classifier
        monitor = Monitor(freq, run.epochs, counts, splits, run.run_dir, vote, groups, probe, classifier)
        train(plan, compute, loader, checkpointer, monitor)
    files = ["args.json", "log.jsonl", "epochs.csv", "train/ (TensorBoard)", checkpoint.LAST, *plan.measures.files]
    distributed.log(f"wrote {run.run_dir}: {', '.join(files)}")
    hint = "train the linear probe (add --compare-heads to compare all classifiers in one table)"
    distributed.log(f"next: {hint}: {plan.next_command}")


def train(plan: Plan, compute, loader, checkpointer, monitor: Monitor) -> None:
    """Train all phases, starting or resuming at the checkpointer's state."""
    method, model, state, run_dir = plan.method, checkpointer.model, checkpointer.state, checkpointer.run_dir
    ddp, optimizer = collectives.wrap_ddp(model, compute.device), plan.run.optimizer.build(method.parameters())
    epochs = [*loop.epochs(method.phases(), state, len(loader))]
    if state.source and epochs and not epochs[0].fresh:  # before the log is written: the checkpoint may be rejected
        state.load_optimizer(optimizer)
    run_log, progress = logger.open_log(run_dir, state, loader, ("train", "val") if monitor.names else ("train",))
    if not state.source:
        with compute.autocast():
            method.prepare_training(loader, plan.run.epochs)
    for epoch in epochs:
        if epoch.starts_phase:
            method.begin_phase(epoch.phase.name, epoch.fresh)
        if epoch.fresh and epoch is not epochs[0]:  # each phase starts without the momentum of the previous phase
            optimizer = plan.run.optimizer.build(method.parameters())
        method.begin_epoch(epoch.number * len(loader) + epoch.first_step, resumed=epoch.first_step > 0)
        means = Means(epoch.title, compute.device, state.means if epoch.first_step else None)
        loader.start_at(epoch.number, epoch.first_step)
        checkpointer.begin_epoch(epoch, optimizer, means)
        train_one_epoch(plan, ddp, compute, epoch, loader, checkpointer, progress, monitor)
        method.end_epoch()
        done = epoch.number + 1
        checkpointer.save_before_first_measurement(monitor.due(done))
        val = monitor.measure(model.encoder_q, done, checkpointer.stop_if_asked, method.class_targets_and_cosines)
        lr = loop.get_lr(optimizer)  # of the epoch's last step
        # Log before saving: a run killed in between repeats both the epoch and its log line.
        logger.log_epoch(run_log, means, epoch, lr, progress, method.epoch_metrics(), val)
        checkpointer.end_epoch(also=() if done % plan.save_freq else (f"checkpoint_{done:04d}.pth.tar",))
        loader.report_bad_images(run_dir)
    progress.close()
    monitor.finish(model.encoder_q, state.epoch, method.class_targets_and_cosines)


def train_one_epoch(plan: Plan, model, compute, epoch, loader, checkpointer, progress, monitor: Monitor) -> None:
    """Train on the remaining batches of the epoch and add their metrics to the checkpointer's means."""
    state, optimizer, means = checkpointer.state, checkpointer.optimizer, checkpointer.means
    model.train()
    for views, labels in progress.iterate(loader, epoch.title, epoch.first_step):
        plan.run.schedule.set_lr(optimizer, epoch, state.step)
        state.seed_layers()
        try:
            with compute.autocast():
                out = model(*views, labels)  # by default two: (N, 3, S, S) each
        except FloatingPointError as error:
            raise means.divergence_error(str(error)) from None
        compute.step(out.loss, optimizer)
        plan.method.after_step(out)
        probe_metrics = monitor.train_online_probe(labels)
        means.add(len(labels), **plan.method.step_metrics(out), **probe_metrics)
        progress.step(means, len(labels))
        checkpointer.after_step()


if __name__ == "__main__":
    errors.run(main, errors.UNSAVED)
