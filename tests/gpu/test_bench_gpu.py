"""make gpu on a machine without one: its rehearsal and what it keeps; and that it says there is none."""

import json
import signal
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import bench_probe
from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import data, device, keeping
from benchmarks.gpu.plan import NEEDS_CUDA, rehearsal
from tests import ROOT
from tests.refusals import line_with, refusal
from utils import errors

FACTS = {"beside": {"KCL, all off": 1.04}, "gains": {"KCL": 2.9}, "waits": {"KCL": 0, "KCL, the release's way": 9}}


ROWS = {"encoders": 4, "ways": 3, "waits": 4, "probe": 6, "agreement": 10, "loader": 2, "epochs": 6}  # of their tables
WITHOUT_A_GPU = {"tests": 1, "waits": 4, "agreement": 8, "real_sizes": 2}  # rows or lines that need one


def test_a_rehearsal_has_every_row_and_leaves_nothing(monkeypatch, tmp_path, capsys):
    """With smaller batches and fewer rounds than the command's."""
    tiny = ("resnet20", 8, 8)
    plan = rehearsal()._replace(size=tiny, agree=tiny, rounds=1)
    monkeypatch.setattr(gpu, "rehearsal", lambda: plan)
    monkeypatch.setattr(data, "TURNS", 1)
    monkeypatch.setattr(bench_probe, "ROUNDS", 1)
    monkeypatch.setattr(bench_probe, "IMAGES", 32)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gpu, "PAGE", tmp_path / "page.md")
    gpu.main(["--rehearse"])
    text = capsys.readouterr().out
    assert text.startswith(gpu.REHEARSAL) and list(tmp_path.iterdir()) == []
    page = text.split("# Benchmarks on a GPU")[1]
    assert gpu.REHEARSAL in page and "| aim |" not in page  # tiny sizes on a CPU meet none
    for part in gpu.PARTS:
        lines = page.split(f"\n## {part.title}\n")[1].split("\n## ")[0].splitlines()
        rows = [line for line in lines if line.startswith("|")][2:]  # below the header
        assert len(rows) == ROWS.get(part.name, 0), part.name
        if part.name in WITHOUT_A_GPU:
            assert sum(NEEDS_CUDA in line for line in rows or lines) == WITHOUT_A_GPU[part.name]


