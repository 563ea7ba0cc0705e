"""The arguments of a run are read-only after the launch, in its own process and in the processes it starts."""

import pickle
from types import SimpleNamespace

import pytest

import main_lincls_imba as stage2
import main_moco_supcon_imba as stage1
from examples import cross_entropy


@pytest.mark.parametrize("script", [stage1, stage2, cross_entropy])
def test_launched_arguments_are_read_only(script, flags, probe_flags, tsc_run, tmp_path, monkeypatch):
    launched_args = []
    fake_launch = {"launch": lambda worker, args: launched_args.append(args)}
    monkeypatch.setattr(script, "launch", SimpleNamespace(**(vars(script.launch) | fake_launch)))
    words = flags if script is stage1 else probe_flags
    words = [*words, "--pretrained", str(tsc_run / "last.pth.tar")] if script is stage2 else words
    script.main([*words, "--run-dir", str(tmp_path / "run")])
    for args in (launched_args[0], pickle.loads(pickle.dumps(launched_args[0]))):
        assert args.arch == "resnet20"
        with pytest.raises(AttributeError, match="lr"):
            args.lr = 1.0
