"""Weights of the authors' code, MoCo and torchvision load into stage 2, and exported weights load into torchvision."""

import functools
import json

import pytest
import safetensors.torch
import torch
import torchvision

import main_lincls_imba as stage2
import main_moco_supcon_imba as stage1
from moco.builder import KCL
from moco.encoders import get_encoder
from moco.export import __main__ as export
from moco.pretrained import load_encoder
from tests.refusals import line_with, refusal
from tests.tiny import release_style, unit_vectors
from utils.run import checkpoint
from utils.run.logger import read_log

ARCH = "resnet18"


@functools.cache
def pretrained(mlp: bool) -> KCL:
    return KCL(get_encoder(ARCH, 32), 16, 8, mlp=mlp, num_classes=3, targets=unit_vectors(3, 16).float())


def moco_checkpoint(model: KCL) -> dict:
    """Return a checkpoint in MoCo's layout: `module.` prefix, both encoders, queue, pointer, optimiser state."""
    names = [name for name in model.state_dict() if name.startswith(("encoder_", "queue")) and name != "queue_labels"]
    state = {"module." + name: model.state_dict()[name] for name in names}
    return {"epoch": 200, "arch": ARCH, "state_dict": state, "optimizer": {"state": {}, "param_groups": []}}


def torchvision_state_dict(model: KCL) -> dict:
    """Return a torchvision state dict with the classifier of another data set."""
    head = {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}
    return {k: v for k, v in model.encoder_q.state_dict().items() if not k.startswith("fc.")} | head


LAYOUTS = {
    "release": release_style,
    "release, without prefix": lambda model: release_style(model, prefix=""),
    "MoCo": moco_checkpoint,
    "torchvision": torchvision_state_dict,
    "torchvision under state_dict": lambda model: {"state_dict": torchvision_state_dict(model)},
    "torchvision, trained under DDP": lambda model: {
        "state_dict": {f"module.{k}": v for k, v in torchvision_state_dict(model).items()}
    },
}


@pytest.mark.parametrize(("layout", "mlp"), [*((layout, True) for layout in LAYOUTS), ("release", False)])
def test_load_encoder_reads_every_checkpoint_layout(layout, mlp, tmp_path):
    model = pretrained(mlp)
    state = LAYOUTS[layout](model)
    state["arch"] = ARCH if "state_dict" in state else None
    torch.save({k: v for k, v in state.items() if v is not None}, tmp_path / "f")

    network = torchvision.models.resnet18(num_classes=3)
    head = network.fc.weight.clone()
    load_encoder(network, tmp_path / "f", ARCH)
    after = network.state_dict()
    assert torch.equal(after["fc.weight"], head)
    for name, tensor in model.encoder_q.state_dict().items():
        assert name.startswith("fc.") or torch.equal(after[name], tensor), name


def test_load_encoder_refuses_other_architecture(tmp_path):
    torch.save(release_style(pretrained(True), arch=ARCH), tmp_path / "f")
    refusal(lambda: load_encoder(torchvision.models.resnet34(), tmp_path / "f", "resnet34"), "resnet18", "resnet34")


def test_load_encoder_compares_keys_without_architecture_name(tmp_path):
    torch.save(torchvision_state_dict(pretrained(True)), tmp_path / "f")
    for arch, name in (("resnet34", "layer1.2.bn1.bias"), ("resnet50", "layer1.0.conv1.weight")):
        network = torchvision.models.get_model(arch)
        refusal(lambda arch=arch, network=network: load_encoder(network, tmp_path / "f", arch), name)


def test_load_encoder_refuses_file_without_encoder(tmp_path):
    torch.save({"state_dict": {"fc.weight": torch.zeros(1)}}, tmp_path / "f")
    (tmp_path / "f.safetensors").write_bytes(b"\x00" * 30)
    for name, fact in (("f", "fc.weight"), ("f.safetensors", "safetensors"), ("absent.safetensors", "No such file")):
        refusal(
            lambda name=name: load_encoder(torchvision.models.resnet18(), tmp_path / name, ARCH), tmp_path / name, fact
        )


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_torchvision_loads_exported_encoder(ending, tmp_path, capsys):
    model = pretrained(mlp=True)
    torch.save(release_style(model, arch=ARCH), tmp_path / "last.pth.tar")
    out = tmp_path / f"encoder.{ending}"
    export.main([str(tmp_path), str(out), "--to", "torchvision"])
    assert str(out) in capsys.readouterr().out

    weights = safetensors.torch.load_file(out) if ending == "safetensors" else torch.load(out, weights_only=True)
    network = torchvision.models.resnet18()
    result = network.load_state_dict(weights, strict=False)
    assert (result.missing_keys, result.unexpected_keys) == (["fc.weight", "fc.bias"], [])
    assert torch.equal(network.layer4[1].conv2.weight, model.encoder_q.layer4[1].conv2.weight)


