"""Exit with an error if there is no CUDA device. `make test-gpu` and `make results-gpu` run this check first.

python -m benchmarks.gpu.device
"""

import torch

from utils import errors


def require_cuda() -> None:
    """Raise InputError if there is no CUDA device. The message has PyTorch's CUDA version."""
    if not torch.cuda.is_available():
        build = f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "is built without CUDA"
        raise errors.InputError(
            f"no CUDA device: PyTorch {torch.__version__} {build} and finds no GPU. Expected an NVIDIA GPU with its "
            "driver; check nvidia-smi"
        )


if __name__ == "__main__":
    errors.run(require_cuda)
