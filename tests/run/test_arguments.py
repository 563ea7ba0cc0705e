"""The plan of a run is read-only in every process, and the run starts from the expected state."""

import pickle
from dataclasses import FrozenInstanceError
from types import SimpleNamespace

import pytest
import torch

import main_lincls_imba as stage2
import main_moco_supcon_imba as stage1
from examples import cross_entropy
from tests.refusals import refusal
from utils import distributed
from utils.cli.parser import parse
from utils.distributed.launch import ProcessInfo
from utils.run.resume import load_run, resolve_seed
from utils.run.state import RunState


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


def test_seed_is_that_of_the_checkpoint():
    assert resolve_seed(None, RunState(seed=3)) == resolve_seed(3, RunState(seed=3)) == 3
    refusal(lambda: resolve_seed(4, RunState(seed=3)), "--seed 4", 3)


def test_new_run_without_seed_has_a_random_one_that_all_ranks_share(monkeypatch):
    assert resolve_seed(5, RunState()) == 5
    assert resolve_seed(None, RunState()) != resolve_seed(None, RunState())
    monkeypatch.setattr(distributed, "broadcast_object", lambda seed: 7)  # the main process's seed
    assert resolve_seed(None, RunState()) == 7


def start(*words: str) -> RunState:
    """Return the state that a run of stage 1 on the CPU with 3 workers starts from. Nothing is trained."""
    parser = stage1.get_args_parser()
    plan = stage1.prepare(parser, parse(parser, list(words))).run
    return load_run(plan, ProcessInfo(torch.device("cpu"), 3))


def test_state_stores_resolved_device_workers_and_seed(flags, tmp_path):
    at = flags.index("--seed")
    words = [*flags[:at], *flags[at + 2 :], "--device", "auto", "--run-dir", str(tmp_path / "run")]
    state = start(*words, "--start-epoch", "1")
    assert (state.epoch, state.arch) == (1, "resnet20") and state.seed is not None
    assert [state.args[name] for name in ("device", "workers", "seed")] == ["cpu", 3, state.seed]


def test_new_run_with_resume_auto_has_no_note_about_processes(flags, tmp_path, capsys):
    state = start(*flags, "--run-dir", str(tmp_path / "run"), "--resume", "auto")
    assert (state.epoch, state.source) == (0, None) and "bit-identical" not in capsys.readouterr().out


def test_run_can_continue_from_an_earlier_checkpoint_of_its_folder(flags, tsc_run):
    """The folder also has a checkpoint of epoch 2."""
    words = [*flags, "--epochs", "2", "--targeted", "--sep_t", "--tw", "0.2", "--run-dir", str(tsc_run)]
    assert start(*words, "--resume", str(tsc_run / "checkpoint_0001.pth.tar")).epoch == 1
    assert start(*words, "--resume", "auto").epoch == 2
