"""Train a classifier on the encoder of stage 1 and measure its accuracy (stage 2).

Flags of data and network that you omit are taken from the checkpoint. Fit all classifiers
that the checkpoint supports, and compare them in one table:
    python main_lincls_imba.py --pretrained RUN/last.pth.tar --compare-heads

Train the authors' linear classifier:
    python main_lincls_imba.py --pretrained RUN/last.pth.tar --epochs 40 \\
        --schedule 20 30 -b 2048

Measure a trained classifier again, or on another list of images:
    python main_lincls_imba.py --evaluate --resume RUN/model_best.pth.tar --test-txt FILE
"""

import utils.startup  # first, because it handles signals during the other imports
from imagenet_inat import data_flags
from moco.heads import head_flags
from utils import errors
from utils.cli import shared_flags
from utils.cli.parser import Parser

MOST_USED = ("dataset", "data_root", "pretrained", "head", "compare_heads", "run_dir", "resume", "evaluate", "seed")


def get_args_parser() -> Parser:
    parser = Parser(MOST_USED, description=__doc__)
    data_flags.add_data_arguments(parser)
    model = shared_flags.add_model_group(parser)
    head_flags.add_head_arguments(parser.add_argument_group("Head (classifier)"), model)
    shared_flags.add_optim_arguments(parser, epochs=100, lr=10.0, schedule=[60, 80], weight_decay=0.0)
    head_flags.add_evaluation_arguments(shared_flags.add_running_arguments(parser))
    shared_flags.add_machine_arguments(parser)
    head_flags.restrict_training_flags(parser)
    return parser


utils.startup.answer_help(__name__, get_args_parser)  # before the imports below, which take seconds

from dataclasses import dataclass
from pathlib import Path

import torch

from imagenet_inat import loaders, options, stored_flags
from imagenet_inat.split_features import compute_split_features
from moco.heads import inputs, networks, selection
from utils import distributed
from utils.distributed import launch
from utils.run import dry_run, evaluation, folder, loop, resume, session


@dataclass(frozen=True)
class Plan(session.StagePlan):
    """The plan of stage 2: settings of the run, data, classifier, encoder's file, and the splits to evaluate."""

    data: options.DataConfig
    head: head_flags.HeadFlags
    pretrained: Path | None
    evaluated: tuple[str, ...]
    bn_mode: str
    eval_freq: int
    eval_batch_size: int | None

    def network(self, processes: int, counts=None, head: str | None = None, quiet: bool = False) -> torch.nn.Module:
        """Return the frozen encoder with a new classifier `fc`. (With --evaluate, the checkpoint is loaded later.)

        Args:
            processes: Number of processes that share a batch. head: Kind of classifier, instead of --head.
            counts: (C,) training images per class, or None if nothing will be trained.
        """
        size, num_classes, head = self.data.image_size, self.data.spec.num_classes, head or self.head.head
        batch = 2 if self.evaluated or self.head.is_fitted else self.run.batch_size // processes  # 2: nothing trains
        return networks.build_classifier(self.run.arch, size, num_classes, batch, self.pretrained, head, counts, quiet)


def main(argv: list[str] | None = None) -> None:
    parser = get_args_parser()
    plan = prepare(parser, *stored_flags.parse(parser, argv))
    worker = evaluate if plan.evaluated else fit_heads if plan.head.is_fitted else train_probe
    with dry_run.redirect_outputs(plan) as plan:
        launch.launch(worker, plan, plan.run.launch, plan.run.arguments.agreed())


def prepare(parser: Parser, args, stored: stored_flags.StoredArgs) -> Plan:
    """Resolve the arguments, and check them and the data before the processes start and the run folder is created."""
    flags, config = data_flags.DataFlags.from_args(args).resolved(), launch.LaunchConfig.from_args(args)
    processes = launch.check(config, 0 if args.evaluate else args.batch_size)
    head = head_flags.HeadFlags.from_args(args).resolved(1 if args.evaluate else processes)
    vars(args).update(vars(flags) | vars(head))
    name = head.run_name(flags.data_name, args.seed, args.lr, args.weight_decay, args.batch_size)
    args.run_dir = args.run_dir or folder.default_run_dir(Path(args.pretrained or "").parent, name, args.name)
    data = options.build_data_config(flags, stored.num_classes if args.evaluate else None)
    evaluated = stored.evaluated_splits(data.val_is_test) if args.evaluate else ()
    trains = not (args.evaluate or head.is_fitted)  # otherwise a training list may have any length
    images, loading = data.open((*evaluated, "train")[0]), data_flags.LoadingFlags.from_args(args)
    data, args.workers = data.choose_loading(images, loading, processes, trains)
    if trains:
        loop.Schedule.from_args(args).check([loop.Phase(None, 0, args.epochs)])
    digests = loaders.check_lists_and_hash(data, args.sampling, args.batch_size if trains else 1, evaluated)
    stored.report_other_lists(args.dataset, digests, data.lists.files)
    arguments = parser.describe(args, data.facts | digests, options.LEGACY_LOADING)
    if not args.evaluate:
        folder.check_run_dir(arguments, head.is_fitted)
    run = session.RunPlan.from_args(args, run_dir=Path(args.run_dir), arguments=arguments)
    pretrained = args.pretrained and Path(args.pretrained)
    plan = Plan(run, data, head, pretrained, evaluated, args.bn_mode, args.eval_freq, args.eval_batch_size)
    if not head.is_fitted:
        plan.network(processes, quiet=True)  # fails before the launch if the encoder's file does not fit
    return plan


