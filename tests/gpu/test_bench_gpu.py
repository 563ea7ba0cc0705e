"""make gpu on a machine without one: its rehearsal and what it keeps; and that it says there is none."""

import json
import signal
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import device, keeping
from benchmarks.gpu.plan import rehearsal
from tests import ROOT
from utils import errors

FACTS = {"beside": {"KCL, all off": 1.04}, "gains": {"KCL": 2.9}, "waits": {"KCL": 0, "KCL, the release's way": 9}}


def rows(text: str, title: str) -> list[str]:
    """The first column of the rows of a section's table; its other lines as they are."""
    lines = text.split(f"\n## {title}\n")[1].split("\n## ")[0].splitlines()
    return [line.split("|")[1].strip() if line.startswith("|") else line for line in lines if line]


FLAGS = ("all off", "bf16 + channels-last + compile (compile needs CUDA)")
BY_METHOD = [f"{method}, " for method in ("KCL", "TSC")]
TYPES = ("float64", "float32, no TF32 anywhere", "float32, all flags off", "float32, --tf32")
CASES = ["CPU, float32", *(f"GPU, {name}" for name in TYPES)]
EXPECTED = {
    "tests": ["`pytest -m gpu`: needs CUDA"],
    "encoders": [f"step, {method}{flags}" for flags in FLAGS for method in BY_METHOD],
    "ways": ["KCL", "TSC", "TSC, 40 classes"],
    "waits": ["KCL", "KCL, the release's way", "TSC", "TSC, the release's way"],
    "probe": [
        f"{what}, {flags}{size}"
        for flags in FLAGS
        for what, size in (
            ("probe", ""),
            ("evaluation", ", in batches of 32"),
            ("evaluation", ", in batches of 256"),
        )
    ],
    "agreement": [f"{method}{case}" for method in BY_METHOD for case in CASES],
    "loader": ["default", "--device-aug"],
    "epochs": [
        *(f"imagenet (115,846 images), {method}off, loader default" for method in BY_METHOD),
        *(f"imagenet (115,846 images), {method}fast, loader --device-aug" for method in BY_METHOD),
        *(f"inat (437,513 images), {method}fast, loader --device-aug" for method in BY_METHOD),
    ],
    "real_sizes": [
        f"`benchmarks/real_sizes.py --dataset {data}`: needs CUDA (on a CPU it takes minutes)"
        for data in ("imagenet", "inat")
    ],
}


def test_a_rehearsal_has_every_row_and_leaves_nothing(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gpu, "PAGE", tmp_path / "page.md")
    gpu.main(["--rehearse"])
    text = capsys.readouterr().out
    assert text.startswith(gpu.REHEARSAL) and list(tmp_path.iterdir()) == []
    page = text.split("# Benchmarks on a GPU")[1]
    assert gpu.REHEARSAL in page and "| aim |" not in page  # tiny sizes on a CPU meet none
    for part in gpu.PARTS:
        found = rows(page, part.title)
        assert [row for row in found if row in EXPECTED[part.name]] == EXPECTED[part.name], part.name
    only = [line for line in page.splitlines() if "GPU, float" in line or "the release's way |" in line[:40]]
    assert len(only) == 2 * len(TYPES) + 2 and all("needs CUDA" in line for line in only)


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
        assert err.startswith("error: no CUDA device: PyTorch ") and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_make_asks_for_the_device_first():
    makefile = (ROOT / "Makefile").read_text()
    assert "test-gpu: venv\n\t@$(PY) -m benchmarks.gpu.device\n\t$(PY) -m pytest -m gpu\n" in makefile
    assert "gpu: venv\n\t@$(PY) -m benchmarks.gpu\n" in makefile


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
    assert "error: Part a: RuntimeError: CUDA error: out of luck\n" in out and "a failed, see above" in out
    starts()
    assert starts.ran == [*"abca"] and starts.page.exists()


def test_the_page_says_which_aims_were_met(starts):
    starts()
    files = sorted(Path("runs/gpu", starts.key).glob("*.json"))
    lines = gpu.aims({file.stem: json.loads(file.read_text()) for file in files}).splitlines()[2:]
    assert lines == [
        "| step ÷ bare encoders, KCL, all off | 1.04 | ≤ 1.05 | yes |",
        "| images/s, bf16 + channels-last + compile ÷ all off, KCL | 2.9 | ≥ 3 | no |",
        "| waits outside the assignment, KCL | 0 | 0 | yes |",
    ]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"lines": []}'])
def test_a_damaged_part_is_named(starts, text):
    starts()
    file = Path("runs/gpu") / starts.key / "b.json"
    file.write_text(text)
    with pytest.raises(errors.InputError, match=r"b\.json: no finished part .*; delete it, or start with --fresh"):
        starts()


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
