"""How the encoders are computed, from --amp, --channels-last, --compile, --tf32 and --deterministic.

With all of them off: float32, and on a GPU the algorithms that cuDNN finds fastest, as the release.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from utils.distributed import say
from utils.errors import InputError, brief, first_line

DTYPES = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Speed:
    """What the flags make of a model, its forward pass and its step.

    Args:
        device: of this process. amp: one of DTYPES. The others as --help says.

    Raises:
        InputError: this machine cannot do what a flag asks for; it was tried on a few numbers.
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
        if deterministic:  # cuBLAS reads it once, at its first product
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        if self.dtype:
            _try(f"--amp {amp}", self._multiply, device, "leave it out, or try the other of bf16 and fp16")
        if compile:
            advice = "it needs a C++ compiler (g++; CXX names another), on GPUs Triton too; or leave it out"
            _try("--compile", self._compile_a_little, device, advice)
        # Gradients of float16 vanish below 6e-8: the loss is scaled up for the backward pass.
        self.scaler = torch.amp.GradScaler(device.type, enabled=amp == "fp16")

    @classmethod
    def asked(cls, args, device: torch.device) -> "Speed":
        """As the flags of the command line say."""
        return cls(device, args.amp, args.channels_last, args.compile, args.tf32, args.deterministic)

    def _multiply(self) -> None:
        with self.autocast():
            nn.Linear(8, 8, device=self.device)(torch.ones(8, 8, device=self.device))

    def _compile_a_little(self) -> None:
        torch.compile(lambda x: x.sin() + 1)(torch.ones(8, device=self.device))

    def apply_to(self, *encoders: nn.Module) -> None:
        """Give encoders their memory format and compile them, in place: the keys of state dicts stay as they are."""
        for encoder in encoders:
            if self.channels_last:
                encoder.to(memory_format=torch.channels_last)  # a convolution's output follows its weight
            if self.compile:
                encoder.compile()

    def autocast(self) -> torch.autocast:
        """The context of a forward pass: matrix products and convolutions in half precision with --amp."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None)

    def step(self, loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
        """Backward pass and a step of the optimiser, which float16 skips if a gradient overflows."""
        optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.step(optimizer)
        self.scaler.update()

    def state(self) -> dict | None:
        """What of it belongs into a checkpoint: the scale of the loss, with --amp fp16."""
        return self.scaler.state_dict() if self.scaler.is_enabled() else None

    def load(self, found: object, source: str | object) -> None:
        """Take the scale of the loss from a checkpoint that has one.

        Raises:
            InputError: it is damaged.
        """
        if not self.scaler.is_enabled() or found is None:
            return
        expected = self.scaler.state_dict()
        if not isinstance(found, dict) or {k: type(v) for k, v in found.items()} != {
            k: type(v) for k, v in expected.items()
        }:
            raise InputError(f"checkpoint {source}: scaler is {brief(found)}, expected {', '.join(expected)}")
        self.scaler.load_state_dict(found)

    @contextmanager
    def arithmetic(self) -> Iterator[None]:
        """How a GPU computes in the block, by --tf32 and --deterministic; as it was before, afterwards.

        tf32: factors of float32 products are rounded to TF32 (10 of 23 bits).
        deterministic: each operation by an algorithm that gives the same bits every time. Without it cuDNN tries its
        algorithms at each new size and takes the fastest, which is not always the same one.
        """
        on_gpu = self.device.type == "cuda"
        for flag in ("tf32", "deterministic"):
            if getattr(self, flag) and not on_gpu:
                say(f"note: --{flag} without effect on {self.device}, it is for GPUs")
        if not on_gpu:
            yield
            return
        cudnn = torch.backends.cudnn
        before = torch.get_float32_matmul_precision(), cudnn.allow_tf32, cudnn.benchmark
        strict = torch.are_deterministic_algorithms_enabled()
        if self.tf32:
            torch.set_float32_matmul_precision("high")
            cudnn.allow_tf32 = True
        cudnn.benchmark = not self.deterministic
        torch.use_deterministic_algorithms(self.deterministic)
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before[0])
            cudnn.allow_tf32, cudnn.benchmark = before[1:]
            torch.use_deterministic_algorithms(strict)


def _try(flag: str, work: Callable[[], None], device: torch.device, advice: str) -> None:
    try:
        work()
    except Exception as error:  # a compiler meets anything
        raise InputError(f"{flag}: does not work on {device} here ({first_line(error)}); {advice}") from None
