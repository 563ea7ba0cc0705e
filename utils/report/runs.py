"""Run folders, read again: the arguments, the epochs and the results of a pre-training and its probe."""

import json
from pathlib import Path
from typing import NamedTuple

from utils.errors import InputError
from utils.measure.results import CHOICES, SHOTS
from utils.run.arguments import FREE
from utils.run.logger import read_log


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
    results = _read_results(probe.folder / "results.json") if probe else None
    return Run(str(path).rstrip("/"), pretraining, probe, results, comparison_of(stage.folder))


def read_stage(folder: Path) -> Stage:
    """One run folder. Raises InputError: no such folder, or one without a readable args.json."""
    about = _read_json(folder / "args.json", f"{folder} is no run folder")
    if not isinstance(about.get("args"), dict) or "seed" not in about["args"]:
        raise InputError(
            f"{folder / 'args.json'}: has no 'args' with a seed, expected what a run of this project writes"
        )
    return Stage(folder, about, read_log(folder / "log.jsonl"))


def _read_json(path: Path, otherwise: str) -> dict:
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise InputError(f"{otherwise}: {path} cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error})") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a {type(content).__name__}, expected an object")
    return content


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
    return newest and _read_results(newest)


def probes_of(checkpoint: Path, lists: dict[str, str]) -> dict[Path, dict]:
    """Folder -> results of the ended probes beside a checkpoint that were trained on it, on the same lists."""
    found = {}
    for stage in _stages_in(checkpoint.parent):
        same = Path(stage.args.get("pretrained") or "").resolve() == checkpoint.resolve()
        same = same and all(stage.args.get(name) == digest for name, digest in lists.items())
        if same and stage.epochs and (results := _read_results(stage.folder / "results.json")):
            found[stage.folder] = results
    return found


def _stages_in(folder: Path) -> list[Stage]:
    return [read_stage(path.parent) for path in sorted(folder.glob("*/args.json"))]


def _compares(stage: Stage) -> bool:
    return bool(stage.args.get("compare_heads"))


def _read_results(path: Path) -> dict | None:
    if not path.exists():
        return None
    results = _read_json(path, "no results")
    needs = ("acc1", "per_class", *SHOTS)
    for choice in [name for name in CHOICES if name == "selected" or name in results]:
        entry = results.get(choice, {})
        lacking = [name for name in needs if name not in entry]
        lacking += [] if {"epoch", "values"} & entry.keys() else ["epoch"]
        if lacking := lacking or {"train_counts"} - results.keys():
            raise InputError(f"{path}: '{choice}' lacks {', '.join(lacking)}, expected what the probe writes")
    return results


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
