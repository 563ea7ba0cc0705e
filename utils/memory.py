"""The memory that this process has used, and an estimate of the memory that a training step will need."""

import sys
import weakref

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

SMALL_BATCHES = (2, 4)  # images of the two steps from which `estimate_step` extrapolates
OVERHEAD = 1.25  # measured peak of a process on a CPU, relative to its tensors: buffers of libraries, fragmentation


class PeakTensors(TorchDispatchMode):
    """While this context is open, record the bytes of the tensors that are created in it and still exist.

    Attributes:
        peak: the largest sum so far, in bytes.
    """

    def __init__(self):
        super().__init__()
        self.peak, self._now, self._seen = 0, 0, weakref.WeakSet()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        inputs = {id(tensor.untyped_storage()) for tensor in args if isinstance(tensor, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor) and id(tensor.untyped_storage()) not in inputs:  # views share memory
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage not in self._seen:
            self._seen.add(storage)
            self._now += storage.nbytes()
            self.peak = max(self.peak, self._now)
            weakref.finalize(storage, self._remove, storage.nbytes())

    def _remove(self, size: int) -> None:
        self._now -= size


def estimate_step(network: nn.Module, images: int, size: int, device: torch.device, autocast) -> int:
    """Estimate the bytes that a step on a batch needs in addition to the weights, their gradients and the optimiser.

    The peaks of two small batches are measured and extrapolated. Gradients of weights must not exist. Batch-norm
    statistics change.

    Args:
        images: number of images in the batch. size: their side in pixels.
        autocast: returns the context of a forward pass.
    """
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    # A weight's gradient does not grow with the batch. It is freed at once, so that the peak is that of the images.
    hooks = [weight.register_post_accumulate_grad_hook(_free_gradient) for weight in weights]
    first, second = (_measure_step(network, count, size, device, autocast) for count in SMALL_BATCHES)
    for hook in hooks:
        hook.remove()
    per_image = (second - first) / (SMALL_BATCHES[1] - SMALL_BATCHES[0])
    return round(OVERHEAD * (first + per_image * (images - SMALL_BATCHES[0])))


def _free_gradient(weight: nn.Parameter) -> None:
    weight.grad = None


def _measure_step(network: nn.Module, images: int, size: int, device: torch.device, autocast) -> int:
    with PeakTensors() as tensors:
        with autocast():
            output = network.forward(torch.zeros(images, 3, size, size, device=device))  # not compiled by --compile
        if output.requires_grad:
            output.float().sum().backward()
    return tensors.peak


def peak_process_memory() -> int | None:
    """Return the largest memory that this process has used so far, in bytes; None if it is unknown (on Windows)."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
