"""Train a classifier on the encoder of stage 1 and measure its accuracy (stage 2).

Fit all classifiers that the checkpoint supports, and compare them in one table:
    python main_lincls_imba.py --dataset digits --pretrained RUN/last.pth.tar \\
        --compare-heads

Train the authors' linear classifier on ImageNet-LT:
    python main_lincls_imba.py --data-root IMAGENET \\
        --pretrained RUN/last.pth.tar --epochs 40 --schedule 20 30 -b 2048
"""

import utils.startup  # noqa: F401, imported before the modules that take seconds to load

# isort: split

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from imagenet_inat import data_flags, options
from imagenet_inat.loaders import build_stage2_loader, build_val_and_test_loaders, check_lists_and_hash
from imagenet_inat.options import DataConfig
from imagenet_inat.split_features import compute_split_features
from moco import heads
from moco.heads import head_flags
from moco.heads.classifiers import fitted_classifier
from moco.heads.inputs import build_fit_inputs, read_checkpoint_heads
from moco.heads.selection import FeatureLoader, HeadData, select_head
from utils import distributed, errors
from utils.distributed import log
from utils.measure.dry_run import DryRun
from utils.measure.results import format_settings, show_accuracies
from utils.optimizers import build_optimizer
from utils.parser import Parser, parse
from utils.run import arguments, checkpoint, evaluation, launch
from utils.run.checkpointer import Checkpointer
from utils.run.compute import ComputeConfig
from utils.run.folder import check_fitted_run_dir, check_resume, lock_run_dir
from utils.run.logger import RunLog
from utils.run.loop import Phase, Schedule
from utils.run.resume import check_epochs_left, load_run
from utils.run.signals import StopSignals
from utils.run.state import RunState

MOST_USED = ("dataset", "data_root", "pretrained", "head", "compare_heads", "epochs", "batch_size", "lr")
MOST_USED += ("run_dir", "resume", "evaluate", "seed")


def get_args_parser() -> Parser:
    parser = Parser(MOST_USED, description=__doc__)
    data_flags.add_data_arguments(parser)
    model = arguments.add_model_group(parser)
    model.add_argument(
        "--pretrained",
        metavar="PATH",
        help="File whose encoder is evaluated: a checkpoint of stage 1 or MoCo, or a torchvision or timm state dict.",
    )
    head_flags.add_head_arguments(parser.add_argument_group("Head (classifier)"))
    model.add_argument(
        "--bn-mode",
        choices=["train", "eval"],
        default="train",
        help="Batch norm of the frozen encoder: train uses batch statistics, as the authors do; eval uses fixed ones.",
    )
    arguments.add_optim_arguments(parser, epochs=100, lr=10.0, schedule=[60, 80], weight_decay=0.0)
    running = arguments.add_running_arguments(parser)
    running.add_argument(
        "-e", "--evaluate", action="store_true", help="Evaluate the checkpoint of --resume, without training."
    )
    evaluation.add_evaluation_arguments(running)
    arguments.add_speed_arguments(parser)
    launch.add_distributed_arguments(parser)
    return parser


def main(argv: list[str] | None = None) -> None:
    args = parse(get_args_parser(), argv, head_flags.ignored_flags, head_flags.unsupported_flags)
    check_and_complete_args(args)
    launch.launch(main_worker, arguments.FrozenArgs(args))


def check_and_complete_args(args) -> None:
    """Check the arguments and the data, and set the arguments that depend on the data, before anything is created."""
    options.resolve_defaults(args)
    processes = launch.check(args)
    head_flags.resolve_defaults(args, processes)
    if args.evaluate and args.pretrained:
        raise errors.InputError("--evaluate: --pretrained is not supported; name the checkpoint with --resume")
    if args.evaluate:
        if not Path(args.resume or "").is_file():
            raise errors.InputError(f'--evaluate: --resume "{args.resume or ""}" is not a file, expected a checkpoint')
    elif not args.pretrained or not Path(args.pretrained).is_file():
        raise errors.InputError(
            f'--pretrained "{args.pretrained or ""}": no such file, expected a checkpoint of main_moco_supcon_imba.py'
        )
    else:
        args.run_dir = args.run_dir or str(Path(args.pretrained).parent / run_name(args))
        check_resume(args.resume, Path(args.run_dir))
        if head_flags.is_fitted(args):
            check_fitted_run_dir(args.resume, Path(args.run_dir))
    data = options.build_data_config(args)
    args.num_classes = data.spec.num_classes
    if not head_flags.is_fitted(args):
        build_network(args, processes, None)
    options.choose_loading(args, data.open("train"), processes)
    Schedule.from_args(args).check([Phase(None, 0, args.epochs)])
    # A fitted head and --evaluate draw no training batches, so that a training list of any length is accepted.
    draws_batches = not (args.evaluate or head_flags.is_fitted(args))
    vars(args).update(check_lists_and_hash(data, args.sampling, args.batch_size if draws_batches else 1))


