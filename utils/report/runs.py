"""Run folders, read again: the arguments, the epochs and the results of a pre-training and its probe."""

from pathlib import Path
from typing import NamedTuple

from utils.errors import InputError, brief
from utils.measure.results import CHOICES, what_is_wrong_with_entry
from utils.run.arguments import FREE
from utils.run.logger import read_log
from utils.untrusted import is_count, is_plain, read_json


class Stage(NamedTuple):
    """One run folder. about: args.json as a whole. epochs: the records of log.jsonl."""

    folder: Path
    about: dict
    epochs: list[dict]

    @property
    def args(self) -> dict:
        return self.about["args"]

    @property
    def command(self) -> str:
        return str(self.about.get("command", "unknown"))


class Run(NamedTuple):
    """A pre-training and its linear probe, or one of them.

    results: of the probe, if it ended. heads: the results of --compare-heads beside it.
    """

    name: str
    pretraining: Stage | None
    probe: Stage | None
    results: dict | None
    heads: dict | None = None

    @property
    def stages(self) -> dict[int, Stage]:
        """Those that are there, by number."""
        return {number: stage for number, stage in ((1, self.pretraining), (2, self.probe)) if stage}

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(stage.args["seed"] for stage in self.stages.values())

    def computed_by(self) -> dict[str, object]:
        """What decides the result but for the seeds."""
        return self.arguments(but=FREE)

    def arguments(self, but: frozenset[str] = frozenset()) -> dict[str, object]:
        """Those of both stages, but for some, and the size of the classes."""
        values = {}
        for number, stage in self.stages.items():
            values |= {f"{name} (stage {number})": value for name, value in stage.args.items() if name not in but}
        if self.results:
            values["training images of the classes"] = self.results["train_counts"]
        return values


def read_run(path: str | Path) -> Run:
    """Read the run of a stage-1 folder that has at most one probe beside its files, or of a probe's folder.

    Raises:
        InputError: no run folder, files that are none of ours, or several probes to choose from.
    """
    stage = read_stage(Path(path))
    if "pretrained" in stage.args:
        probe, pretraining = stage, _pretraining_of(stage)
    else:
        pretraining, probe = stage, _only_probe_in(stage.folder)
    results = read_results(probe.folder / "results.json") if probe else None
    return Run(str(path).rstrip("/"), pretraining, probe, results, comparison_of(stage.folder))


def read_stage(folder: Path) -> Stage:
    """One run folder. Raises InputError: no such folder, one without a readable args.json, or a damaged log."""
    file = folder / "args.json"
    about = read_json(file, f"{folder} is no run folder")
    args = about.get("args")
    if not isinstance(args, dict) or type(args.get("seed")) is not int:
        raise InputError(f"{file}: has no 'args' with a seed, expected what a run of this project writes")
    for name, value in args.items():
        if not is_plain(value) or (name == "pretrained" and not isinstance(value, str | None)):
            raise InputError(
                f"{file}: its argument {brief(name)} is {brief(value)}, expected what a command line gives"
            )
    return Stage(folder, about, read_log(folder / "log.jsonl"))


def _pretraining_of(probe: Stage) -> Stage | None:
    """Of the folder above the probe, or of the checkpoint that it names; None of a checkpoint from elsewhere."""
    for folder in (probe.folder.parent, Path(probe.args["pretrained"] or "").parent):
        if (folder / "args.json").exists() and "pretrained" not in (stage := read_stage(folder)).args:
            return stage
    return None


def _only_probe_in(folder: Path) -> Stage | None:
    probes = [stage for stage in _stages_in(folder) if "pretrained" in stage.args and not _compares(stage)]
    if len(probes) > 1:
        names = ", ".join(stage.folder.name for stage in probes)
        raise InputError(f"{folder}: has {len(probes)} probes ({names}); name the one that is meant, {folder}/PROBE")
    return probes[0] if probes else None


