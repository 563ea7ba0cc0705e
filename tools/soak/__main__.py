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

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: its threads would not live through a fork

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
from tools.soak.processes import Running, error_log, fork
from utils import errors
from utils.run.folder import lock_run_dir

AREAS = {"kills": (kills.case, 4), "inputs": (inputs.case, 4), "places": (places.case, 1)}  # and shares of the time
WRITE_EVERY = 20.0  # seconds between summaries


def run_case(area: str, number: int, start: base.Base, keep: Path | None = None) -> dict:
    """One case, in this process; keep: where the folder of one that has failed goes."""
    folder = Path(tempfile.mkdtemp(prefix=f"{area}_{number}_", dir=start.folder))
    begun = time.monotonic()
    result = AREAS[area][0](number, random.Random(f"{area} {number}"), start, folder)
    result = {"area": area, "case": number, **result, "seconds": round(time.monotonic() - begun, 2)}
    if keep and result["outcome"] not in summary.GOOD:
        shutil.copytree(folder, keep / f"{area}_{number}", dirs_exist_ok=True, symlinks=True)
    shutil.rmtree(folder)
    return result


class Soak:
    """Cases one after the other, some at a time, each in a process of its own."""

    def __init__(self, args: argparse.Namespace, folder: Path, start: base.Base):
        self.args, self.folder, self.start = args, folder, start
        self.lives: dict[Running, tuple[str, int, Path]] = {}
        ended = summary.read(folder)
        self.done = {area: {case["case"] for case in ended if case["area"] == area} for area in args.areas}
        self.spent = {area: sum(case["seconds"] for case in ended if case["area"] == area) for area in args.areas}
        self.kills = sum(case.get("kills", 0) for case in ended)
        self.failures = sum(case["outcome"] not in summary.GOOD for case in ended)
        self.before, self.line_end = sum(map(len, self.done.values())), "" if sys.stderr.isatty() else "\n"

    def run(self) -> bool:
        """Until the time is up or all is done; returns whether all ended well."""
        begun = written = shown = time.monotonic()
        until = begun + 3600 * self.args.hours if self.args.hours else float("inf")
        try:
            while True:
                while len(self.lives) < self.args.jobs and time.monotonic() < until and (area := self.next_area()):
                    self.begin(area)
                if not self.lives:
                    break
                for running in list(self.lives):
                    if running.poll() is not None:
                        self.end(running)
                if time.monotonic() - written > WRITE_EVERY:
                    written = time.monotonic()
                    summary.write(self.folder, self.args.command)
                if time.monotonic() - shown > (1 if sys.stderr.isatty() else 60):
                    shown = time.monotonic()
                    self.show(begun, until)
                time.sleep(0.05)
        finally:
            for running in self.lives:
                running.kill()
            summary.write(self.folder, self.args.command)
            print(file=sys.stderr)
        return not self.failures

    def next_area(self) -> str | None:
        """The one that has had the least of its share of the time."""
        left = [area for area in self.args.areas if not self.args.cases or self.number(area) < self.args.cases]
        return min(left, key=lambda area: self.spent[area] / AREAS[area][1], default=None)

    def number(self, area: str) -> int:
        taken = self.done[area] | {number for its, number, _ in self.lives.values() if its == area}
        return next(number for number in range(len(taken) + 1) if number not in taken)

    def begin(self, area: str) -> None:
        number, log = self.number(area), self.start.folder / f"log_{area}"
        log = log.with_name(f"{log.name}_{self.number(area)}")

        def work() -> None:
            print(json.dumps(run_case(area, number, self.start, self.folder / "failures")))

        self.lives[Running([fork(work, log)])] = (area, number, log)
        self.spent[area] += 1  # taken back at its end: of two that begin together, not both of one area

    def end(self, running: Running) -> None:
        area, number, log = self.lives.pop(running)
        try:
            result = json.loads(log.read_text().splitlines()[-1])
        except (ValueError, IndexError):
            detail = error_log(log).read_text()[-2000:]
            result = {"area": area, "case": number, "kind": "the soak itself", "outcome": "a fault of its own"}
            result |= {"detail": detail, "seconds": 0}
        for file in (log, error_log(log)):
            file.unlink(missing_ok=True)
        summary.add(self.folder, result)
        self.done[area].add(number)
        self.spent[area] += result["seconds"] - 1
        self.kills += result.get("kills", 0)
        if result["outcome"] not in summary.GOOD:
            self.failures += 1
            print(f"\r{area} {number}, {result['kind']}: {result['outcome']}", file=sys.stderr)

    def show(self, begun: float, until: float) -> None:
        """On a terminal one line that changes; else a line now and then."""
        now, count = time.monotonic(), sum(map(len, self.done.values()))
        left = until - now
        if self.args.cases and count > self.before:
            all_cases = self.args.cases * len(self.args.areas)
            left = min(left, (now - begun) / (count - self.before) * max(all_cases - count, 0))
        eta = timedelta(seconds=round(max(left, 0))) if left < float("inf") else "none, Ctrl-C ends it"
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
        print("note: places needs root, for its mounts, and Debian's package faketime: left out", file=sys.stderr)
        args.areas.remove("places")
    areas = [] if args.areas == list(AREAS) else ["--areas", *args.areas]
    args.command = " ".join(["python -m tools.soak", *areas])  # where it was put, and for how long, changes no case
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with lock_run_dir(args.folder), tempfile.TemporaryDirectory(prefix="soak_") as temporary:
        Path(temporary).chmod(0o755)  # some cases are not of root
        start = base.make(Path(temporary))
        if args.case:
            print(json.dumps(run_case(args.case[0], int(args.case[1]), start, args.folder / "failures"), indent=2))
            return
        good = Soak(args, args.folder, start).run()
        print((args.folder / summary.TABLE).read_text())
    sys.exit(not good)


if __name__ == "__main__":
    errors.run(main, "the same command goes on")