def test_without_a_device_one_line_and_nothing_written(monkeypatch, capsys, tmp_path):
    """`make gpu`, `make gpu --fresh`, and what `make test-gpu` asks first."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu, "PAGE", tmp_path / "page.md")
    monkeypatch.chdir(tmp_path)
    for words, main in (([], gpu.main), (["--fresh"], gpu.main), ([], device.need_cuda)):
        monkeypatch.setattr(sys, "argv", ["benchmarks.gpu", *words])
        with pytest.raises(SystemExit) as end:
            errors.run(main)
        out, err = capsys.readouterr()
        assert end.value.code == 2 and out == ""
        assert err == line_with(err, "error: ", "CUDA", torch.__version__) + "\n"
    assert list(tmp_path.iterdir()) == []


def test_make_test_gpu_asks_for_the_device_before_it_starts_the_tests():
    recipe = (ROOT / "Makefile").read_text().split("\ntest-gpu:")[1].split("\n\n")[0]
    assert 0 < recipe.index("-m benchmarks.gpu.device") < recipe.index("-m pytest")


@pytest.fixture
def starts(monkeypatch, tmp_path):
    """start(*words) of make gpu on a machine that has a GPU, with three parts that note when they run.

    Its attributes: ran, the names; trouble, what a part raises once; key, of the machine.
    """

    class Starts:
        ran, trouble, key, page = [], {}, "commit GPU torch", tmp_path / "page.md"

        def __call__(self, *words: str) -> None:
            gpu.main(list(words))

        def part(self, name: str, facts: dict) -> gpu.Part:
            def run(plan, own):
                self.ran.append(name)
                if name in self.trouble:
                    raise self.trouble.pop(name)
                yield f"{name} was run"
                own |= facts

            return gpu.Part(name, f"Part {name}", 1, run)

    start = Starts()
    start.ran, start.trouble = [], {}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gpu, "PAGE", start.page)
    monkeypatch.setattr(
        gpu, "PARTS", tuple(start.part(name, {key: FACTS[key]}) for name, key in zip("abc", FACTS, strict=True))
    )
    monkeypatch.setattr(gpu, "need_cuda", lambda: None)
    monkeypatch.setattr(gpu, "full", rehearsal)
    monkeypatch.setattr(gpu, "forget_models", lambda: None)  # there are none, and the search takes a second
    monkeypatch.setattr(gpu, "machine_key", lambda: start.key)
    handler = signal.getsignal(signal.SIGTERM)
    yield start
    signal.signal(signal.SIGTERM, handler)


@pytest.mark.parametrize("trouble", [KeyboardInterrupt(), SystemExit(143)], ids=["Ctrl-C", "SIGTERM"])
def test_an_interrupted_start_goes_on(starts, trouble):
    starts.trouble["b"] = trouble
    with pytest.raises(type(trouble)):
        starts()
    assert starts.ran == ["a", "b"] and not starts.page.exists()
    starts()
    assert starts.ran == ["a", "b", "b", "c"]  # the finished one was not run again
    assert all(f"## Part {name}\n\n{name} was run\n" in starts.page.read_text() for name in "abc")
    starts()
    assert starts.ran == ["a", "b", "b", "c"]


def test_another_commit_or_gpu_starts_anew_and_so_does_fresh(starts):
    starts()
    starts.key = "another"
    starts()
    assert starts.ran == [*"abcabc"]
    starts("--fresh")
    assert starts.ran == [*"abcabcabc"]
    starts.key = "commit GPU torch"  # whose parts are still there
    starts()
    assert starts.ran == [*"abcabcabc"]


def test_a_part_that_fails_takes_no_other_down_and_no_page_is_written(starts, capsys):
    starts.trouble["a"] = RuntimeError("CUDA error: out of luck\nand more")
    with pytest.raises(SystemExit) as end:
        starts()
    assert end.value.code == 1 and starts.ran == [*"abc"] and not starts.page.exists()
    out = capsys.readouterr().out
    line_with(out, "error: ", "Part a", "RuntimeError: CUDA error: out of luck")
    assert "and more" not in out
    starts()
    assert starts.ran == [*"abca"] and starts.page.exists()


def test_the_page_says_which_aims_were_met(starts):
    starts()
    files = sorted(Path("runs/gpu", starts.key).glob("*.json"))
    table = gpu.aims({file.stem: json.loads(file.read_text()) for file in files})
    cells = [[cell.strip() for cell in line.split("|")[2:-1]] for line in table.splitlines()[2:]]
    assert cells == [["1.04", "≤ 1.05", "yes"], ["2.9", "≥ 3", "no"], ["0", "0", "yes"]]


def test_a_damaged_part_is_named(starts):
    starts()
    file = Path("runs/gpu") / starts.key / "b.json"
    for text in ("", "{", "[]", '{"lines": []}'):
        file.write_text(text)
        refusal(starts, file, "--fresh")


def test_the_key_follows_code_gpu_and_version(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB/HBM3")
    monkeypatch.setattr(keeping, "code_version", lambda: "abc-1")
    first = keeping.machine_key()
    assert first == f"abc-1_NVIDIA_H100_80GB_HBM3_torch_{torch.__version__}"
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA A100")
    assert keeping.machine_key() != first

    monkeypatch.undo()
    (tmp_path / "utils").mkdir()
    (tmp_path / "utils" / "a.py").write_text("1")
    before = keeping.code_version(tmp_path)
    (tmp_path / "notes.md").write_text("no code")
    assert keeping.code_version(tmp_path) == before and before.startswith("no-commit-")
    (tmp_path / "utils" / "a.py").write_text("2")
    assert keeping.code_version(tmp_path) != before
