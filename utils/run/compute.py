"""Numeric precision and speed: --amp, --channels-last, --compile, --tf32 and --deterministic.

By default all are off, as in the authors' code (the code released by the TSC authors): the encoders run in float32 with
the fastest cuDNN algorithms, whose convolutions use TF32 on Ampere or newer GPUs (PyTorch's default).
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from utils.configs import FromArgs
from utils.distributed import log
from utils.errors import InputError, first_line, short_repr

DTYPES = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class ComputeFlags(FromArgs):
    """The speed flags; see --help."""

    amp: str
    channels_last: bool
    compile: bool
    tf32: bool
    deterministic: bool

    def on(self, device: torch.device) -> "ComputeConfig":
        """Return the settings for a device, on which --amp and --compile are tried."""
        return ComputeConfig(device, **asdict(self))


class ComputeConfig:
    """The speed flags, applied to a model, its forward pass and its optimiser step.

    Args:
        device: this process's device.
        amp: a key of DTYPES.
        channels_last, compile, tf32, deterministic: whether the flag of this name is set (see --help).

    Raises:
        InputError: --amp or --compile does not work on this machine; both are tried on a small example.
    """

    def __init__(
        self,
        device: torch.device,
        amp: str = "off",
        channels_last: bool = False,
        compile: bool = False,
        tf32: bool = False,
        deterministic: bool = False,
    ):
        self.device, self.dtype = device, DTYPES[amp]
        self.channels_last, self.compile = channels_last, compile
        self.tf32, self.deterministic = tf32, deterministic
        if deterministic:  # cuBLAS reads the variable once, at its first matrix product
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        if self.dtype:
            _check_works(f"--amp {amp}", self._try_autocast, device, "omit it, or use the other one of bf16 and fp16")
        if compile:
            advice = "install a C++ compiler (g++, or set CXX) and, on a GPU, Triton; or omit --compile"
            _check_works("--compile", self._try_compile, device, advice)
        # float16 gradients below 6e-8 become 0, so the loss is scaled up for the backward pass.
        self.scaler = torch.amp.GradScaler(device.type, enabled=amp == "fp16")

    def _try_autocast(self) -> None:
        with self.autocast():
            nn.Linear(8, 8, device=self.device)(torch.ones(8, 8, device=self.device))

    def _try_compile(self) -> None:
        torch.compile(lambda x: x.sin() + 1)(torch.ones(8, device=self.device))

    def apply_to(self, *encoders: nn.Module) -> None:
        """Set the memory format of encoders and compile them, in place; state-dict keys do not change."""
        for encoder in encoders:
            if self.channels_last:
                encoder.to(memory_format=torch.channels_last)  # outputs of convolutions follow their weights
            if self.compile:
                encoder.compile()

    def autocast(self) -> torch.autocast:
        """Return the context of a forward pass: with --amp, matrix products and convolutions in half precision."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None)

    def step(self, loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
        """Run the backward pass and an optimiser step; with fp16 the step is skipped if a gradient overflows."""
        optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.step(optimizer)
        self.scaler.update()

    def scaler_state(self) -> dict | None:
        """Return the checkpoint entry: the loss scale with --amp fp16, otherwise None."""
        return self.scaler.state_dict() if self.scaler.is_enabled() else None

    def load_scaler_state(self, stored: object, source: str | object) -> None:
        """Restore the loss scale from a checkpoint entry; None is ignored. Raise InputError if it is damaged."""
        if not self.scaler.is_enabled() or stored is None:
            return
        expected = self.scaler.state_dict()
        if not isinstance(stored, dict) or {k: type(v) for k, v in stored.items()} != {
            k: type(v) for k, v in expected.items()
        }:
            raise InputError(f"checkpoint {source}: scaler is {short_repr(stored)}, expected {', '.join(expected)}")
        self.scaler.load_state_dict(stored)

    @contextmanager
    def precision_context(self) -> Iterator[None]:
        """Apply --tf32 and --deterministic on a GPU within the context, and restore PyTorch's settings afterwards.

        tf32: the factors of float32 matrix products are rounded to TF32 (10 instead of 23 mantissa bits).
        deterministic: each operation uses an algorithm with bit-identical results. Without it, cuDNN times its
        algorithms for each new size and uses the fastest, which is not always the same one.
        """
        on_gpu = self.device.type == "cuda"
        for flag in ("tf32", "deterministic"):
            if getattr(self, flag) and not on_gpu:
                log(f"note: --{flag} ignored on {self.device}; it applies to GPUs only")
        if not on_gpu:
            yield
            return
        cudnn = torch.backends.cudnn
        precision, cudnn_settings = torch.get_float32_matmul_precision(), (cudnn.allow_tf32, cudnn.benchmark)
        was_deterministic = torch.are_deterministic_algorithms_enabled()
        if self.tf32:
            torch.set_float32_matmul_precision("high")
            cudnn.allow_tf32 = True
        cudnn.benchmark = not self.deterministic
        torch.use_deterministic_algorithms(self.deterministic)
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(precision)
            cudnn.allow_tf32, cudnn.benchmark = cudnn_settings
            torch.use_deterministic_algorithms(was_deterministic)


def _check_works(flag: str, example: Callable[[], None], device: torch.device, advice: str) -> None:
    """Raise InputError if example(), a computation with the flag, fails."""
    try:
        example()
    except Exception as error:  # a compiler can raise any exception
        raise InputError(f"{flag}: does not work on {device} here ({first_line(error)}); {advice}") from None
