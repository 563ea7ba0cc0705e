"""make gpu on a machine without a GPU: its smoke test, the parts that it stores, and its error."""

import json
import signal
import sys

import pytest
import torch

from benchmarks import bench_probe
from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import data, device, part_store
from benchmarks.gpu.plan import NEEDS_CUDA, smoke_plan
from tests import ROOT
from tests.refusals import exit_message, line_with, refusal
from utils import errors

METRICS = {
    "encoder_ratios": {"KCL, all off": 1.04},
    "speedups": {"KCL": 2.9},
    "syncs": {"KCL": 0, "KCL, authors' code": 9},
}


# Rows of each part's table.
ROWS = {"encoders": 4, "implementations": 3, "syncs": 4, "probe": 6, "agreement": 10, "loader": 2, "epochs": 6}
ROWS_WITHOUT_GPU = {"tests": 1, "syncs": 4, "agreement": 8, "real_sizes": 2}  # rows or lines that need a GPU


def test_smoke_test_prints_every_row_and_writes_nothing(monkeypatch, tmp_path, capsys):
    """Uses smaller batches and fewer rounds than the command."""
    tiny = ("resnet20", 8, 8)
    plan = smoke_plan()._replace(size=tiny, agreement_size=tiny, rounds=1)
    monkeypatch.setattr(gpu, "smoke_plan", lambda: plan)
    monkeypatch.setattr(data, "TURNS", 1)
    monkeypatch.setattr(bench_probe, "ROUNDS", 1)
    monkeypatch.setattr(bench_probe, "IMAGES", 32)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gpu, "PAGE", tmp_path / "page.md")
    gpu.main(["--rehearse"])
    text = capsys.readouterr().out
    assert text.startswith(gpu.SMOKE_NOTE) and list(tmp_path.iterdir()) == []
    page = text.split("# Benchmarks on a GPU")[1]
    assert gpu.SMOKE_NOTE in page and "| goal |" not in page  # tiny sizes on a CPU are not compared with the goals
    for part in gpu.PARTS:
        lines = page.split(f"\n## {part.title}\n")[1].split("\n## ")[0].splitlines()
        rows = [line for line in lines if line.startswith("|")][2:]  # below the header
        assert len(rows) == ROWS.get(part.name, 0), part.name
        if part.name in ROWS_WITHOUT_GPU:
            assert sum(NEEDS_CUDA in line for line in rows or lines) == ROWS_WITHOUT_GPU[part.name]


@pytest.mark.parametrize("flag", [["--fresh"], ["--store", "parts.json"]], ids=str)
def test_smoke_test_refuses_flags_of_the_store(flag, capsys):
    exit_message(lambda: gpu.main(["--rehearse", *flag]), capsys, flag[0], "--rehearse")


