"""Whether there is a CUDA device: what `make test-gpu` and `make gpu` ask before they do anything.

python -m benchmarks.gpu.device
"""

import torch

from utils import errors


def need_cuda() -> None:
    """Return if there is a CUDA device.

    Raises:
        InputError: there is none; why PyTorch sees none.
    """
    if not torch.cuda.is_available():
        built = f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "is built without CUDA"
        raise errors.InputError(
            f"no CUDA device: PyTorch {torch.__version__} {built} and finds no GPU here; expected an NVIDIA GPU "
            "with its driver (nvidia-smi lists it)"
        )


if __name__ == "__main__":
    errors.run(need_cuda)
