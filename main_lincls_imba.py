"""Train a classifier on the encoder of stage 1 and measure its accuracy (stage 2).

Fit all classifiers that the checkpoint supports, and compare them in one table:
    python main_lincls_imba.py --dataset digits --pretrained RUN/last.pth.tar \\
        --compare-heads

Train the authors' linear probe on ImageNet-LT:
    python main_lincls_imba.py --data-root IMAGENET \\
        --pretrained RUN/last.pth.tar --epochs 40 --schedule 20 30 -b 2048
"""

import utils.startup  # noqa: F401, imported before the modules that take seconds to load

# isort: split

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from imagenet_inat import flags, options
from imagenet_inat.features import features_of
from imagenet_inat.loaders import check_lists, open_evaluation, open_images
from imagenet_inat.options import Data
from moco.heads import HEADS, build_classifier, frozen_weights, moved, unfreeze, without_classifier
from moco.heads.choice import Split, Task, choose
from moco.heads.classifiers import fitted_classifier
from moco.heads.flags import LEGACY_DEFAULTS, add_head_arguments, ignored_flags, is_fitted, settle, unsupported_flags
from moco.heads.problems import held_by, problem_of
from utils import distributed, errors
from utils.distributed import say
from utils.measure.dry_run import DryRun
from utils.measure.results import made_with, show_accuracies
from utils.optimizers import optimizer_of
from utils.parser import Parser, parse
from utils.run import arguments, checkpoint, evaluation, launch
from utils.run.checkpointer import Checkpointer
from utils.run.compute import ComputeConfig
from utils.run.folder import check_fit, check_resume, lock_run_dir
from utils.run.logger import RunLog
from utils.run.loop import Phase, Schedule
from utils.run.resume import check_epochs_left, load_run
from utils.run.signals import StopSignals
from utils.run.state import RunState

MOST_USED = ("dataset", "data_root", "pretrained", "head", "compare_heads", "epochs", "batch_size", "lr")
MOST_USED += ("run_dir", "resume", "evaluate", "seed")


def get_args_parser() -> Parser:
    parser = Parser(MOST_USED, description=__doc__)
    flags.add_data_arguments(parser)
    model = arguments.add_model_group(parser)
    model.add_argument(
        "--pretrained",
        metavar="PATH",
        help="File whose encoder is evaluated: a checkpoint of stage 1 or MoCo, or a torchvision or timm state dict.",
    )
    add_head_arguments(parser.add_argument_group("Head (classifier)"))
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
    arguments.add_distributed_arguments(parser)
    return parser


def main(argv: list[str] | None = None) -> None:
    args = parse(get_args_parser(), argv, ignored_flags, unsupported_flags)
    prepare(args)
    launch.launch(main_worker, arguments.FrozenArgs(args))


def prepare(args) -> None:
    """Check the arguments and the data before any process group or file is created."""
    options.resolve_defaults(args)
    processes = launch.check(args)
    settle(args, processes)
    if args.evaluate and args.pretrained:
        raise errors.InputError("--evaluate: --pretrained is not supported; name the checkpoint with --resume")
    if args.evaluate:
        if not Path(args.resume or "").is_file():
            raise errors.InputError(
                f'--evaluate: --resume "{args.resume or ""}" is not a file, expected a stage-2 checkpoint'
            )
    elif not args.pretrained or not Path(args.pretrained).is_file():
        raise errors.InputError(
            f'--pretrained "{args.pretrained or ""}": no such file, expected a checkpoint of main_moco_supcon_imba.py'
        )
    else:
        args.run_dir = args.run_dir or str(Path(args.pretrained).parent / run_name(args))
        check_resume(args.resume, Path(args.run_dir))
        if is_fitted(args):
            check_fit(args.resume, Path(args.run_dir))
    data = options.data_of(args)
    args.num_classes = data.spec.num_classes
    if not is_fitted(args):
        network_of(args, processes, None)
    options.choose_workers(args, data.open("train"), processes)
    Schedule.from_args(args).check([Phase(None, 0, args.epochs)])
    vars(args).update(check_lists(data, args.sampling, 1 if args.evaluate or is_fitted(args) else args.batch_size))


def run_name(args) -> str:
    """Return the name of the run folder, beside the pre-trained file; for probes as in the TSC authors' code."""
    if args.compare_heads:
        return f"heads{args.name and '_'}{args.name}"
    if is_fitted(args):
        return f"{options.data_name(args)}_{args.head}_{args.sampling}_{args.logit_adjustment}_{args.name}"
    tuned = "_finetune" if args.finetune else ""
    return (
        f"{options.data_name(args)}_{args.head}{tuned}_seed{args.seed}_lr{args.lr}_decay{args.weight_decay}"
        f"_bsz{args.batch_size}_{args.name}"
    )


def network_of(args, processes: int, counts: np.ndarray | None, head: str | None = None) -> nn.Module:
    """Return the frozen encoder with a new classifier `fc`. (With --evaluate, the checkpoint is loaded later.)

    Args:
        counts: (C,) training images per class, or None if nothing will be trained. head: default: --head.
    """
    batch, head = args.batch_size // processes, head or args.head
    return build_classifier(args.arch, args.image_size, args.num_classes, batch, args.pretrained, head, counts)


def main_worker(args, place: launch.Place) -> None:
    """Run stage 2 in one process of the job."""
    data, compute = options.data_of(args), ComputeConfig.from_args(args, place.device)
    work = evaluate if args.evaluate else fit if is_fitted(args) else probe
    work(args, data, compute, place)