def train_probe(plan: Plan, process: launch.ProcessInfo) -> None:
    """Train a classifier on random views. The encoder is frozen, unless --finetune trains it too."""
    run, data, compute = plan.run, plan.data, plan.run.compute.on(process.device)
    state = resume.load_run(run, process)
    torch.manual_seed(state.seed)
    loader = loaders.build_stage2_loader(data, plan.head.sampling, run.batch_size, state.seed, process)
    model = plan.network(distributed.world_size(), loader.dataset.class_counts)
    if plan.head.finetune:
        networks.unfreeze(model)
    # A checkpoint to resume must contain the encoder of --pretrained, except for batch-norm statistics, which change.
    pretrained_weights = {} if plan.head.finetune or not state.source else networks.frozen_weights(model, "train")
    session.restore(state, model, compute)
    networks.check_unchanged(model, pretrained_weights, f"checkpoint {state.source}: differs from {plan.pretrained} in")
    resume.check_epochs_left(state, run.epochs, ended=evaluation.is_evaluated(state))
    state.set_data(loader)
    splits = loaders.build_val_and_test_loaders(data, run.batch_size, plan.eval_batch_size, process)
    compute.apply_to(model.to(process.device))
    with session.open_run(run, state, model, loader, compute) as checkpointer:
        results = train(plan, checkpointer, loader, splits, compute)
        evaluation.finish(run.run_dir, state, results, data.selection_split)


def train(plan: Plan, checkpointer, loader, splits: dict, compute) -> dict:
    """Train the classifier, starting or resuming at the checkpointer's state, and return the results."""
    model, head, finetune = checkpointer.model, head_flags.HEADS[plan.head.head], plan.head.finetune
    criterion = head.criterion(loader.dataset.class_counts, plan.run.epochs, plan.head.logit_adjustment, compute.device)
    # Only the trained parameters, so that weight decay and momentum cannot change a frozen encoder.
    optimizer = plan.run.optimizer.build(p for p in model.parameters() if p.requires_grad)
    frozen = {} if finetune else networks.frozen_weights(model, plan.bn_mode)

    def step(model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with compute.autocast():
            logits = model(images)  # (N, C); a frozen encoder stores nothing for the backward pass
        loss = criterion(logits, labels, checkpointer.state.epoch)
        if finetune:
            compute.step(loss, optimizer)
        else:
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # fc alone, in float32, so float16 needs no loss scaling here
            optimizer.step()
        return logits, loss

    def check_frozen() -> None:
        assert not (names := networks.changed_weights(model, frozen)), f"the frozen weights {names[:3]} have changed"

    training = finetune or plan.bn_mode == "train"
    return evaluation.train_classifier(
        plan.run, plan.eval_freq, checkpointer, loader, splits, compute, optimizer, step, training, check_frozen
    )


def fit_heads(plan: Plan, process: launch.ProcessInfo) -> None:
    """Fit a classifier to the encoder's features, or with --compare-heads all that the checkpoint supports."""
    data, compute = plan.data, plan.run.compute.on(process.device)
    network = networks.without_classifier(plan.network(1)).to(process.device)
    run = plan.run.with_arguments(encoder=inputs.encoder_digest(network))
    folder.check_run_dir(run.arguments, fitted=True)
    state, images = resume.load_run(run, process), data.open("train")
    parts, lacks = inputs.read_checkpoint_parts(plan.pretrained, data.spec.num_classes, plan.head.head)
    views, seed = plan.head.feature_views, state.seed
    with compute.precision_context():
        features = compute_split_features(data, network, plan.pretrained, run.run_dir, views, seed, process, compute)
    described = loaders.describe_data(images, data.normalise(process.device))
    others = {"selection_split": data.selection_split, "parts": parts, "lacks": lacks, "described": described}
    head_data = inputs.build_head_data(features, images.class_counts, compute, **others)
    with folder.lock_run_dir(run.run_dir), compute.precision_context():
        if plan.head.compare_heads:
            from moco.heads import comparison  # imports Matplotlib, which takes a second

            comparison.run(run.run_dir, state.args, head_data)
        else:
            selection.fit_and_save(run.run_dir, state.args, network, head_data)


def evaluate(plan: Plan, process: launch.ProcessInfo) -> None:
    """Print the accuracies of the --resume checkpoint. Write no files."""
    source, compute = Path(plan.run.resume), plan.run.compute.on(process.device)
    state = evaluation.read_stage2_checkpoint(source)
    head = next(name for name in (state.args.get("head"), plan.head.head) if name in list(head_flags.HEADS))
    model = networks.load_trained(plan.network(distributed.world_size(), head=head), head, state.weights, source)
    compute.apply_to(model.to(process.device))
    splits = loaders.build_eval_loaders(plan.data, plan.evaluated, plan.eval_batch_size or loaders.EVAL_BATCH, process)
    with compute.precision_context():
        counts = state.train_counts or plan.data.open("train").class_counts
        evaluation.print_accuracies(splits, model, compute, counts, source, state.epoch)


if __name__ == "__main__":
    errors.run(main, errors.UNSAVED)
