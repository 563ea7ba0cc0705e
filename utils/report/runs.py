"""Read run folders: the arguments, epochs and results of a pre-training and its probe."""

from pathlib import Path
from typing import NamedTuple

from utils.cli.flags import declared_flags, effect_of
from utils.distributed import log
from utils.errors import InputError, short_repr
from utils.measure.confusion import confusion_problem
from utils.measure.results import CHOICES, entry_problem
from utils.run.logger import read_log
from utils.safe_load import are_texts, is_count, is_plain, read_json


class Stage(NamedTuple):
    """One run folder. about: the contents of args.json. epochs: the records of log.jsonl."""

    folder: Path
    about: dict
    epochs: list[dict]

    @property
    def args(self) -> dict:
        return self.about["args"]

    @property
    def starts(self) -> list[dict]:
        """Return commit, machine and versions of the last start (the contents of args.json) and of earlier ones."""
        earlier = self.about.get("earlier")
        starts = [start for start in earlier if isinstance(start, dict)] if isinstance(earlier, list) else []
        return [self.about, *(start for start in starts if {"machine", "versions"} <= start.keys())]

    @property
    def command(self) -> str:
        return str(self.about.get("command", "unknown"))


def short_commit(about: dict) -> str:
    """Return the first ten digits of the commit in the contents of args.json, and -dirty if files differed from it."""
    commit = str(about.get("git", "unknown"))
    return commit[:10] + ("-dirty" if commit.endswith("-dirty") else "")


class Run(NamedTuple):
    """A pre-training and its linear probe, or only one of them.

    Attributes:
        results: results of the probe, if it has finished.
        heads: results of --compare-heads in the same folder.
        comparison: the folder of --compare-heads.
    """

    name: str
    pretraining: Stage | None
    probe: Stage | None
    results: dict | None
    heads: dict | None = None
    comparison: Stage | None = None

    @property
    def stages(self) -> dict[int, Stage]:
        """Return the stages that exist, by number."""
        return {number: stage for number, stage in ((1, self.pretraining), (2, self.probe)) if stage}

    @property
    def seeds(self) -> tuple[int, ...]:
        """Return the seed of each stage. --compare-heads uses no random numbers."""
        return tuple(stage.args["seed"] for stage in self.stages.values() if not _is_comparison(stage))

    @property
    def class_names(self) -> list[str] | None:
        """Return the names of the classes in label order, if the probe's or the comparison's results contain them."""
        return next(
            (found["class_names"] for found in (self.results, self.heads) if "class_names" in (found or {})), None
        )

    def deciding_arguments(self) -> dict[str, object]:
        """Return the arguments that affect the result, except the seeds."""
        free = frozenset(flag.dest for flag in declared_flags() if not effect_of(flag).affects_result)
        free |= {"encoder"}  # the digest of the weights differs between seeds
        return self.arguments(excluded=free)

    def arguments(self, excluded: frozenset[str] = frozenset()) -> dict[str, object]:
        """Return the arguments of both stages, except those in `excluded`, and the class sizes."""
        values = {}
        for number, stage in self.stages.items():
            values |= {f"{name} (stage {number})": value for name, value in stage.args.items() if name not in excluded}
        if self.results:
            values["training images of the classes"] = self.results["train_counts"]
        return values


def read_run(path: str | Path) -> Run:
    """Read a run from its stage-1 folder, which contains at most one probe's folder, or from a probe's folder.

    Raises:
        InputError: the path is not a run folder, a file is invalid, or the folder contains several probes.
    """
    stage = read_stage(Path(path))
    if "pretrained" in stage.args:
        probe, pretraining = stage, _pretraining_of(stage)
    else:
        pretraining, probe = stage, _only_probe_in(stage.folder)
    results = read_results(probe.folder / "results.json") if probe else None
    return Run(str(path).rstrip("/"), pretraining, probe, results, *_find_comparison(stage.folder))


def read_stage(folder: Path) -> Stage:
    """Read one run folder. Raise InputError if args.json is missing or invalid, or the log is damaged."""
    file = folder / "args.json"
    about = read_json(file, f"{folder} is not a run folder")
    args = about.get("args")
    if not isinstance(args, dict) or type(args.get("seed")) is not int:
        raise InputError(f"{file}: has no 'args' with a seed, expected a file written by a run of this project")
    for name, value in args.items():
        if not is_plain(value) or (name == "pretrained" and not isinstance(value, str | None)):
            raise InputError(
                f"{file}: argument {short_repr(name)} is {short_repr(value)}, expected a value of a command line"
            )
    return Stage(folder, about, read_log(folder / "log.jsonl"))


def _pretraining_of(probe: Stage) -> Stage | None:
    """Return stage 1 from the parent folder of the probe or of its checkpoint; None if neither is a run folder.

    Cross-entropy training counts as stage 1 of the classifiers in its folder.
    """
    for folder in (probe.folder.parent, Path(probe.args["pretrained"] or "").parent):
        if (folder / "args.json").exists() and (stage := read_stage(folder)).args.get("pretrained") is None:
            return stage
    return None