def test_export_refuses_bad_input_and_writes_nothing(tmp_path):
    torch.save(torchvision_state_dict(pretrained(True)), tmp_path / "plain.pth")
    before = sorted(path.name for path in tmp_path.iterdir())
    for given, *facts in (
        (["plain.pth", "out.onxx"], "out.onxx", ".pth", ".pt", ".safetensors", ".onnx", ".pt2"),
        (["plain.pth", "no/where.pth"], tmp_path / "no"),
        (["plain.pth", "plain.pth"], "plain.pth", "--overwrite"),
        (["plain.pth", "out.pth"], "plain.pth", "--arch"),
        (["plain.pth", "out.pth", "-a", "resnet34"], "plain.pth", "layer1.2.bn1.bias"),
        (["absent.pth.tar", "out.pth"], "absent.pth.tar", "No such file"),
    ):
        words = [str(tmp_path / word) if "." in word else word for word in given]
        refusal(lambda words=words: export.main(words), *facts)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_probe_of_exported_encoder_matches_probe_of_run(tsc_run, probe_run, probe_flags, tmp_path):
    out = tmp_path / "encoder.safetensors"
    export.main([str(tsc_run), str(out)])
    stage2.main([*probe_flags, "--epochs", "2", "--pretrained", str(out), "--run-dir", str(tmp_path / "p")])
    ours, expected = (json.loads((run / "results.json").read_text()) for run in (tmp_path / "p", probe_run))
    assert ours["last"] == expected["last"] and ours["selected"] == expected["selected"]


def test_run_folder_stands_for_its_last_checkpoint(flags, tsc_run, probe_run, probe_flags, tmp_path, capsys):
    """Both flags accept it. The log names the file, and what was loaded from it, once."""
    stage2.main([*probe_flags, "--epochs", "2", "--pretrained", str(tsc_run), "--run-dir", str(tmp_path / "p")])
    line_with(capsys.readouterr().out, tsc_run / "last.pth.tar", "encoder_q", "not used", "queue")
    ours, expected = (json.loads((run / "results.json").read_text()) for run in (tmp_path / "p", probe_run))
    assert ours["last"] == expected["last"] and ours["pretrained"] == str(tsc_run / "last.pth.tar")
    stage1.main([*flags, "--epochs", "1", "--init-from", str(tsc_run), "--run-dir", str(tmp_path / "run")])
    line_with(capsys.readouterr().out, "init", tsc_run / "last.pth.tar", "encoder_q")


@pytest.mark.parametrize("prefix", ["module.", ""])
def test_both_stages_continue_from_release_checkpoint(prefix, flags, probe_flags, tsc_run, tmp_path):
    """The checkpoint has only the entries of the authors' code. Stage 1 resumes it, and stage 2 probes it.

    The authors' code counts the epoch in the file name from 0: checkpoint_0000 is written after one epoch.
    """
    ours = checkpoint.read_checkpoint(tsc_run / "checkpoint_0001.pth.tar")
    weights = {prefix + key: value for key, value in checkpoint.strip_prefix(ours["state_dict"]).items()}
    targets = checkpoint.strip_prefix(ours["state_dict"])["optimal_target"]
    weights[prefix + "optimal_target_unique"] = targets.T
    weights[prefix + "target_labels"] = torch.arange(10)[:, None]
    theirs = {"epoch": ours["epoch"], "arch": ours["arch"], "state_dict": weights, "optimizer": ours["optimizer"]}
    assert theirs["epoch"] == 1
    torch.save(theirs, tmp_path / "checkpoint_0000.pth.tar")

    tsc = ["--epochs", "2", "--targeted", "--sep_t", "--tw", "0.2", "--run-dir", str(tmp_path / "run")]
    stage1.main([*flags, *tsc, "--resume", str(tmp_path / "checkpoint_0000.pth.tar")])
    assert [entry["epoch"] for entry in read_log(tmp_path / "run" / "log.jsonl")] == [2]
    resumed, whole = (checkpoint.read_checkpoint(run / "last.pth.tar") for run in (tmp_path / "run", tsc_run))
    torch.testing.assert_close(resumed["state_dict"], whole["state_dict"], rtol=0, atol=0)

    pretrained = ["--pretrained", str(tmp_path / "checkpoint_0000.pth.tar")]
    probe = [*pretrained, "--epochs", "1", "--run-dir", str(tmp_path / "probe")]
    stage2.main([*probe_flags, *probe])
    assert json.loads((tmp_path / "probe" / "results.json").read_text())["last"]["epoch"] == 1
