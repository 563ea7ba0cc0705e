"""Train the cross-entropy baseline: the same network from random weights, in one stage.

    python -m examples.cross_entropy --dataset digits --imbalance 50 --epochs 40 \\
        -b 64 --cos --seed 0

Augmentation, evaluation and run folder are those of the linear probe, so that utils.report
can compare it with KCL and TSC. To fit all classifiers to its encoder, run:
    python main_lincls_imba.py --compare-heads \\
        --pretrained RUN/last.pth.tar
"""

import utils.startup  # first, because it handles signals during the other imports
from imagenet_inat import data_flags
from utils import errors
from utils.cli import evaluation_flags, shared_flags
from utils.cli.parser import Parser, parse

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
    shared_flags.add_model_group(parser)
    loss = parser.add_argument_group("Loss")
    meanings = "\n".join(f"{name}: {description}" for name, (description, *_) in BALANCE.items())
    loss.add_argument(
        "--balance",
        choices=list(BALANCE),
        default="sampling",
        metavar="HOW",
        help=f"Class balancing.\n{meanings}",
        legacy="sampling",
    )
    shared_flags.add_optim_arguments(parser, epochs=200, lr=0.1, schedule=[120, 160], weight_decay=1e-4)
    evaluation_flags.add_evaluation_arguments(shared_flags.add_running_arguments(parser))
    shared_flags.add_machine_arguments(parser)
    parser.set_defaults(pretrained=None)  # args.json and results.json need the entry; there is no pre-training
    return parser


utils.startup.answer_help(__name__, get_args_parser)  # before the imports below, which take seconds

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from imagenet_inat import options
from imagenet_inat.loaders import build_stage2_loader, build_val_and_test_loaders, check_lists_and_hash
from moco.encoders import get_encoder
from moco.heads.networks import with_float32_logits
from moco.losses import log_prior
from utils.distributed import launch
from utils.run import dry_run, evaluation, loop, resume, session
from utils.run.folder import check_run_dir, default_run_dir


@dataclass(frozen=True)
class Plan(session.StagePlan):
    """A training with cross-entropy: its run, its data, and how it balances the classes."""

    data: options.DataConfig
    balance: str
    eval_freq: int
    eval_batch_size: int | None


def main(argv: list[str] | None = None) -> None:
    parser = get_args_parser()
    plan = prepare(parser, parse(parser, argv))
    with dry_run.redirect_outputs(plan) as plan:
        launch.launch(main_worker, plan, plan.run.launch, plan.run.arguments.agreed())


def prepare(parser: Parser, args) -> Plan:
    """Resolve the arguments, and check them and the data before the processes start and the run folder is created."""
    flags, config = data_flags.DataFlags.from_args(args).resolved(), launch.LaunchConfig.from_args(args)
    vars(args).update(vars(flags))
    processes = launch.check(config, args.batch_size)
    get_encoder(args.arch, args.image_size, args.batch_size // processes)
    loop.Schedule.from_args(args).check([loop.Phase(None, 0, args.epochs)])
    name = f"{flags.data_name}_cross_entropy_{args.arch}_lr_{args.lr}_bsz_{args.batch_size}"
    name += "" if args.balance == "sampling" else f"_balance_{args.balance}"
    name += f"_ep_{args.epochs}_seed_{args.seed}"
    args.run_dir = args.run_dir or default_run_dir("runs", name, args.name)
    data = options.build_data_config(flags)
    data, args.workers = data.choose_loading(data.open("train"), data_flags.LoadingFlags.from_args(args), processes)
    digests = check_lists_and_hash(data, BALANCE[args.balance][1], args.batch_size)
    arguments = parser.describe(args, data.facts | digests, options.LEGACY_LOADING)
    check_run_dir(arguments)
    run = session.RunPlan.from_args(args, run_dir=Path(args.run_dir), arguments=arguments)
    return Plan(run, data, args.balance, args.eval_freq, args.eval_batch_size)


def main_worker(plan: Plan, process: launch.ProcessInfo) -> None:
    """Train in one process of the run."""
    run, data, compute = plan.run, plan.data, plan.run.compute.on(process.device)
    _, sampling, adjusted = BALANCE[plan.balance]
    state = resume.load_run(run, process)
    torch.manual_seed(state.seed)
    encoder = get_encoder(run.arch, data.image_size)
    model = with_float32_logits(encoder(num_classes=data.spec.num_classes))
    session.restore(state, model, compute)
    resume.check_epochs_left(state, run.epochs, evaluation.is_evaluated(state))
    loader = build_stage2_loader(data, sampling, run.batch_size, state.seed, process)
    state.set_data(loader)
    splits = build_val_and_test_loaders(data, run.batch_size, plan.eval_batch_size, process)
    compute.apply_to(model.to(process.device))
    optimizer = run.optimizer.build(model.parameters())
    counts = torch.from_numpy(loader.dataset.class_counts)
    prior = log_prior(counts).float().to(process.device) if adjusted else 0  # (C,)

    def step(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        with compute.autocast():
            logits = model(images)  # (N, C)
        loss = cross_entropy(logits + prior, labels)
        compute.step(loss, optimizer)
        return logits, loss

    with session.open_run(run, state, model, loader, compute) as checkpointer:
        results = evaluation.train_classifier(
            run, plan.eval_freq, checkpointer, loader, splits, compute, optimizer, step
        )
        evaluation.finish(run.run_dir, state, results, data.selection_split)


if __name__ == "__main__":
    errors.run(main, errors.UNSAVED)
