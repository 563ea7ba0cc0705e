"""Train the cross-entropy baseline: the same network, from random weights, in one stage.

    python -m examples.cross_entropy --dataset digits --imbalance 50 --epochs 40 \\
        -b 64 --cos --seed 0

Augmentation, evaluation and run folder are those of the linear probe, so that utils.report
can show it next to KCL and TSC. Fit the same classifiers to its encoder:
    python main_lincls_imba.py --dataset digits --imbalance 50 --compare-heads \\
        --pretrained RUN/last.pth.tar
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from imagenet_inat import flags, options
from imagenet_inat.loaders import check_lists, open_evaluation, open_images
from moco.encoders import get_encoder
from moco.heads import with_float32_logits
from moco.heads.fits import log_prior
from utils import errors
from utils.distributed import say
from utils.measure.dry_run import DryRun
from utils.optimizers import optimizer_of
from utils.parser import Parser, parse
from utils.run import arguments, evaluation, launch
from utils.run.checkpointer import Checkpointer
from utils.run.compute import ComputeConfig
from utils.run.folder import check_resume, lock_run_dir
from utils.run.loop import Phase, Schedule
from utils.run.resume import check_epochs_left, load_run
from utils.run.signals import StopSignals

BALANCE = {  # value of --balance: (help, sampler, whether the log prior is added to the logits)
    "sampling": ("class-balanced batches, as for the probe", "class-balanced", False),
    "softmax": (
        "balanced softmax: every image once per epoch, with the log class prior added to the logits",
        "instance",
        True,
    ),
    "none": ("every image once per epoch", "instance", False),
}


MOST_USED = ("dataset", "data_root", "arch", "balance", "epochs", "batch_size", "lr", "run_dir", "resume", "seed")


def get_args_parser() -> Parser:
    parser = Parser(MOST_USED, description=__doc__)
    flags.add_data_arguments(parser)
    arguments.add_model_group(parser)
    loss = parser.add_argument_group("Loss")
    meanings = "\n".join(f"{name}: {about}" for name, (about, *_) in BALANCE.items())
    loss.add_argument(
        "--balance", choices=list(BALANCE), default="sampling", metavar="HOW", help=f"Class balancing.\n{meanings}"
    )
    arguments.add_optim_arguments(parser, epochs=200, lr=0.1, schedule=[120, 160], weight_decay=1e-4)
    evaluation.add_evaluation_arguments(arguments.add_running_arguments(parser))
    arguments.add_speed_arguments(parser)
    arguments.add_distributed_arguments(parser)
    parser.set_defaults(pretrained=None)  # required by args.json and results.json; there was no pre-training
    return parser


def main(argv: list[str] | None = None) -> None:
    args = parse(get_args_parser(), argv)
    prepare(args)
    launch.launch(main_worker, arguments.FrozenArgs(args))


def prepare(args) -> None:
    """Check the arguments and the data before any process group or file is created."""
    options.resolve_defaults(args)
    get_encoder(args.arch, args.image_size, args.batch_size // launch.check(args))
    Schedule.from_args(args).check([Phase(None, 0, args.epochs)])
    name = f"{options.data_name(args)}_cross_entropy_{args.arch}_lr_{args.lr}_bsz_{args.batch_size}"
    name += "" if args.balance == "sampling" else f"_balance_{args.balance}"
    name += f"_ep_{args.epochs}_seed_{args.seed}_{args.name}"
    args.run_dir = args.run_dir or str(Path("runs") / name)
    check_resume(args.resume, Path(args.run_dir))
    data = options.data_of(args)
    args.num_classes = data.spec.num_classes
    options.choose_workers(args, data.open("train"), launch.world_size_from(args))
    vars(args).update(check_lists(data, BALANCE[args.balance][1], args.batch_size))


def main_worker(args, place: launch.Place) -> None:
    """Train in one process of the run."""
    data, compute = options.data_of(args), ComputeConfig.from_args(args, place.device)
    _, sampling, adjusted = BALANCE[args.balance]
    state = load_run(args, place, before=options.before(args) | {"balance": "sampling"})
    torch.manual_seed(state.seed)
    model = with_float32_logits(get_encoder(args.arch, args.image_size)(num_classes=args.num_classes))
    if state.source:
        state.load_into(model)
        compute.load(state.scaler, state.source)
        say(f"resumed {state.source} after {state}")
    check_epochs_left(state, args.epochs, evaluation.has_ended(state))
    loader = open_images(data, sampling, args.batch_size, state.seed, place)
    state.check_step(len(loader))
    splits = open_evaluation(data, args.batch_size, args.eval_batch_size, place)
    compute.apply_to(model.to(place.device))
    optimizer = optimizer_of(args, model.parameters())
    counts = torch.from_numpy(loader.dataset.class_counts)
    prior = log_prior(counts).float().to(place.device) if adjusted else 0  # (C,)

    def step(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        with compute.autocast():
            logits = model(images)  # (N, C)
        loss = cross_entropy(logits + prior, labels)
        compute.step(loss, optimizer)
        return logits, loss

    def collect_state(state) -> None:
        state.scaler = compute.state()

    with StopSignals() as stop, lock_run_dir(Path(args.run_dir), state.source, state.broken), compute.arithmetic():
        dry_run = DryRun.from_args(args, loader)
        checkpointer = Checkpointer(Path(args.run_dir), state, model, stop, args.save_steps, collect_state, dry_run)
        results = evaluation.train_classifier(args, checkpointer, loader, splits, compute, optimizer, step)
        evaluation.finish(checkpointer.run_dir, state.args, results, loader.dataset.class_counts, data.chosen_on)


if __name__ == "__main__":
    errors.run(main, "--resume auto continues from the last checkpoint")
