"""What a soak has found: a line a case in cases.jsonl, counted in summary.json and, as tables, in summary.md."""

import json
import os
import platform
from collections import Counter
from datetime import date
from pathlib import Path

import torch

from utils.files import write_text
from utils.measure.results import markdown

CASES, SUMMARY, TABLE = "cases.jsonl", "summary.json", "summary.md"
HEADING = "## What came out"  # of the page's section that is written by the command
GOOD = {  # outcome -> what a table calls it
    "same bits": "same bits",
    "used": "used",
    "refused": "refused in one line",
    "stopped in one line while it ran": "stopped in one line",
    "same bits after a refusal": "refused, then same bits",
}


def read(folder: Path) -> list[dict]:
    """The cases that have ended; a last line that is half is of one that has not."""
    path, found = folder / CASES, []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def add(folder: Path, result: dict) -> None:
    """One line; on a line of its own even behind a half one."""
    path = folder / CASES
    whole = not path.exists() or not path.stat().st_size or path.read_bytes()[-1:] == b"\n"
    with path.open("a") as file:
        file.write(("" if whole else "\n") + json.dumps(result) + "\n")


def write(folder: Path, command: str) -> None:
    """summary.json and summary.md, anew."""
    cases = read(folder)
    about = {
        "command": command,
        "date": date.today().isoformat(),
        "machine": f"{platform.system()} on {platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "hours": round(sum(case["seconds"] for case in cases) / 3600, 2),
        "cases": len(cases),
        "kills": sum(case.get("kills", 0) for case in cases),
        "failures": sum(case["outcome"] not in GOOD for case in cases),
    }
    areas: dict[str, dict[str, dict]] = {}
    for case in cases:
        entry = areas.setdefault(case["area"], {}).setdefault(case["kind"], {"kills": 0, "outcomes": Counter()})
        entry["kills"] += case.get("kills", 0)
        entry["outcomes"][case["outcome"]] += 1
    bad = [case for case in cases if case["outcome"] not in GOOD]
    text = json.dumps({"about": about, "areas": areas, "failures": bad}, indent=2)
    write_text(folder / SUMMARY, text + "\n")
    write_text(folder / TABLE, page(about, areas, cases, bad))


def page(about: dict, areas: dict, cases: list[dict], bad: list[dict]) -> str:
    """The Markdown of it all."""
    head = (
        f"{about['date']}, `{about['command']}`: {about['cases']} cases, {about['kills']} kills, {about['failures']} "
        f"failures, {about['hours']:.1f} hours of cases; PyTorch {about['torch']}, Python {about['python']}, "
        f"{about['machine']}."
    )
    parts = [head]
    for area, kinds in areas.items():
        names = [name for name in GOOD if any(name in entry["outcomes"] for entry in kinds.values())]
        killed = any(entry["kills"] for entry in kinds.values())
        rows = []
        for kind, entry in sorted(kinds.items()):
            rows.append(row(kind, [entry], names, killed))
        rows.append(row("all", list(kinds.values()), names, killed))
        header = ["what", "cases", *(["kills"] if killed else []), *(GOOD[name] for name in names), "failures"]
        parts += [f"**{area}**", markdown(header, rows)]
    if launched := Counter(f"{case['launcher']}, {case['processes']}" for case in cases if "launcher" in case):
        kills = Counter()
        for case in cases:
            if "launcher" in case:
                kills[f"{case['launcher']}, {case['processes']}"] += case["kills"]
        rows = [[name, str(launched[name]), str(kills[name])] for name in sorted(launched)]
        parts += ["**kills, by how the runs were started, and by how many processes**"]
        parts += [markdown(["start, processes", "cases", "kills"], rows)]
    if bad:
        counted = Counter((case["area"], case["kind"], case["outcome"]) for case in bad)
        first = {}
        for case in bad:
            first.setdefault((case["area"], case["kind"], case["outcome"]), f"{case['area']} {case['case']}")
        rows = [[*key, str(count), first[key]] for key, count in sorted(counted.items())]
        parts += ["**failures**", markdown(["area", "what", "outcome", "cases", "the first, for --case"], rows)]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def row(kind: str, entries: list[dict], names: list[str], killed: bool) -> list[str]:
    """A row of a table: the counts of some kinds together."""
    outcomes = sum((entry["outcomes"] for entry in entries), Counter())
    kills = [str(sum(entry["kills"] for entry in entries))] if killed else []
    bad = outcomes.total() - sum(outcomes[name] for name in GOOD)
    return [kind, str(outcomes.total()), *kills, *(str(outcomes[name]) for name in names), str(bad)]


def write_page(folder: Path, place: Path) -> None:
    """Put the tables into a page, in place of its section HEADING's."""
    before, rest = place.read_text().split(f"{HEADING}\n")
    after = rest.partition("\n## ")[2]
    table = (folder / TABLE).read_text()
    write_text(place, f"{before}{HEADING}\n\n{table}" + (f"\n## {after}" if after else ""))
