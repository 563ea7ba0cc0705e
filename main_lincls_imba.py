"""Stage 2: a linear classifier on the frozen encoder of stage 1, on class-balanced batches.

On the embedded digits:
    python main_lincls_imba.py --dataset digits --pretrained RUN/last.pth.tar --epochs 10 --schedule 5 8 -b 64 --seed 0

On ImageNet-LT, the recipe of the release:
    python main_lincls_imba.py --data-root IMAGENET --pretrained RUN/last.pth.tar \\
        --epochs 40 --schedule 20 30 -b 2048 --seed 0
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from imagenet_inat import options
from imagenet_inat.loaders import check_lists, open_evaluation, open_images
from imagenet_inat.options import Data
from moco.heads import HEADS, build_classifier, frozen_weights, moved
from utils import distributed, errors
from utils.distributed import say
from utils.measure.results import show_accuracies
from utils.parser import Parser, parse
from utils.run import arguments, checkpoint, launch
from utils.run.evaluation import add_evaluation_arguments, finish, has_ended, train_classifier, validate
from utils.run.folder import check_resume, hold
from utils.run.keeper import Keeper
from utils.run.loop import Phase, Schedule, sgd
from utils.run.resume import check_epochs_left, load_run
from utils.run.signals import StopSignals
from utils.run.speed import Speed


def get_args_parser() -> Parser:
    parser = Parser(description=__doc__)
    options.add_data_arguments(parser)
    model = arguments.add_model_group(parser)
    model.add_argument(
        "--pretrained",
        metavar="PATH",
        help="whose encoder is probed: a stage-1 checkpoint (ours, the release's, MoCo's) or a torchvision state dict",
    )
    model.add_argument(
        "--head",
        choices=list(HEADS),
        default="linear",
        help="; ".join(f"{name}: {head.help}" for name, head in HEADS.items()),
    )
    model.add_argument(
        "--bn-mode",
        choices=["train", "eval"],
        default="train",
        help="batch-norm of the frozen encoder while the classifier trains: batch statistics, and running ones "
        "that move on (train, the release), or everything frozen (eval, MoCo)",
    )
    arguments.add_optim_arguments(parser, epochs=100, lr=10.0, schedule=[60, 80], weight_decay=0.0)
    running = arguments.add_running_arguments(parser)
    running.add_argument(
        "-e",
        "--evaluate",
        action="store_true",
        help="measure the stage-2 checkpoint given with --resume; train nothing",
    )
    add_evaluation_arguments(running)
    arguments.add_speed_arguments(parser)
    arguments.add_distributed_arguments(parser)
    return parser


def main(argv: list[str] | None = None) -> None:
    args = parse(get_args_parser(), argv)
    prepare(args)
    launch.launch(main_worker, arguments.Frozen(args))


def prepare(args) -> None:
    """Check everything that can be checked before a process group or a file is made."""
    options.fill_in(args)
    processes = launch.check(args)
    if args.evaluate and args.pretrained:
        raise errors.InputError("--evaluate measures the checkpoint given with --resume: leave --pretrained out")
    if args.evaluate:
        if not Path(args.resume or "").is_file():
            raise errors.InputError(
                f'--evaluate: --resume "{args.resume or ""}" is no file, expected a stage-2 checkpoint'
            )
    elif not args.pretrained or not Path(args.pretrained).is_file():
        raise errors.InputError(
            f'--pretrained "{args.pretrained or ""}": no such file, expected a checkpoint of main_moco_supcon_imba.py'
        )
    else:
        args.run_dir = args.run_dir or str(Path(args.pretrained).parent / run_name(args))
        check_resume(args.resume, Path(args.run_dir))
    data = options.data_of(args)
    args.num_classes = data.spec.num_classes
    classifier_of(args, processes, None)
    options.settle_loading(args, data.open("train"), processes)
    Schedule.asked(args).check([Phase(None, 0, args.epochs)])
    vars(args).update(check_lists(data, HEADS[args.head].samplings[0], args.batch_size))


def run_name(args) -> str:
    """The release's name of a probe, a folder beside the pre-trained file."""
    return (
        f"{options.data_name(args)}_{args.head}_seed{args.seed}_lr{args.lr}_decay{args.weight_decay}"
        f"_bsz{args.batch_size}_{args.name}"
    )


