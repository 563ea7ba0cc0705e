"""Train the cross-entropy baseline: the same network from random weights, in one stage.

    python -m examples.cross_entropy --dataset digits --imbalance 50 --epochs 40 \\
        -b 64 --cos --seed 0

Augmentation, evaluation and run folder are those of the linear probe, so that utils.report
can compare it with KCL and TSC. To fit all classifiers to its encoder, run:
    python main_lincls_imba.py --dataset digits --imbalance 50 --compare-heads \\
        --pretrained RUN/last.pth.tar
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from imagenet_inat import data_flags, options
from imagenet_inat.loaders import build_stage2_loader, build_val_and_test_loaders, check_lists_and_hash
from moco.encoders import get_encoder
from moco.heads import with_float32_logits
from moco.heads.fits import log_prior
from utils import errors
from utils.distributed import log
from utils.measure.dry_run import DryRun
from utils.optimizers import build_optimizer
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
    data_flags.add_data_arguments(parser)
    arguments.add_model_group(parser)
    loss = parser.add_argument_group("Loss")
    meanings = "\n".join(f"{name}: {description}" for name, (description, *_) in BALANCE.items())
    loss.add_argument(
        "--balance", choices=list(BALANCE), default="sampling", metavar="HOW", help=f"Class balancing.\n{meanings}"
    )
    arguments.add_optim_arguments(parser, epochs=200, lr=0.1, schedule=[120, 160], weight_decay=1e-4)
    evaluation.add_evaluation_arguments(arguments.add_running_arguments(parser))
    arguments.add_speed_arguments(parser)
    launch.add_distributed_arguments(parser)
    parser.set_defaults(pretrained=None)  # args.json and results.json need the entry; there is no pre-training
    return parser


def main(argv: list[str] | None = None) -> None:
    args = parse(get_args_parser(), argv)
    check_and_complete_args(args)
    launch.launch(main_worker, arguments.FrozenArgs(args))


def check_and_complete_args(args) -> None:
    """Check the arguments and the data, before any process group or file is created."""
    options.resolve_defaults(args)
    get_encoder(args.arch, args.image_size, args.batch_size // launch.check(args))
    Schedule.from_args(args).check([Phase(None, 0, args.epochs)])
    name = f"{options.data_name(args)}_cross_entropy_{args.arch}_lr_{args.lr}_bsz_{args.batch_size}"
    name += "" if args.balance == "sampling" else f"_balance_{args.balance}"
    name += f"_ep_{args.epochs}_seed_{args.seed}_{args.name}"
    args.run_dir = args.run_dir or str(Path("runs") / name)
    check_resume(args.resume, Path(args.run_dir))
    data = options.build_data_config(args)
    args.num_classes = data.spec.num_classes
    options.choose_loading(args, data.open("train"), launch.expected_world_size(args))
    vars(args).update(check_lists_and_hash(data, BALANCE[args.balance][1], args.batch_size))


def main_worker(args, process: launch.ProcessInfo) -> None:
    """Train in one process of the job."""
    data, compute = options.build_data_config(args), ComputeConfig.from_args(args, process.device)
    _, sampling, adjusted = BALANCE[args.balance]
    state = load_run(args, process, legacy_defaults=options.legacy_defaults(args) | {"balance": "sampling"})
    torch.manual_seed(state.seed)
    model = with_float32_logits(get_encoder(args.arch, args.image_size)(num_classes=args.num_classes))
    if state.source:
        state.load_weights(model)
        compute.load_scaler_state(state.scaler, state.source)
        log(f"resumed {state.source} after {state}")
    check_epochs_left(state, args.epochs, evaluation.has_ended(state))
    loader = build_stage2_loader(data, sampling, args.batch_size, state.seed, process)
    state.check_step(len(loader))
    splits = build_val_and_test_loaders(data, args.batch_size, args.eval_batch_size, process)
    compute.apply_to(model.to(process.device))
    optimizer = build_optimizer(args, model.parameters())
    counts = torch.from_numpy(loader.dataset.class_counts)
    prior = log_prior(counts).float().to(process.device) if adjusted else 0  # (C,)

    def step(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        with compute.autocast():
            logits = model(images)  # (N, C)
        loss = cross_entropy(logits + prior, labels)
        compute.step(loss, optimizer)
        return logits, loss

    def collect_state(state) -> None:
        state.scaler = compute.scaler_state()

    run_dir = Path(args.run_dir)
    with StopSignals() as stop, lock_run_dir(run_dir, state.source, state.broken), compute.precision_context():
        dry_run = DryRun.from_args(args, loader)
        checkpointer = Checkpointer(run_dir, state, model, stop, args.save_steps, collect_state, dry_run)
        results = evaluation.train_classifier(args, checkpointer, loader, splits, compute, optimizer, step)
        evaluation.finish(run_dir, state.args, results, loader.dataset.class_counts, data.selection_split)


if __name__ == "__main__":
    errors.run(main, "--resume auto continues from the last checkpoint")
