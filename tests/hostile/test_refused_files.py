"""Damaged or malicious logs, results, arguments and targets are refused quickly, in one line."""

import json
from pathlib import Path

import numpy as np

import target_generation
from moco.targets.files import load_targets
from tests.hostile.table import copy_run, parametrize, replace_value
from tests.refusals import at_line
from utils.report import __main__ as report
from utils.report.runs import read_run
from utils.run.logger import RunLog, read_log

HUGE = 10**15
DEEP = "[" * 100_000 + "]" * 100_000


def json_of(name: str, read):
    """Return a reader that puts the bad value at a place in the run's JSON file and calls read("run")."""

    def reader(bad, folder, fixture):
        fixture("probe_run")
        path = copy_run(fixture("tsc_run"), folder) / name
        path.write_text(json.dumps(replace_value(json.loads(path.read_text()), *bad)))
        return lambda: read(folder / "run")

    return reader


def report_on(run):
    report.main([str(run)])


def content_of(name: str):
    """Return a reader that writes the bad content to this file of the run."""

    def reader(content, folder, fixture):
        fixture("probe_run")
        (copy_run(fixture("tsc_run"), folder) / name).write_bytes(content)
        return lambda: report_on(folder / "run")

    return reader


def log_line(read):
    """Return a reader that writes the bad line as the second line of log.jsonl and calls read(path)."""

    def reader(line, folder, fixture):
        (folder / "log.jsonl").write_bytes(b'{"epoch": 1, "loss": 2}\n' + line + b'\n{"epoch": 3}\n')
        return lambda: read(Path("log.jsonl"))

    return reader


def resume_log(path):
    RunLog(path.parent, {"seed": 1}, (), 3)


def targets(content, folder, fixture):
    (folder / "t.npy").write_bytes(content)
    return lambda: load_targets(folder / "t.npy", 10, 16)


def target_archive(array, folder, fixture):
    np.savez(folder / "t.npz", a=array)
    return lambda: load_targets(folder / "t.npz", 3, 3)


def target_numbers(array, folder, fixture):
    np.save(folder / "t.npy", array)
    return lambda: load_targets(folder / "t.npy", *array.shape)


def target_flags(words, folder, fixture):
    return lambda: target_generation.main([*words.split(), "--output", "t.npy", "--device", "cpu"])


def header(text: str) -> bytes:
    """Return a .npy file with this header and 8 bytes of data."""
    padded = text.encode().ljust(118) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded + bytes(8)


RESULTS = [
    (("selected",), [1], "selected [1]"),
    (("selected", "acc1"), "90", "selected acc1 '90'"),
    (("last", "acc1"), None, "last acc1 None"),
    (("last", "few"), 101, "last few 101"),
    (("best_on_test", "balanced"), {"a": 1}, ("best_on_test", "balanced", "{'a': 1}")),
    (("selected", "per_class", 0), "x", "per_class 'x'"),
    (("selected", "per_class", 0), ..., "per_class 9 train_counts 10"),
    (("selected", "epoch"), [2], "epoch [2]"),
    (("selected", "values"), 0, "values 0"),
    (("train_counts", 3), -1, "train_counts -1"),
    (("train_counts",), [0] * 10, "train_counts"),
    (("chosen",), "val", "chosen 'val'"),
    (("chosen", "on"), 5, "chosen 5"),
    (("heads",), [], "heads []"),
    (("heads",), {"ncm": None}, "head ncm None"),
]
ARGS = [
    (("args",), [], "args seed"),
    (("args", "seed"), "1", "args seed"),
    (("args", "seed"), ..., "args seed"),
    (("args", "tw"), {"a": 1}, ("tw", "{'a': 1}")),
    (("args", "schedule"), [[1]], "schedule [[1]]"),
    (("args", "views"), "a\0b", r"views 'a\x00b'"),
    (("args", "pretrained"), 5, "pretrained 5"),
    (("args", "lr"), 10**400, "lr 1000"),
]
LINES = [
    (b"5", "5"),
    (b"{}", "{}"),
    (b'{"epoch": "1"}', ("{'epoch': '1'}",)),
    (b'{"epoch": 1e3}', "1000.0"),
    (b'{"epoch": 10000000000000000000}', "10000000000000000000"),
    (b'{"epoch": 1, "loss": "low"}', "loss 'low'"),
    (b'{"epoch": 1, "loss": 1e999}', "loss inf"),
    (b'{"epoch": 1, "val": {"top1": [1]}}', "val_top1 [1]"),
    (b'{"epoch": 1, "val": {"top1": {}}}', "val_top1 {}"),
    (b"\xff\xfe\x00\x9f", "JSON"),
    (DEEP.encode(), "JSON"),
]
TARGETS = [
    (header(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({HUGE}, 16)}}"), ".npy"),
    (header("{'descr': '<f4', 'fortran_order': False, 'shape': (10, 16)}"), ".npy"),
    (header("{'descr': '<f4', 'fortran_order': False, 'shape': (10L, 16)}"), ".npy"),
    (header("{'descr': '<f8', 'fortran_order': False, 'shape': (1L, 1)}"), ("(1, 1)", "(10, 16)")),
    (header("{'descr': '|O', 'fortran_order': False, 'shape': (1, 1)}"), ".npy"),
    (header("(" * 90), ".npy"),
    (b"PK\x03\x04 an archive", ".npz"),
    (b"1.0,2.0\n", "1.0,2."),
]
CONTENTS = (b"\xff\xfe\x00binary", b"", b"5", b"[1]", b"null", DEEP.encode(), b'{"a": 1e')


def with_names(facts: str | tuple, *names: object) -> tuple:
    return (*names, *(facts.split() if isinstance(facts, str) else facts))


ROWS = [
    *(
        (f"results {at}", json_of("probe/results.json", report_on), (at, new), with_names(facts, "results.json"))
        for at, new, facts in RESULTS
    ),
    *(
        (f"args {at}", json_of("args.json", read_run), (at, new), with_names(facts, "args.json"))
        for at, new, facts in ARGS
    ),
    *((name, content_of(name), content, name) for name in ("args.json", "probe/results.json") for content in CONTENTS),
    *(
        ("log", log_line(read), line, with_names(facts, at_line("log.jsonl", 2)))
        for read in (read_log, resume_log)
        for line, facts in LINES
    ),
    *(("targets", targets, content, with_names(facts, "t.npy")) for content, facts in TARGETS),
    ("targets: archive", target_archive, np.eye(3, dtype=np.float32), "t.npz .npy"),
    ("targets: no float32", target_numbers, np.full((2, 3), 1e300), "t.npy"),
    ("targets: one dimension", target_flags, "--dim 1 --num-classes 3", "3 1 −1"),
]


@parametrize(ROWS)
def test_bad_file_is_refused(reader, bad, facts, check):
    check(reader, bad, facts)


def test_one_dimension_allows_two_targets(tmp_path):
    target_generation.main(f"--dim 1 --num-classes 2 --output {tmp_path}/t.npy --device cpu".split())
    assert sorted(np.load(tmp_path / "t.npy")[:, 0].tolist()) == [-1, 1]
