"""The results of a soak test: cases.jsonl (one line per case), summary.json (counts) and summary.md (tables)."""

import json
import os
import platform
from collections import Counter
from datetime import date
from pathlib import Path

import torch

from utils.files import write_text
from utils.measure.results import format_markdown_table

CASES, SUMMARY, TABLE = "cases.jsonl", "summary.json", "summary.md"
PAGE_HEADING = "## What came out"  # heading of the section that --page replaces
GOOD = {  # outcome: its column in the tables
    "same bits": "bit-identical",
    "used": "used",
    "refused": "refused in one line",
    "stopped in one line while it ran": "stopped in one line",
    "same bits after a refusal": "refused, then bit-identical",
}


def read_cases(folder: Path) -> list[dict]:
    """Return the finished cases. An incomplete last line belongs to an unfinished case."""
    path, cases = folder / CASES, []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            cases.append(json.loads(line))
        except ValueError:
            continue
    return cases


def add_case(folder: Path, result: dict) -> None:
    """Append a case as one line, on its own line even after an incomplete one."""
    path = folder / CASES
    ends_with_newline = not path.exists() or not path.stat().st_size or path.read_bytes()[-1:] == b"\n"
    with path.open("a") as file:
        file.write(("" if ends_with_newline else "\n") + json.dumps(result) + "\n")


def write_summary(folder: Path, command: str) -> None:
    """Write summary.json and summary.md again."""
    cases = read_cases(folder)
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
    failed = [case for case in cases if case["outcome"] not in GOOD]
    text = json.dumps({"about": about, "areas": areas, "failures": failed}, indent=2)
    write_text(folder / SUMMARY, text + "\n")
    write_text(folder / TABLE, markdown_summary(about, areas, cases, failed))


def markdown_summary(about: dict, areas: dict, cases: list[dict], failed: list[dict]) -> str:
    """Return the tables as Markdown."""
    summary_line = (
        f"{about['date']}, `{about['command']}`: {about['cases']} cases, {about['kills']} kills, {about['failures']} "
        f"failures, {about['hours']:.1f} hours of cases; PyTorch {about['torch']}, Python {about['python']}, "
        f"{about['machine']}."
    )
    parts = [summary_line]
    for area, kinds in areas.items():
        names = [name for name in GOOD if any(name in entry["outcomes"] for entry in kinds.values())]
        killed = any(entry["kills"] for entry in kinds.values())
        rows = []
        for kind, entry in sorted(kinds.items()):
            rows.append(table_row(kind, [entry], names, killed))
        rows.append(table_row("all", list(kinds.values()), names, killed))
        header = ["what", "cases", *(["kills"] if killed else []), *(GOOD[name] for name in names), "failures"]
        parts += [f"**{area}**", format_markdown_table(header, rows)]
    if launchers := Counter(f"{case['launcher']}, {case['processes']}" for case in cases if "launcher" in case):
        kills = Counter()
        for case in cases:
            if "launcher" in case:
                kills[f"{case['launcher']}, {case['processes']}"] += case["kills"]
        rows = [[name, str(launchers[name]), str(kills[name])] for name in sorted(launchers)]
        parts += ["**kills, by launcher and number of processes**"]
        parts += [format_markdown_table(["launcher, processes", "cases", "kills"], rows)]
    if failed:
        counted = Counter((case["area"], case["kind"], case["outcome"]) for case in failed)
        first = {}
        for case in failed:
            first.setdefault((case["area"], case["kind"], case["outcome"]), f"{case['area']} {case['case']}")
        rows = [[*key, str(count), first[key]] for key, count in sorted(counted.items())]
        parts += [
            "**failures**",
            format_markdown_table(["area", "what", "outcome", "cases", "first case (for --case)"], rows),
        ]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def table_row(kind: str, entries: list[dict], names: list[str], killed: bool) -> list[str]:
    """Return a table row with the summed counts of some kinds."""
    outcomes = sum((entry["outcomes"] for entry in entries), Counter())
    kills = [str(sum(entry["kills"] for entry in entries))] if killed else []
    failed = outcomes.total() - sum(outcomes[name] for name in GOOD)
    return [kind, str(outcomes.total()), *kills, *(str(outcomes[name]) for name in names), str(failed)]


def write_page(folder: Path, page: Path) -> None:
    """Replace the section PAGE_HEADING of a page by the tables."""
    before, rest = page.read_text().split(f"{PAGE_HEADING}\n")
    after = rest.partition("\n## ")[2]
    table = (folder / TABLE).read_text()
    write_text(page, f"{before}{PAGE_HEADING}\n\n{table}" + (f"\n## {after}" if after else ""))