def probe(args, data: Data, compute: ComputeConfig, place: launch.Place) -> None:
    """Train a classifier on random views. The encoder is frozen, unless --finetune trains it too."""
    state = load_run(args, place, before=LEGACY_DEFAULTS | options.before(args))
    torch.manual_seed(state.seed)

    loader = open_images(data, args.sampling, args.batch_size, state.seed, place)
    model = network_of(args, distributed.world_size(), loader.dataset.class_counts)
    if args.finetune:
        unfreeze(model)
    if state.source:
        encoder = {} if args.finetune else frozen_weights(model, "train")
        state.load_into(model)
        compute.load(state.scaler, state.source)
        if moved(model, encoder):
            raise errors.InputError(f"checkpoint {state.source}: its encoder differs from {args.pretrained}")
        say(f"resumed {state.source} after {state}")
    check_epochs_left(state, args.epochs, ended=evaluation.has_ended(state))
    state.check_step(len(loader))
    splits = open_evaluation(data, args.batch_size, args.eval_batch_size, place)
    compute.apply_to(model.to(place.device))

    def collect_state(state) -> None:
        state.scaler = compute.state()

    with StopSignals() as stop, lock_run_dir(Path(args.run_dir), state.source, state.broken), compute.arithmetic():
        dry_run = DryRun.from_args(args, loader)
        checkpointer = Checkpointer(Path(args.run_dir), state, model, stop, args.save_steps, collect_state, dry_run)
        results = train(args, checkpointer, loader, splits, compute)
        evaluation.finish(checkpointer.run_dir, state.args, results, loader.dataset.class_counts, data.chosen_on)


def train(args, checkpointer: Checkpointer, loader, splits: dict, compute: ComputeConfig) -> dict:
    """Train the classifier, starting or resuming at the checkpointer's state, and return the results."""
    model, counts = checkpointer.model, loader.dataset.class_counts
    loss_of = HEADS[args.head].criterion(counts, args.epochs, args.logit_adjustment, compute.device)
    # Only the trained parameters, so that weight decay and momentum cannot change a frozen encoder.
    optimizer = optimizer_of(args, (p for p in model.parameters() if p.requires_grad))
    frozen = {} if args.finetune else frozen_weights(model, args.bn_mode)

    def step(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        with compute.autocast():
            logits = model(images)  # (N, C); a frozen encoder stores nothing for the backward pass
        loss = loss_of(logits, labels, checkpointer.state.epoch)
        if args.finetune:
            compute.step(loss, optimizer)
        else:
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # fc alone, in float32, so float16 needs no loss scaling here
            optimizer.step()
        return logits, loss

    def check() -> None:
        assert not (names := moved(model, frozen)), f"training the classifier changed the frozen weights {names[:3]}"

    training = args.finetune or args.bn_mode == "train"
    return evaluation.train_classifier(
        args, checkpointer, loader, splits, compute, optimizer, step, training=training, after_epoch=check
    )


def fit(args, data: Data, compute: ComputeConfig, place: launch.Place) -> None:
    """Fit a classifier to the encoder's features, or with --compare-heads all that the checkpoint supports."""
    state = load_run(args, place, before=LEGACY_DEFAULTS | options.before(args))
    pretrained, run_dir, counts = Path(args.pretrained), Path(args.run_dir), data.open("train").class_counts
    network = without_classifier(network_of(args, 1, None)).to(place.device)
    held = held_by(pretrained, len(counts), args.head)
    with compute.arithmetic():
        found = features_of(data, network, pretrained, args.feature_views, state.seed, place, compute)
    splits = {split: Split(found[split], place.device) for split in ("val", "test")}
    task = Task(problem_of(held, found["train"], counts, place.device), splits, compute, data.chosen_on)
    with lock_run_dir(run_dir), compute.arithmetic():
        RunLog(run_dir, state.args, (), 0)
        if args.compare_heads:
            from moco.heads import comparison  # imports Matplotlib, which takes a second

            comparison.run(run_dir, state.args, task)
            return
        chosen = choose(args.head, args.sampling, args.logit_adjustment, task)
        network.fc = chosen.classifier
        checkpoint.save_network(run_dir / evaluation.BEST, network, epoch=0, arch=args.arch, args=state.args)
        chosen_by = {"on": data.chosen_on, "from": chosen.tried}
        evaluation.write_results(run_dir, state.args, {"selected": chosen.entry}, counts, chosen_by)
        show_accuracies(f"test, selected ({made_with(chosen.entry)})", chosen.entry)
        say(f"wrote {run_dir}: args.json, {evaluation.BEST}, results.json")


def evaluate(args, data: Data, compute: ComputeConfig, place: launch.Place) -> None:
    """Print the accuracies of the --resume checkpoint. Write no files."""
    state = RunState.from_dict(checkpoint.load(args.resume, needs=("state_dict", "epoch")), Path(args.resume))
    weights, its = state.weights, state.args.get("head")
    head = its if its in list(HEADS) else args.head
    model = network_of(args, distributed.world_size(), None, head)
    if HEADS[head].make is None:
        model.fc = fitted_classifier(weights, args.resume)
    checkpoint.load_into(model, weights, args.resume)
    compute.apply_to(model.to(place.device))
    splits = open_evaluation(data, args.batch_size, args.eval_batch_size, place)
    counts = data.open("train").class_counts
    with compute.arithmetic():
        for split, loader in splits.items():
            accuracies = evaluation.validate(loader, model, compute, counts, where=f"checkpoint {args.resume}, {split}")
            show_accuracies(f"{split}, epoch {state.epoch}", accuracies)


if __name__ == "__main__":
    errors.run(main, "the last checkpoint stays; --resume auto continues from it")
