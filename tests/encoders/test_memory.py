"""--accum-steps and --grad-checkpointing: the same results with less memory."""

import copy

import pytest
import torch
from torch import nn

import main_moco_supcon_imba as stage1
from moco.builder import KCL
from moco.encoders import get_encoder
from moco.encoders.memory import encode_in_microbatches, recompute_blocks
from moco.in_batch import InBatchKCL
from tests.refusals import line_with, refusal
from tests.stopping import BATCH, QUEUE
from tests.tiny import IMAGE, TinyEncoder, unit_vectors
from utils.run import checkpoint

NO_BATCH_NORM = "timm:convnext_atto"


def gradients(model: nn.Module, targeted: bool, count: int = 8) -> dict[str, torch.Tensor]:
    """Return the gradients, loss, queue and centroids of a step with fixed random numbers."""
    torch.manual_seed(1)
    model.targeted = targeted
    out = model(*torch.randn(2, count, *IMAGE).double(), torch.arange(count) % 3)
    model.zero_grad()
    out.loss.backward()
    gradients = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    return gradients | {"loss": out.loss.detach()} | {name: buffer.clone() for name, buffer in model.named_buffers()}


@pytest.mark.parametrize("make", [lambda *args, **kw: KCL(args[0], args[1], 16, sep_t=True, **kw), InBatchKCL])
@pytest.mark.parametrize("targeted", [False, True])
def test_four_accumulated_batches_give_the_same_step(make, targeted):
    """Without batch norm, loss, gradients, queue and centroids equal those of the whole batch, in float64."""
    torch.manual_seed(0)
    whole = make(TinyEncoder, 8, num_classes=3, targets=unit_vectors(3, 8)).double()
    parts = copy.deepcopy(whole)
    parts.parts = 4
    seen = []
    parts.encoder_q.register_forward_pre_hook(lambda module, images: seen.append(len(images[0])))
    for _ in range(2):
        one, four = gradients(whole, targeted), gradients(parts, targeted)
        torch.testing.assert_close(four, one, rtol=1e-10, atol=1e-10)
    assert set(seen) == {2 if make is not InBatchKCL else 4}


@pytest.mark.parametrize(
    "arch", ["resnet20", "resnet18_small", "efficientnet_b0", "swin_t", "timm:vit_tiny_patch16_224"]
)
def test_recomputed_blocks_give_the_same_gradients(arch):
    """Dropout and skipped blocks repeat their random choices, and batch norm counts each batch once."""
    torch.manual_seed(0)
    plain = get_encoder(arch, 32)(num_classes=4).train()
    recomputed = copy.deepcopy(plain)
    assert recompute_blocks(recomputed, arch) > 3
    images, results = torch.randn(4, 3, 32, 32), []
    for network in (plain, recomputed):
        torch.manual_seed(2)
        network(images).square().sum().backward()
        results.append(
            {name: weight.grad for name, weight in network.named_parameters()} | dict(network.named_buffers())
        )
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)
    assert list(recomputed.state_dict()) == list(plain.state_dict())


def saved_bytes(network: nn.Module, images: torch.Tensor, parts: int = 1) -> int:
    """Return the bytes that a forward pass saves for the backward pass, each storage counted once."""
    storages = {}

    def record(tensor: torch.Tensor) -> torch.Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        out = encode_in_microbatches(network, images, parts)
    del out
    return sum(storages.values())


def test_parts_and_recomputed_blocks_save_memory():
    """Compares what is saved when the backward pass begins: all activations, each block's input, almost nothing."""
    network, images = get_encoder("resnet20", 32)(num_classes=4), torch.randn(16, 3, 32, 32)
    plain = saved_bytes(network, images)
    assert saved_bytes(network, images, parts=4) < plain / 10
    recompute_blocks(network, "resnet20")
    assert saved_bytes(network, images) < plain / 2


def test_network_without_blocks_is_refused():
    network = get_encoder("lenet", 28)(num_classes=4)
    refusal(lambda: recompute_blocks(network, "lenet"), "--grad-checkpointing", "lenet")


@pytest.mark.parametrize("contrast", ["queue", "batch"])
def test_run_with_accumulation_matches_run_with_whole_batches(contrast, batch_flags, tmp_path):
    """Takes five steps of a network without batch norm. --grad-checkpointing changes nothing."""
    queue = [] if contrast == "batch" else ["--moco-k", str(QUEUE)]
    more = f"--contrast {contrast} -a {NO_BATCH_NORM} --epochs 1 --lr 0.001 --image-size 32"
    words = [*batch_flags, *more.split(), *queue]
    whole, parts = f"-b {BATCH}", f"-b {BATCH // 4} --accum-steps 4 --grad-checkpointing"
    for name, how in {"whole": whole, "parts": parts}.items():
        stage1.main([*words, *how.split(), "--run-dir", str(tmp_path / name)])
    whole, parts = (
        checkpoint.strip_prefix(checkpoint.read_checkpoint(tmp_path / name / "last.pth.tar")["state_dict"])
        for name in ("whole", "parts")
    )
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-5)  # float32, five steps


def test_grad_checkpointing_is_refused_with_compile(flags, tmp_path):
    words = [*flags, "--grad-checkpointing", "--compile", "--run-dir", str(tmp_path / "run")]
    refusal(lambda: stage1.main(words), "--grad-checkpointing", "compile")


def test_note_reports_that_batch_norm_sees_parts(flags, tmp_path, capsys):
    words = ["-b", "16", "--accum-steps", "2", "--moco-k", "64", "--epochs", "1"]
    stage1.main([*flags, *words, "--run-dir", str(tmp_path / "run")])
    line_with(capsys.readouterr().out, "note: ", "--accum-steps 2", "resnet20", "batch norm")


def test_queue_must_be_a_multiple_of_the_accumulated_batch(flags, tmp_path):
    words = [*flags, "-b", "16", "--accum-steps", "3", "--moco-k", "64", "--run-dir", str(tmp_path / "run")]
    refusal(lambda: stage1.main(words), "--moco-k 64", "--batch-size 16", "--accum-steps 3")