def _only_probe_in(folder: Path) -> Stage | None:
    probes = [stage for stage in _stages_in(folder) if "pretrained" in stage.args and not _is_comparison(stage)]
    if len(probes) > 1:
        names = ", ".join(stage.folder.name for stage in probes)
        raise InputError(f"{folder}: contains {len(probes)} probes ({names}); name one of them, {folder}/PROBE")
    return probes[0] if probes else None


def _find_comparison(folder: Path) -> tuple[dict | None, Stage | None]:
    """Return the newest results.json of --compare-heads in a run folder, and the folder of these results."""
    compared = [stage for stage in _stages_in(folder) if _is_comparison(stage)]
    finished = {stage.folder / "results.json": stage for stage in compared if (stage.folder / "results.json").exists()}
    if not finished:
        return None, None
    newest = max(finished, key=lambda path: path.stat().st_mtime)
    if "heads" not in (results := read_results(newest)):
        raise InputError(f"{newest}: has no heads, expected a file written by --compare-heads")
    return results, finished[newest]


def find_probes(checkpoint: Path, lists: dict[str, str]) -> dict[Path, dict]:
    """Return {folder: results} of the finished probes in a checkpoint's folder that used it and the same lists.

    A folder that cannot be read is reported and skipped.

    Args:
        checkpoint: the checkpoint's file.
        lists: maps the name of a list's argument to the list's digest.
    """
    probes = {}
    for file in sorted(checkpoint.parent.glob("*/args.json")):
        try:
            stage = read_stage(file.parent)
            same = Path(stage.args.get("pretrained") or "").resolve() == checkpoint.resolve()
            same = same and all(stage.args.get(name) == digest for name, digest in lists.items())
            if same and stage.epochs and (results := read_results(stage.folder / "results.json")):
                probes[stage.folder] = results
        except (InputError, OSError) as error:
            log(f"note: {file.parent} is skipped: {error}")
    return probes


def _stages_in(folder: Path) -> list[Stage]:
    return [read_stage(path.parent) for path in sorted(folder.glob("*/args.json"))]


def _is_comparison(stage: Stage) -> bool:
    return bool(stage.args.get("compare_heads"))


def read_results(path: Path) -> dict | None:
    """Load a results.json; None if it does not exist. Raise InputError if it is invalid or damaged."""
    if not path.exists():
        return None
    results = read_json(path)
    if problem := _results_problem(results):
        raise InputError(f"{path}: {problem}")
    return results


def _results_problem(results: dict) -> str | None:
    for choice in [name for name in CHOICES if name == "selected" or name in results]:
        if problem := entry_problem(results.get(choice, {})):
            return f"'{choice}' {problem}"
    counts = results.get("train_counts")
    if not isinstance(counts, list) or not all(map(is_count, counts)) or not any(counts):
        return f"train_counts is {short_repr(counts)}, expected the number of training images of each class"
    names = results.get("class_names")
    if names is not None and not (are_texts(names) and len(names) == len(counts)):
        return f"class_names is {short_repr(names)}, expected the name of each class"
    class_counts = {len(results[choice]["per_class"]) for choice in CHOICES if choice in results}
    if class_counts != {len(counts)}:
        return f"per_class has {short_repr(sorted(class_counts))} classes, train_counts has {len(counts)}"
    if problem := "confusion" in results["selected"] and confusion_problem(
        results["selected"]["confusion"], len(counts)
    ):
        return f"'selected' {problem}"
    chosen, heads = results.get("chosen", {}), results.get("heads")
    if not isinstance(chosen, dict) or not isinstance(chosen.get("on", ""), str) or (heads and "on" not in chosen):
        return f"chosen is {short_repr(chosen)}, expected a dict with the split ('on') and the candidates ('from')"
    if heads is None:
        return None
    if not isinstance(heads, dict) or not heads:
        return f"heads is {short_repr(heads)}, expected a dict with an entry for each head"
    for title, entry in heads.items():
        problem = entry_problem(entry) or ("" if "val_balanced" in entry else "has no val_balanced")
        if problem:
            return f"head {short_repr(title)} {problem}"
    return None


def differences(runs: list[Run]) -> dict[str, list]:
    """Return the arguments that differ between runs: name -> each run's value (see `transpose`)."""
    columns = transpose([run.deciding_arguments() for run in runs])
    return {name: column for name, column in columns.items() if any(value != column[0] for value in column)}


def transpose(values: list[dict[str, object]]) -> dict[str, list]:
    """Transpose the runs' dicts to name -> each run's value; None for a run without this name."""
    names = dict.fromkeys(name for value in values for name in value)
    return {name: [value.get(name) for value in values] for name in names}


def short_names(paths: list[str]) -> list[str]:
    """Shorten different paths by removing the leading and trailing folders that all of them share."""
    parts = [Path(path).parts for path in paths]
    while min(map(len, parts)) > 1 and len({path[0] for path in parts}) == 1:
        parts = [path[1:] for path in parts]
    while min(map(len, parts)) > 1 and len({path[-1] for path in parts}) == 1:
        parts = [path[:-1] for path in parts]
    return ["/".join(path) for path in parts]