def comparison_of(folder: Path) -> dict | None:
    """The results.json of --compare-heads in a folder of a run, the newest if there are several."""
    found = [stage.folder / "results.json" for stage in _stages_in(folder) if _compares(stage)]
    newest = max((path for path in found if path.exists()), key=lambda path: path.stat().st_mtime, default=None)
    if newest and "heads" not in (results := read_results(newest)):
        raise InputError(f"{newest}: has no heads, expected what --compare-heads writes")
    return newest and results


def probes_of(checkpoint: Path, lists: dict[str, str]) -> dict[Path, dict]:
    """Folder -> results of the ended probes beside a checkpoint that were trained on it, on the same lists."""
    found = {}
    for stage in _stages_in(checkpoint.parent):
        same = Path(stage.args.get("pretrained") or "").resolve() == checkpoint.resolve()
        same = same and all(stage.args.get(name) == digest for name, digest in lists.items())
        if same and stage.epochs and (results := read_results(stage.folder / "results.json")):
            found[stage.folder] = results
    return found


def _stages_in(folder: Path) -> list[Stage]:
    return [read_stage(path.parent) for path in sorted(folder.glob("*/args.json"))]


def _compares(stage: Stage) -> bool:
    return bool(stage.args.get("compare_heads"))


def read_results(path: Path) -> dict | None:
    """A results.json, None where there is none. Raises InputError: it is none of ours, or damaged."""
    if not path.exists():
        return None
    results = read_json(path)
    if wrong := _what_is_wrong(results):
        raise InputError(f"{path}: {wrong}")
    return results


def _what_is_wrong(results: dict) -> str | None:
    for choice in [name for name in CHOICES if name == "selected" or name in results]:
        if wrong := what_is_wrong_with_entry(results.get(choice, {})):
            return f"'{choice}' {wrong}"
    counts = results.get("train_counts")
    if not isinstance(counts, list) or not all(map(is_count, counts)) or not any(counts):
        return f"train_counts is {brief(counts)}, expected the training images of each class"
    of_classes = {len(results[choice]["per_class"]) for choice in CHOICES if choice in results}
    if of_classes != {len(counts)}:
        return f"per_class is of {brief(sorted(of_classes))} classes, train_counts of {len(counts)}"
    chosen, heads = results.get("chosen", {}), results.get("heads")
    if not isinstance(chosen, dict) or not isinstance(chosen.get("on", ""), str) or (heads and "on" not in chosen):
        return f"chosen is {brief(chosen)}, expected on which split, and from what"
    if heads is None:
        return None
    if not isinstance(heads, dict) or not heads:
        return f"heads is {brief(heads)}, expected an entry for each"
    for title, entry in heads.items():
        wrong = what_is_wrong_with_entry(entry) or ("" if "val_balanced" in entry else "lacks val_balanced")
        if wrong:
            return f"head {brief(title)} {wrong}"
    return None


def differences(runs: list[Run]) -> dict[str, list]:
    """What the runs were not all computed by alike: name -> each run's value, see `beside`."""
    columns = beside([run.computed_by() for run in runs])
    return {name: column for name, column in columns.items() if any(value != column[0] for value in column)}


def beside(values: list[dict[str, object]]) -> dict[str, list]:
    """What each run has by name, as name -> each run's value, None where it has no such thing."""
    names = dict.fromkeys(name for value in values for name in value)
    return {name: [value.get(name) for value in values] for name in names}


def short_names(paths: list[str]) -> list[str]:
    """What sets different paths apart: without the folders that all begin with, and those that all end with."""
    parts = [Path(path).parts for path in paths]
    while min(map(len, parts)) > 1 and len({path[0] for path in parts}) == 1:
        parts = [path[1:] for path in parts]
    while min(map(len, parts)) > 1 and len({path[-1] for path in parts}) == 1:
        parts = [path[:-1] for path in parts]
    return ["/".join(path) for path in parts]