def run_name(args) -> str:
    """Return the name of the run folder, beside the pre-trained file; for probes as in the TSC authors' code."""
    if args.compare_heads:
        return f"heads{args.name and '_'}{args.name}"
    if head_flags.is_fitted(args):
        return f"{options.data_name(args)}_{args.head}_{args.sampling}_{args.logit_adjustment}_{args.name}"
    return (
        f"{options.data_name(args)}_{args.head}{'_finetune' if args.finetune else ''}_seed{args.seed}_lr{args.lr}"
        f"_decay{args.weight_decay}_bsz{args.batch_size}_{args.name}"
    )


def build_network(args, processes: int, counts: np.ndarray | None, head: str | None = None) -> nn.Module:
    """Return the frozen encoder with a new classifier `fc`. (With --evaluate, the checkpoint is loaded later.)

    Args:
        counts: (C,) training images per class, or None if nothing will be trained.
        head: the kind of classifier (default: --head).
    """
    batch, head = args.batch_size // processes, head or args.head
    return heads.build_classifier(args.arch, args.image_size, args.num_classes, batch, args.pretrained, head, counts)


def main_worker(args, process: launch.ProcessInfo) -> None:
    """Run stage 2 in one process of the job."""
    data, compute = options.build_data_config(args), ComputeConfig.from_args(args, process.device)
    run_mode = evaluate if args.evaluate else fit_heads if head_flags.is_fitted(args) else train_probe
    run_mode(args, data, compute, process)


def train_probe(args, data: DataConfig, compute: ComputeConfig, process: launch.ProcessInfo) -> None:
    """Train a classifier on random views. The encoder is frozen, unless --finetune trains it too."""
    state = load_run(args, process, legacy_defaults=head_flags.HEAD_LEGACY_DEFAULTS | options.legacy_defaults(args))
    torch.manual_seed(state.seed)
    loader = build_stage2_loader(data, args.sampling, args.batch_size, state.seed, process)
    model, run_dir = build_network(args, distributed.world_size(), loader.dataset.class_counts), Path(args.run_dir)
    if args.finetune:
        heads.unfreeze(model)
    if state.source:
        encoder = {} if args.finetune else heads.frozen_weights(model, "train")
        state.load_weights(model)
        compute.load_scaler_state(state.scaler, state.source)
        if heads.changed_weights(model, encoder):
            raise errors.InputError(f"checkpoint {state.source}: its encoder differs from {args.pretrained}")
        log(f"resumed {state.source} after {state}")
    check_epochs_left(state, args.epochs, ended=evaluation.has_ended(state))
    state.check_step(len(loader))
    splits = build_val_and_test_loaders(data, args.batch_size, args.eval_batch_size, process)
    compute.apply_to(model.to(process.device))

    def collect_state(state) -> None:
        state.scaler = compute.scaler_state()

    with StopSignals() as stop, lock_run_dir(run_dir, state.source, state.broken), compute.precision_context():
        dry_run = DryRun.from_args(args, loader)
        checkpointer = Checkpointer(run_dir, state, model, stop, args.save_steps, collect_state, dry_run)
        results = train(args, checkpointer, loader, splits, compute)
        evaluation.finish(run_dir, state.args, results, loader.dataset.class_counts, data.selection_split)