def test_without_gpu_prints_one_error_and_writes_nothing(monkeypatch, capsys, tmp_path):
    """Checks `make gpu`, `make gpu --fresh`, and the first command of `make test-gpu`."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu, "PAGE", tmp_path / "page.md")
    monkeypatch.chdir(tmp_path)
    for words, main in (([], gpu.main), (["--fresh"], gpu.main), ([], device.require_cuda)):
        monkeypatch.setattr(sys, "argv", ["benchmarks.gpu", *words])
        with pytest.raises(SystemExit) as end:
            errors.run(main)
        out, err = capsys.readouterr()
        assert end.value.code == 2 and out == ""
        assert err == line_with(err, "error: ", "CUDA", torch.__version__) + "\n"
    assert list(tmp_path.iterdir()) == []


def test_make_test_gpu_checks_device_before_tests():
    recipe = (ROOT / "Makefile").read_text().split("\ntest-gpu:")[1].split("\n\n")[0]
    assert 0 < recipe.index("-m benchmarks.gpu.device") < recipe.index("-m pytest")


@pytest.fixture
def make_gpu(monkeypatch, tmp_path):
    """Return a call of make gpu, as on a machine with a GPU, with three parts that record when they run.

    Its attributes: ran, the names of the parts that ran; failures, what parts raise once; key, of the machine.
    """

    class MakeGpu:
        ran, failures, key, page = [], {}, "commit GPU torch", tmp_path / "page.md"

        def __call__(self, *words: str) -> None:
            gpu.main(list(words))

        def part(self, name: str, facts: dict) -> gpu.Part:
            def run(plan, part_facts):
                self.ran.append(name)
                if name in self.failures:
                    raise self.failures.pop(name)
                yield f"{name} was run"
                part_facts |= facts

            return gpu.Part(name, f"Part {name}", 1, run)

    command = MakeGpu()
    command.ran, command.failures = [], {}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gpu, "PAGE", command.page)
    monkeypatch.setattr(
        gpu, "PARTS", tuple(command.part(name, {key: METRICS[key]}) for name, key in zip("abc", METRICS, strict=True))
    )
    monkeypatch.setattr(gpu, "require_cuda", lambda: None)
    monkeypatch.setattr(gpu, "full_plan", smoke_plan)
    monkeypatch.setattr(gpu, "free_memory", lambda: None)  # no models exist, and the search takes a second
    monkeypatch.setattr(gpu, "machine_key", lambda: command.key)
    handler = signal.getsignal(signal.SIGTERM)
    yield command
    signal.signal(signal.SIGTERM, handler)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(143)], ids=["Ctrl-C", "SIGTERM"])
def test_interrupted_benchmark_resumes_at_interrupted_part(make_gpu, error):
    make_gpu.failures["b"] = error
    with pytest.raises(type(error)):
        make_gpu()
    assert make_gpu.ran == ["a", "b"] and not make_gpu.page.exists()
    make_gpu()
    assert make_gpu.ran == ["a", "b", "b", "c"]  # the finished part did not run again
    assert all(f"## Part {name}\n\n{name} was run\n" in make_gpu.page.read_text() for name in "abc")
    make_gpu()
    assert make_gpu.ran == ["a", "b", "b", "c"]


def test_other_machine_key_or_fresh_runs_all_parts_again(make_gpu):
    make_gpu()
    make_gpu.key = "another"
    make_gpu()
    assert make_gpu.ran == [*"abcabc"]
    make_gpu("--fresh")
    assert make_gpu.ran == [*"abcabcabc"]
    make_gpu.key = "commit GPU torch"  # its stored parts still exist
    make_gpu()
    assert make_gpu.ran == [*"abcabcabc"]


def test_failed_part_does_not_stop_others_and_is_missing_on_page(make_gpu, capsys):
    make_gpu.failures["a"] = RuntimeError("CUDA error: out of luck\nand more")
    with pytest.raises(SystemExit) as end:
        make_gpu()
    assert end.value.code == 1 and make_gpu.ran == [*"abc"]
    assert "## Part a\n\nNot measured yet.\n\n## Part b\n\nb was run" in make_gpu.page.read_text()
    out = capsys.readouterr().out
    line_with(out, "error: ", "Part a", "RuntimeError: CUDA error: out of luck")
    assert "and more" not in out
    make_gpu()
    assert make_gpu.ran == [*"abca"] and "Not measured" not in make_gpu.page.read_text()


def test_parts_that_do_not_fit_the_minutes_are_measured_later(make_gpu, monkeypatch, capsys):
    """Part a takes a minute, b 8 and c 2, and c uses the metrics of b."""
    a, b, c = gpu.PARTS
    minutes = {"a": 1, "b": 8, "c": 2}
    monkeypatch.setattr(gpu, "PARTS", (a, b._replace(minutes=8), c._replace(minutes=2, needs=("b",))))
    monkeypatch.setattr(gpu.time, "monotonic", lambda: 60.0 * sum(minutes[name] for name in make_gpu.ran))
    make_gpu("--minutes", "5")
    assert make_gpu.ran == ["a"] and "## Part b\n\nNot measured yet." in make_gpu.page.read_text()
    line_with(capsys.readouterr().out, "missing", "b", "c")
    make_gpu("--minutes", "10")
    assert make_gpu.ran == [*"abc"] and "Not measured" not in make_gpu.page.read_text()


def test_benchmark_continues_from_the_file_of_another_machine(make_gpu, tmp_path):
    make_gpu("--store", str(tmp_path / "first.json"))
    (tmp_path / "first.json").rename(tmp_path / "copied.json")
    make_gpu("--store", str(tmp_path / "copied.json"))
    assert make_gpu.ran == [*"abc"]


def test_page_says_which_goals_were_met(make_gpu):
    make_gpu()
    table = gpu.goals_table(json.loads(gpu.STORE.read_text())[make_gpu.key])
    cells = [[cell.strip() for cell in line.split("|")[2:-1]] for line in table.splitlines()[2:]]
    assert cells == [["1.04", "≤ 1.05", "yes"], ["2.9", "≥ 3", "no"], ["0", "0", "yes"]]


def test_error_names_damaged_store(make_gpu):
    make_gpu()
    for text in ("", "{", "[]", f'{{"{make_gpu.key}": {{"b": {{"lines": []}}}}}}'):
        gpu.STORE.write_text(text)
        refusal(make_gpu, gpu.STORE, "damaged")


def test_machine_key_depends_on_code_gpu_and_version(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB/HBM3")
    monkeypatch.setattr(part_store, "code_version", lambda: "abc-1")
    first = part_store.machine_key()
    assert first == f"1_NVIDIA_H100_80GB_HBM3_torch_{torch.__version__}"
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA A100")
    assert part_store.machine_key() != first

    monkeypatch.undo()
    (tmp_path / "utils").mkdir()
    (tmp_path / "utils" / "a.py").write_text("1")
    before = part_store.code_version(tmp_path)
    (tmp_path / "notes.md").write_text("no code")
    assert part_store.code_version(tmp_path) == before and before.startswith("no-commit-")
    (tmp_path / "utils" / "a.py").write_text("2")
    assert part_store.code_version(tmp_path) != before
