"""Check for a CUDA device, before `make test-gpu` and `make gpu` start.

python -m benchmarks.gpu.device
"""

import torch

from utils import errors


def need_cuda() -> None:
    """Raise InputError, with PyTorch's CUDA version, if there is no CUDA device."""
    if not torch.cuda.is_available():
        built = f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "is built without CUDA"
        raise errors.InputError(
            f"no CUDA device: PyTorch {torch.__version__} {built} and finds no GPU; expected an NVIDIA GPU with its "
            "driver; check nvidia-smi"
        )


if __name__ == "__main__":
    errors.run(need_cuda)
