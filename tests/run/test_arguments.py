"""The arguments of a run are read only once it begins, in its own process and in those it starts."""

import pickle
from types import SimpleNamespace

import pytest

import main_lincls_imba as stage2
import main_moco_supcon_imba as stage1
from examples import cross_entropy


@pytest.mark.parametrize("script", [stage1, stage2, cross_entropy])
def test_a_script_cannot_write_to_them_any_more(script, flags, probe_flags, tsc_run, tmp_path, monkeypatch):
    given = []
    launched = {"launch": lambda worker, args: given.append(args)}
    monkeypatch.setattr(script, "launch", SimpleNamespace(**(vars(script.launch) | launched)))
    words = flags if script is stage1 else probe_flags
    words = [*words, "--pretrained", str(tsc_run / "last.pth.tar")] if script is stage2 else words
    script.main([*words, "--run-dir", str(tmp_path / "run")])
    for args in (given[0], pickle.loads(pickle.dumps(given[0]))):
        assert args.arch == "resnet20"
        with pytest.raises(AttributeError, match="lr"):
            args.lr = 1.0
