"""The settings of a run, and what surrounds its training: signals, lock, precision, checkpoints."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from utils import distributed
from utils.cli.flags import Arguments
from utils.configs import FromArgs
from utils.distributed import log
from utils.distributed.launch import LaunchConfig
from utils.optimizers import OptimizerConfig
from utils.run.checkpointer import Checkpointer
from utils.run.compute import ComputeConfig, ComputeFlags
from utils.run.dry_run import DryRun, check_memory_of_steps
from utils.run.folder import lock_run_dir
from utils.run.loop import Schedule
from utils.run.signals import StopSignals
from utils.run.state import RunState


@dataclass(frozen=True)
class RunPlan(FromArgs):
    """The settings of a run.

    Attributes:
        run_dir: The run folder.
        arguments: All arguments, for args.json and checkpoints.
        launch, compute, schedule, optimizer: The settings of these parts.
    For the others, see --help.
    """

    run_dir: Path
    arguments: Arguments
    launch: LaunchConfig
    compute: ComputeFlags
    schedule: Schedule
    optimizer: OptimizerConfig
    arch: str
    epochs: int
    batch_size: int
    start_epoch: int
    seed: int | None
    resume: str | None
    override: bool
    save_steps: int
    dry_run: bool

    def in_folder(self, run_dir: Path) -> "RunPlan":
        """Return the same run in another folder."""
        return replace(self.with_arguments(run_dir=str(run_dir)), run_dir=run_dir)

    def with_arguments(self, **values: object) -> "RunPlan":
        """Return the same run, with other or further values in args.json and checkpoints."""
        return replace(self, arguments=self.arguments.with_values(**values))


@dataclass(frozen=True)
class StagePlan:
    """The plan of a training script, which adds its own settings. It must be picklable."""

    run: RunPlan

    def with_outputs(self, folder: Path) -> "StagePlan":
        """Return the plan with all its outputs in a folder."""
        return replace(self, run=self.run.in_folder(folder / "run"))


def restore(state: RunState, model: nn.Module, compute: ComputeConfig) -> None:
    """Load the weights and the loss scale of the checkpoint that the run resumes from, if there is one."""
    if state.source:
        state.load_weights(model)
        compute.load_scaler_state(state.scaler, state.source)
        log(f"resumed {state.source} after {state}")


@contextmanager
def open_run(
    plan: RunPlan,
    state: RunState,
    model: nn.Module,
    loader,
    compute: ComputeConfig,
    extra_state: Callable[[], dict] = dict,
    network: nn.Module | None = None,
    views: int = 1,
) -> Iterator[Checkpointer]:
    """Yield the checkpointer of a run, while its folder is locked, signals are handled and the speed flags apply.

    Args:
        state: The state to start from; the checkpointer updates it. model: The model that it saves.
        loader: The training batches.
        extra_state: Returns further checkpoint entries; called before each write.
        network: The part of the model that decides the memory of a step, for --dry-run; None: the model.
        views: Views of each image that pass through the network at once.

    Raises:
        InputError: Another run has locked the folder; or a dry run finds that the memory is too small.
    """

    def collect_state(state: RunState) -> None:
        state.extra, state.scaler = extra_state(), compute.scaler_state()

    with StopSignals() as stop, lock_run_dir(plan.run_dir, state.source, state.broken), compute.precision_context():
        dry_run = _start_dry_run(plan, network or model, views, loader, compute) if plan.dry_run else None
        yield Checkpointer(plan.run_dir, state, model, stop, plan.save_steps, collect_state, dry_run)


def _start_dry_run(plan: RunPlan, network: nn.Module, views: int, loader, compute: ComputeConfig) -> DryRun:
    args = plan.arguments.values
    images = views * max(1, plan.batch_size // distributed.world_size())
    check_memory_of_steps(network, images, args["image_size"], compute, plan.optimizer)
    from_random = not (args.get("pretrained") or args.get("init_from"))
    return DryRun(loader.dataset.class_counts, len(loader), plan.epochs, compute.device, from_random)
