"""--accum-steps and --grad-checkpointing: the same numbers in less memory."""

import copy

import pytest
import torch
from torch import nn

import main_moco_supcon_imba as stage1
from moco.builder import KCL
from moco.encoders import get_encoder
from moco.encoders.memory import in_parts, recompute_blocks
from moco.in_batch import InBatch
from tests.refusals import line_with, refusal
from tests.stopping import BATCH, QUEUE
from tests.tiny import IMAGE, TinyEncoder, unit
from utils.run import checkpoint

NO_BATCH_NORM = "timm:convnext_atto"


def gradients(model: nn.Module, targeted: bool, count: int = 8) -> dict[str, torch.Tensor]:
    """Of a step from the same draws; and its loss, queue and centroids."""
    torch.manual_seed(1)
    model.targeted = targeted
    out = model(*torch.randn(2, count, *IMAGE).double(), torch.arange(count) % 3)
    model.zero_grad()
    out.loss.backward()
    found = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    return found | {"loss": out.loss.detach()} | {name: buffer.clone() for name, buffer in model.named_buffers()}


@pytest.mark.parametrize("make", [lambda *args, **kw: KCL(args[0], args[1], 16, sep_t=True, **kw), InBatch])
@pytest.mark.parametrize("targeted", [False, True])
def test_a_batch_in_four_parts_gives_the_same_step(make, targeted):
    """Of a network without batch norm: loss, gradients, queue and centroids of the whole, in float64."""
    torch.manual_seed(0)
    whole = make(TinyEncoder, 8, num_classes=3, targets=unit(3, 8)).double()
    parts = copy.deepcopy(whole)
    parts.parts = 4
    seen = []
    parts.encoder_q.register_forward_pre_hook(lambda module, images: seen.append(len(images[0])))
    for _ in range(2):
        one, four = gradients(whole, targeted), gradients(parts, targeted)
        torch.testing.assert_close(four, one, rtol=1e-10, atol=1e-10)
    assert set(seen) == {2 if make is not InBatch else 4}


@pytest.mark.parametrize(
    "arch", ["resnet20", "resnet18_small", "efficientnet_b0", "swin_t", "timm:vit_tiny_patch16_224"]
)
def test_blocks_that_are_computed_again_give_the_same_gradients(arch):
    """With the dropout and the skipped blocks of the first time, and batch norm that counts a batch once."""
    torch.manual_seed(0)
    plain = get_encoder(arch, 32)(num_classes=4).train()
    again = copy.deepcopy(plain)
    assert recompute_blocks(again, arch) > 3
    images, found = torch.randn(4, 3, 32, 32), []
    for network in (plain, again):
        torch.manual_seed(2)
        network(images).square().sum().backward()
        found.append({name: weight.grad for name, weight in network.named_parameters()} | dict(network.named_buffers()))
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)
    assert list(again.state_dict()) == list(plain.state_dict())


def kept(network: nn.Module, images: torch.Tensor, parts: int = 1) -> int:
    """Bytes that the backward pass of a forward pass keeps, counted once each."""
    storages = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        out = in_parts(network, images, parts)
    del out
    return sum(storages.values())


def test_they_keep_less():
    """What the backward pass holds when it begins: of the whole network, of each block its input, of a part nothing."""
    network, images = get_encoder("resnet20", 32)(num_classes=4), torch.randn(16, 3, 32, 32)
    plain = kept(network, images)
    assert kept(network, images, parts=4) < plain / 10
    recompute_blocks(network, "resnet20")
    assert kept(network, images) < plain / 2


def test_a_network_without_blocks_is_refused():
    network = get_encoder("lenet", 28)(num_classes=4)
    refusal(lambda: recompute_blocks(network, "lenet"), "--grad-checkpointing", "lenet")


@pytest.mark.parametrize("contrast", ["queue", "batch"])
def test_a_run_in_parts_ends_as_a_run_of_whole_batches(contrast, batch_flags, tmp_path):
    """Five steps of a network without batch norm; --grad-checkpointing changes nothing."""
    queue = [] if contrast == "batch" else ["--moco-k", str(QUEUE)]
    more = f"--contrast {contrast} -a {NO_BATCH_NORM} --epochs 1 --lr 0.001 --image-size 32"
    words = [*batch_flags, *more.split(), *queue]
    whole, parts = f"-b {BATCH}", f"-b {BATCH // 4} --accum-steps 4 --grad-checkpointing"
    for name, how in {"whole": whole, "parts": parts}.items():
        stage1.main([*words, *how.split(), "--run-dir", str(tmp_path / name)])
    whole, parts = (
        checkpoint.unpacked(checkpoint.load(tmp_path / name / "last.pth.tar")) for name in ("whole", "parts")
    )
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-5)  # float32, five steps


def test_blocks_are_not_computed_again_by_compiled_networks(flags, tmp_path):
    words = [*flags, "--grad-checkpointing", "--compile", "--run-dir", str(tmp_path / "run")]
    refusal(lambda: stage1.main(words), "--grad-checkpointing", "compile")


def test_a_note_where_batch_norm_sees_parts(flags, tmp_path, capsys):
    words = ["-b", "16", "--accum-steps", "2", "--moco-k", "64", "--epochs", "1"]
    stage1.main([*flags, *words, "--run-dir", str(tmp_path / "run")])
    line_with(capsys.readouterr().out, "note: ", "--accum-steps 2", "resnet20", "batch norm")


def test_a_queue_of_no_whole_number_of_steps_is_refused(flags, tmp_path):
    words = [*flags, "-b", "16", "--accum-steps", "3", "--moco-k", "64", "--run-dir", str(tmp_path / "run")]
    refusal(lambda: stage1.main(words), "--moco-k 64", "--batch-size 16", "--accum-steps 3")
