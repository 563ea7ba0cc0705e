"""The plan of a run is read-only, in its own process and in the processes it starts."""

import pickle
from dataclasses import FrozenInstanceError
from types import SimpleNamespace

import pytest

import main_lincls_imba as stage2
import main_moco_supcon_imba as stage1
from examples import cross_entropy


@pytest.mark.parametrize("script", [stage1, stage2, cross_entropy])
def test_launched_plan_is_read_only_and_can_be_pickled(script, flags, probe_flags, tsc_run, tmp_path, monkeypatch):
    plans = []
    fake_launch = {"launch": lambda worker, plan, config, shared: plans.append(plan)}
    monkeypatch.setattr(script, "launch", SimpleNamespace(**(vars(script.launch) | fake_launch)))
    words = flags if script is stage1 else probe_flags
    words = [*words, "--pretrained", str(tsc_run / "last.pth.tar")] if script is stage2 else words
    script.main([*words, "--run-dir", str(tmp_path / "run")])
    for plan in (plans[0], pickle.loads(pickle.dumps(plans[0]))):
        assert plan.run.arch == "resnet20" and plan.run.arguments.values["arch"] == "resnet20"
        with pytest.raises(FrozenInstanceError):
            plan.run = None
        with pytest.raises(FrozenInstanceError):
            plan.run.epochs = 1
