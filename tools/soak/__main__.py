"""Stress-test runs for hours: kill them, damage their input files, take away disk and memory.

    python -m tools.soak --folder runs/soak --hours 3          # run again to continue
    python -m tools.soak --folder runs/soak --hours 1 --areas kills
    python -m tools.soak --folder runs/soak --case inputs 17   # repeat one case

A case is determined by its area and number. The folder receives cases.jsonl (one line per
case), summary.json, summary.md (the tables of docs/reliability.md) and failures/ (the
folders of failed cases). Linux only. Areas:
    kills    SIGKILL at random moments of both stages; the resumed run must end bit-identical
             to an undisturbed one
    inputs   damaged lists, images, checkpoints, ...: the file still loads, or the command
             prints one line and exits with code 2
    places   hostile environments (root only): full disks, read-only folders, little shared
             memory, long pauses, clock jumps
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before importing torch, whose threads do not survive a fork

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path

from tools.soak import base, inputs, kills, places, summary
from tools.soak.processes import RunningProcesses, error_log, fork
from utils import errors
from utils.run.folder import lock_run_dir

# Area: (function, share of the time).
AREAS = {"kills": (kills.case, 4), "inputs": (inputs.case, 4), "places": (places.case, 1)}
WRITE_EVERY = 20.0  # seconds between summaries


def run_case(area: str, number: int, base_runs: base.Base, failures_folder: Path | None = None) -> dict:
    """Run one case in this process. failures_folder: where to copy the folder of a failed case."""
    folder = Path(tempfile.mkdtemp(prefix=f"{area}_{number}_", dir=base_runs.folder))
    started = time.monotonic()
    result = AREAS[area][0](number, random.Random(f"{area} {number}"), base_runs, folder)
    result = {"area": area, "case": number, **result, "seconds": round(time.monotonic() - started, 2)}
    if failures_folder and result["outcome"] not in summary.GOOD:
        shutil.copytree(folder, failures_folder / f"{area}_{number}", dirs_exist_ok=True, symlinks=True)
    shutil.rmtree(folder)
    return result


class Soak:
    """Run cases, several at a time, each in its own process."""

    def __init__(self, args: argparse.Namespace, folder: Path, base_runs: base.Base):
        self.args, self.folder, self.base_runs = args, folder, base_runs
        self.running_cases: dict[RunningProcesses, tuple[str, int, Path]] = {}
        finished_cases = summary.read_cases(folder)
        self.finished = {area: {case["case"] for case in finished_cases if case["area"] == area} for area in args.areas}
        self.seconds_spent = {
            area: sum(case["seconds"] for case in finished_cases if case["area"] == area) for area in args.areas
        }
        self.kills = sum(case.get("kills", 0) for case in finished_cases)
        self.failures = sum(case["outcome"] not in summary.GOOD for case in finished_cases)
        self.finished_at_start = sum(map(len, self.finished.values()))
        self.line_end = "" if sys.stderr.isatty() else "\n"

    def run(self) -> bool:
        """Run cases until the time limit or until all are finished. Return whether all succeeded."""
        started = last_write = last_print = time.monotonic()
        deadline = started + 3600 * self.args.hours if self.args.hours else float("inf")
        try:
            while True:
                while (
                    len(self.running_cases) < self.args.jobs
                    and time.monotonic() < deadline
                    and (area := self.next_area())
                ):
                    self.start_case(area)
                if not self.running_cases:
                    break
                for running in list(self.running_cases):
                    if running.poll() is not None:
                        self.finish_case(running)
                if time.monotonic() - last_write > WRITE_EVERY:
                    last_write = time.monotonic()
                    summary.write_summary(self.folder, self.args.command)
                if time.monotonic() - last_print > (1 if sys.stderr.isatty() else 60):
                    last_print = time.monotonic()
                    self.print_progress(started, deadline)
                time.sleep(0.05)
        finally:
            for running in self.running_cases:
                running.kill()
            summary.write_summary(self.folder, self.args.command)
            print(file=sys.stderr)
        return not self.failures

    def next_area(self) -> str | None:
        """Return the area that has used the least of its share of the time, or None if all are finished."""
        remaining = [
            area for area in self.args.areas if not self.args.cases or self.next_number(area) < self.args.cases
        ]
        return min(remaining, key=lambda area: self.seconds_spent[area] / AREAS[area][1], default=None)

    def next_number(self, area: str) -> int:
        taken = self.finished[area] | {number for its, number, _ in self.running_cases.values() if its == area}
        return next(number for number in range(len(taken) + 1) if number not in taken)

    def start_case(self, area: str) -> None:
        number, log = self.next_number(area), self.base_runs.folder / f"log_{area}"
        log = log.with_name(f"{log.name}_{self.next_number(area)}")

        def run_forked() -> None:
            print(json.dumps(run_case(area, number, self.base_runs, self.folder / "failures")))

        self.running_cases[RunningProcesses([fork(run_forked, log)])] = (area, number, log)
        self.seconds_spent[area] += 1  # removed in finish_case; keeps two new cases from sharing an area

    def finish_case(self, running: RunningProcesses) -> None:
        area, number, log = self.running_cases.pop(running)
        try:
            result = json.loads(log.read_text().splitlines()[-1])
        except (ValueError, IndexError):
            detail = error_log(log).read_text()[-2000:]
            result = {"area": area, "case": number, "kind": "soak test", "outcome": "error in the soak test"}
            result |= {"detail": detail, "seconds": 0}
        for file in (log, error_log(log)):
            file.unlink(missing_ok=True)
        summary.add_case(self.folder, result)
        self.finished[area].add(number)
        self.seconds_spent[area] += result["seconds"] - 1
        self.kills += result.get("kills", 0)
        if result["outcome"] not in summary.GOOD:
            self.failures += 1
            print(f"\r{area} {number}, {result['kind']}: {result['outcome']}", file=sys.stderr)

    def print_progress(self, started: float, deadline: float) -> None:
        """Print the progress: one changing line on a terminal, otherwise a line per minute."""
        now, count = time.monotonic(), sum(map(len, self.finished.values()))
        remaining = deadline - now
        if self.args.cases and count > self.finished_at_start:
            all_cases = self.args.cases * len(self.args.areas)
            remaining = min(remaining, (now - started) / (count - self.finished_at_start) * max(all_cases - count, 0))
        eta = timedelta(seconds=round(max(remaining, 0))) if remaining < float("inf") else "none (stop with Ctrl-C)"
        line = f"{count} cases, {self.kills} kills, {self.failures} failures  ETA {eta}"
        print(f"\r{line:<70}" if sys.stderr.isatty() else line, end=self.line_end, file=sys.stderr, flush=True)


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        usage="python -m tools.soak [flags]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--folder", type=Path, default=Path("runs/soak"), metavar="DIR", help="Folder for the results.")
    parser.add_argument(
        "--areas", nargs="+", choices=AREAS, default=list(AREAS), metavar="AREA", help="Areas to run (default: all)."
    )
    parser.add_argument("--hours", type=float, default=0, metavar="H", help="Time limit in hours (default: none).")
    parser.add_argument(
        "--cases", type=int, default=0, metavar="N", help="Cases per area, including earlier runs (default: no limit)."
    )
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="Cases to run at a time (default: 2).")
    parser.add_argument("--case", nargs=2, metavar=("AREA", "NUMBER"), help="Repeat this case, and print its result.")
    parser.add_argument(
        "--page",
        type=Path,
        metavar="FILE",
        help="Insert the tables into this page (docs/reliability.md), and run nothing.",
    )
    return parser


def main(argv: list[str] | None = None) -> None:
    args = get_args_parser().parse_args(argv)
    if args.page:
        summary.write_page(args.folder, args.page)
        return
    args.folder.mkdir(parents=True, exist_ok=True)
    if (os.getuid() or not places.FAKETIME) and "places" in args.areas:
        print("note: skipping area places: it needs root (for mounts) and Debian's faketime package", file=sys.stderr)
        args.areas.remove("places")
    areas = [] if args.areas == list(AREAS) else ["--areas", *args.areas]
    args.command = " ".join(["python -m tools.soak", *areas])  # other flags do not change the cases
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with lock_run_dir(args.folder), tempfile.TemporaryDirectory(prefix="soak_") as temporary:
        Path(temporary).chmod(0o755)  # some cases do not run as root
        base_runs = base.make_base(Path(temporary))
        if args.case:
            print(json.dumps(run_case(args.case[0], int(args.case[1]), base_runs, args.folder / "failures"), indent=2))
            return
        succeeded = Soak(args, args.folder, base_runs).run()
        print((args.folder / summary.TABLE).read_text())
    sys.exit(not succeeded)


if __name__ == "__main__":
    errors.run(main, "run the same command again to continue")