def classifier_of(args, processes: int, counts: np.ndarray | None) -> nn.Module:
    """The frozen encoder with a new `fc`; with --evaluate, which has no --pretrained, a checkpoint brings all weights.

    Args:
        counts: (C,) training images of each class, None where nothing will be trained.
    """
    batch = args.batch_size // processes
    return build_classifier(args.arch, args.image_size, args.num_classes, batch, args.pretrained, args.head, counts)


def main_worker(args, place: launch.Place) -> None:
    """The probe, in one of its processes."""
    data, speed = options.data_of(args), Speed.asked(args, place.device)
    if args.evaluate:
        evaluate(args, data, speed, place)
        return
    state = load_run(args, place, before=options.before(args))
    torch.manual_seed(state.seed)

    loader = open_images(data, HEADS[args.head].samplings[0], args.batch_size, state.seed, place)
    model = classifier_of(args, distributed.world_size(), loader.dataset.class_counts)
    if state.source:
        encoder = frozen_weights(model, "train")
        state.load_into(model)
        if moved(model, encoder):
            raise errors.InputError(f"checkpoint {state.source}: is a probe of another encoder than {args.pretrained}")
        say(f"resumed {state.source} after {state}")
    check_epochs_left(state, args.epochs, ended=has_ended(state))
    state.check_step(len(loader))
    splits = open_evaluation(data, args.batch_size, args.eval_batch_size, place)
    speed.apply_to(model.to(place.device))
    with StopSignals() as stop, hold(Path(args.run_dir), state.source, state.broken), speed.arithmetic():
        keeper = Keeper(Path(args.run_dir), state, model, stop, args.save_steps)
        results = train(args, keeper, loader, splits, speed)
        finish(keeper.run_dir, state.args, results, loader.dataset.class_counts)


def train(args, keeper: Keeper, loader, splits: dict, speed: Speed) -> dict:
    """Train `fc` from where the keeper's state stands; returns the results."""
    model, head = keeper.model, HEADS[args.head]
    # No weight decay and no momentum reaches the encoder: only what trains is given.
    optimizer = sgd(model.fc.parameters(), args.lr, args.momentum, args.weight_decay)
    frozen = frozen_weights(model, args.bn_mode)

    def step(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        with speed.autocast():
            logits = model(images)  # (N, C); of the frozen encoder nothing is kept for the backward pass
        loss = head.loss(logits, labels, keeper.state.epoch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # through fc alone, in float32: float16 needs no scaled loss here
        optimizer.step()
        return logits, loss

    def check() -> None:
        assert not (names := moved(model, frozen)), f"training the classifier has moved {names[:3]}"

    training = args.bn_mode == "train"
    return train_classifier(args, keeper, loader, splits, speed, optimizer, step, training=training, after_epoch=check)


def evaluate(args, data: Data, speed: Speed, place: launch.Place) -> None:
    """Show the accuracies of the checkpoint given with --resume; write nothing."""
    state = checkpoint.load(args.resume, needs=("state_dict", "epoch"))
    model = classifier_of(args, distributed.world_size(), None)
    checkpoint.load_into(model, checkpoint.unpacked(state), args.resume)
    speed.apply_to(model.to(place.device))
    splits = open_evaluation(data, args.batch_size, args.eval_batch_size, place)
    counts = data.open("train").class_counts
    with speed.arithmetic():
        for split, loader in splits.items():
            accuracies = validate(loader, model, speed, counts, where=f"checkpoint {args.resume}, {split}")
            show_accuracies(f"{split}, epoch {state['epoch']}", accuracies)


if __name__ == "__main__":
    errors.run(main, "the last checkpoint stays; --resume auto continues from it")