def train(args, checkpointer: Checkpointer, loader, splits: dict, compute: ComputeConfig) -> dict:
    """Train the classifier, starting or resuming at the checkpointer's state, and return the results."""
    model, counts = checkpointer.model, loader.dataset.class_counts
    criterion = heads.HEADS[args.head].criterion(counts, args.epochs, args.logit_adjustment, compute.device)
    # Only the trained parameters, so that weight decay and momentum cannot change a frozen encoder.
    optimizer = build_optimizer(args, (p for p in model.parameters() if p.requires_grad))
    frozen = {} if args.finetune else heads.frozen_weights(model, args.bn_mode)

    def step(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        with compute.autocast():
            logits = model(images)  # (N, C); a frozen encoder stores nothing for the backward pass
        loss = criterion(logits, labels, checkpointer.state.epoch)
        if args.finetune:
            compute.step(loss, optimizer)
        else:
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # fc alone, in float32, so float16 needs no loss scaling here
            optimizer.step()
        return logits, loss

    def check_frozen() -> None:
        assert not (names := heads.changed_weights(model, frozen)), f"the frozen weights {names[:3]} have changed"

    training = args.finetune or args.bn_mode == "train"
    return evaluation.train_classifier(
        args, checkpointer, loader, splits, compute, optimizer, step, training=training, after_epoch=check_frozen
    )


def fit_heads(args, data: DataConfig, compute: ComputeConfig, process: launch.ProcessInfo) -> None:
    """Fit a classifier to the encoder's features, or with --compare-heads all that the checkpoint supports."""
    state = load_run(args, process, legacy_defaults=head_flags.HEAD_LEGACY_DEFAULTS | options.legacy_defaults(args))
    pretrained, run_dir, counts = Path(args.pretrained), Path(args.run_dir), data.open("train").class_counts
    network = heads.without_classifier(build_network(args, 1, None)).to(process.device)
    checkpoint_heads = read_checkpoint_heads(pretrained, len(counts), args.head)
    with compute.precision_context():
        features = compute_split_features(data, network, pretrained, args.feature_views, state.seed, process, compute)
    splits = {split: FeatureLoader(features[split], process.device) for split in ("val", "test")}
    inputs = build_fit_inputs(checkpoint_heads, features["train"], counts, process.device)
    head_data = HeadData(inputs, splits, compute, data.selection_split)
    with lock_run_dir(run_dir), compute.precision_context():
        RunLog(run_dir, state.args, (), 0)
        if args.compare_heads:
            from moco.heads import comparison  # imports Matplotlib, which takes a second

            comparison.run(run_dir, state.args, head_data)
            return
        selected = select_head(args.head, args.sampling, args.logit_adjustment, head_data)
        network.fc = selected.classifier
        checkpoint.save_network(run_dir / evaluation.BEST, network, epoch=0, arch=args.arch, args=state.args)
        chosen_by = {"on": data.selection_split, "from": selected.tried}
        evaluation.write_results(run_dir, state.args, {"selected": selected.entry}, counts, chosen_by)
        show_accuracies(f"test, selected ({format_settings(selected.entry)})", selected.entry)
        log(f"wrote {run_dir}: args.json, {evaluation.BEST}, results.json")


def evaluate(args, data: DataConfig, compute: ComputeConfig, process: launch.ProcessInfo) -> None:
    """Print the accuracies of the --resume checkpoint. Write no files."""
    entries = checkpoint.read_checkpoint(args.resume, needs=("state_dict", "epoch"))
    state = RunState.from_dict(entries, Path(args.resume))
    weights, stored_head = state.weights, state.args.get("head")
    head = stored_head if stored_head in list(heads.HEADS) else args.head
    model = build_network(args, distributed.world_size(), None, head)
    if heads.HEADS[head].is_fitted:
        model.fc = fitted_classifier(weights, args.resume)
    checkpoint.load_weights(model, weights, args.resume)
    compute.apply_to(model.to(process.device))
    splits = build_val_and_test_loaders(data, args.batch_size, args.eval_batch_size, process)
    counts = data.open("train").class_counts
    with compute.precision_context():
        for split, loader in splits.items():
            accuracies = evaluation.validate(loader, model, compute, counts, where=f"checkpoint {args.resume}, {split}")
            show_accuracies(f"{split}, epoch {state.epoch}", accuracies)


if __name__ == "__main__":
    errors.run(main, "the last checkpoint stays; --resume auto continues from it")
