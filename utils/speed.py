"""How the encoders are computed, from --amp, --channels-last, --compile and --tf32.

With all of them off: float32 and PyTorch's defaults, as the release.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from utils.errors import InputError, first_line
from utils.logger import say

DTYPES = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Speed:
    """What the flags make of a model, its forward pass and its step.

    Args:
        args: the resolved arguments; amp, channels_last, compile and device are used here.

    Raises:
        InputError: this machine cannot do what a flag asks for; it was tried on a few numbers.
    """

    def __init__(self, args):
        self.device, self.dtype = args.device, DTYPES[args.amp]
        self.channels_last, self.compile = args.channels_last, args.compile
        if self.dtype:
            _try(f"--amp {args.amp}", self._multiply, self.device, "leave it out, or try the other of bf16 and fp16")
        if self.compile:
            advice = "it needs a C++ compiler (g++; CXX names another), on GPUs Triton too; or leave it out"
            _try("--compile", self._compile_a_little, self.device, advice)
        # Gradients of float16 vanish below 6e-8: the loss is scaled up for the backward pass.
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=args.amp == "fp16")

    def _multiply(self) -> None:
        with self.autocast():
            nn.Linear(8, 8, device=self.device)(torch.ones(8, 8, device=self.device))

    def _compile_a_little(self) -> None:
        # Not from the cache: it would answer for a compiler that is gone.
        little = torch.compile(lambda x: x.sin() + 1, options={"force_disable_caches": True})
        little(torch.ones(8, device=self.device))

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

    def state(self) -> dict:
        """What of it belongs into a checkpoint: the scale of the loss, with --amp fp16."""
        return {"scaler": self.scaler.state_dict()} if self.scaler.is_enabled() else {}

    def load(self, state: dict, source: str | object) -> None:
        """Take the scale of the loss from a checkpoint that has one.

        Raises:
            InputError: it is damaged.
        """
        if not self.scaler.is_enabled() or "scaler" not in state:
            return
        found, expected = state["scaler"], self.scaler.state_dict()
        if not isinstance(found, dict) or {k: type(v) for k, v in found.items()} != {
            k: type(v) for k, v in expected.items()
        }:
            raise InputError(f"checkpoint {source}: scaler is {str(found)[:60]}, expected {', '.join(expected)}")
        self.scaler.load_state_dict(found)


def _try(flag: str, work: Callable[[], None], device: torch.device, advice: str) -> None:
    try:
        work()
    except Exception as error:  # a compiler meets anything
        raise InputError(f"{flag}: does not work on {device} here ({first_line(error)}); {advice}") from None


def sgd(parameters: Iterable[nn.Parameter], args) -> torch.optim.SGD:
    """The optimiser of the command line; on a GPU one kernel a step. The CPU's fused one rounds otherwise."""
    fused = True if args.device.type == "cuda" else None
    return torch.optim.SGD(parameters, args.lr, momentum=args.momentum, weight_decay=args.weight_decay, fused=fused)


@contextmanager
def tf32(wanted: bool, device: torch.device) -> Iterator[None]:
    """Let a GPU round the factors of float32 products to TF32 (10 of 23 bits) in the block."""
    if not wanted or device.type != "cuda":
        if wanted:
            say(f"note: --tf32 without effect on {device}, it is for GPUs")
        yield
        return
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
