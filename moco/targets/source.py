"""Choose the targets of a run: from its checkpoint or from a file."""

from pathlib import Path

import torch
from torch import Tensor

from moco.targets.defaults import TEMPERATURE
from moco.targets.files import check_targets, load_targets, remove_copies, target_file_name
from moco.targets.generation import format_targets, generate_file
from utils import distributed
from utils.distributed import log
from utils.errors import InputError
from utils.run.state import RunState


def target_file(settings, num_classes: int) -> Path:
    """Return the file of --targets, or the default file name in the working directory."""
    return Path(settings.targets or target_file_name(num_classes, settings.moco_dim))


def select_targets(settings, num_classes: int, state: RunState, device: torch.device) -> Tensor:
    """Return the targets of a TSC run, (C, D) float32: those of the checkpoint if it has any, or those of a file.

    The choice is logged. A missing file is generated on the device. With --override, the file of --targets replaces
    the targets of the checkpoint: they are removed from `state`, together with their assignment, which is recomputed.

    Raises:
        InputError: If --targets differs from the checkpoint's targets and --override is not set, or if the targets
            do not fit the model.
    """
    stored = _stored_targets(settings, num_classes, state)
    targets, source = stored, f"from {state.source}"
    if settings.targets or stored is None:
        targets, source = _file_targets(settings, num_classes, device), str(target_file(settings, num_classes))
    if stored is not None and not torch.equal(targets, stored):
        if not settings.override:
            raise InputError(
                f"--targets {settings.targets}: differs from the targets of {state.source}; omit --targets to keep "
                "the checkpoint's targets, or add --override to use the file"
            )
        state.weights.pop("optimal_target")
        state.extra |= {"assignment": None, "assignment_before": None}
        source += f", replacing the targets of {state.source}"
    if distributed.is_main():  # takes one second on the host with 8142 classes
        log(f"targets: {source}; {format_targets(targets, TEMPERATURE)}")
    return targets


def _stored_targets(settings, num_classes: int, state: RunState) -> Tensor | None:
    """Return the targets of a checkpoint, (C, D) float32, one copy of each, or None if it has none."""
    copies = state.weights.get("optimal_target")
    if copies is None:
        return None
    expected = (num_classes * settings.tr, settings.moco_dim)
    if tuple(copies.shape) != expected:
        raise InputError(
            f"checkpoint {state.source}: does not fit the model: targets have shape {tuple(copies.shape)}, "
            f"expected {expected}; check --dataset, --moco-dim and --tr"
        )
    targets = remove_copies(copies, settings.tr).float()
    check_targets(targets, num_classes, settings.moco_dim, source=f"checkpoint {state.source}: targets")
    return targets


def _file_targets(settings, num_classes: int, device: torch.device) -> Tensor:
    file, size = target_file(settings, num_classes), (num_classes, settings.moco_dim)
    with distributed.main_process_first():
        if not file.exists():
            log(f"{file}: does not exist yet, generating it")
            generate_file(file, *size, device=device)
    # All ranks use the targets of rank 0: machines without a shared folder may have generated different ones.
    return distributed.broadcast_object(load_targets(file, *size))
