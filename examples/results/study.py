"""A study: the trials of its plan in stages, and their results."""

from collections.abc import Iterator
from pathlib import Path

import torch

from examples.results import reading, trials
from examples.results.plan import TRAINS_NETWORK, Plan, sets_rate, stage1_parser, views_per_epoch
from examples.results.reading import Groups, Results, TrialResult
from examples.results.trials import Cell, StudySettings, Trial
from imagenet_inat.datasets import get_spec
from imagenet_inat.lists.profiles import class_sizes
from moco.targets.files import target_file_name
from moco.targets.generation import generate_file
from utils.errors import InputError
from utils.report.runs import read_stage
from utils.report.trials import paired_difference

PIXELS_COST = 400_000  # cost of fitting classifiers to pixels, as a number of views to train on
TUNING = "learning rates"


class Study:
    """A study. Its stages are learning rates and methods (at each length), sweeps and more seeds, in this order.

    Args:
        plan: The plan.
        folder: Folder for the runs.
        device: Device of all runs.
    """

    def __init__(self, plan: Plan, folder: Path, device: torch.device):
        self.plan, self.folder, self.device = plan, folder, device
        # No loader processes, because the images are small and every core already has a run.
        self.settings = StudySettings(folder, ("--device", str(device), "-j", "0"))
        data_args = stage1_parser("contrast").parse_args([*plan.data])
        self.spec, self.data_root = get_spec(data_args.dataset), Path(data_args.data_root)
        self.largest = data_args.largest or (self.spec.largest_class if self.spec.largest_class_max else None)
        self.split_seed = data_args.split_seed or 0
        self._selected_rates: dict[int | None, dict[str, str]] = {}
        self._rates_are_assumed = False

    def prepare(self) -> None:
        """Write the lists and targets before the runs start, so that simultaneous runs do not write them."""
        cells = [*trials.main_cells(self.plan)]
        for sweep in self.plan.sweeps:
            cells += trials.sweep_cells(self.plan, sweep).values()
        for imbalance in sorted({cell.imbalance for cell in cells}):
            if self.spec.write_files:  # with split_per_seed, runs also write lists of other seeds
                self.spec.write_files(self.data_root, imbalance, self.largest, self.split_seed)
        for file, dim in {(self.target_file(dim), dim) for dim in map(self.target_dim, cells) if dim}:
            if not file.exists():
                generate_file(file, self.spec.num_classes, dim)

    def target_file(self, dim: int) -> Path:
        """Return the file of the targets of dimension dim."""
        return self.folder / target_file_name(self.spec.num_classes, dim)

    def target_dim(self, cell: Cell) -> int | None:
        """Return the feature dimension of a cell, or None if it does not use targets."""
        if cell.method.stage1 != "contrast":
            return None
        data_args = stage1_parser("contrast").parse_args(cell.train_flags(self.plan))
        return data_args.moco_dim if data_args.targeted else None

    def trial(self, cell: Cell, seed: int) -> Trial:
        """Return the trial of a cell and a seed, with its targets, learning rate and weight."""
        dim, rate = self.target_dim(cell), self.rate(cell)
        extra_flags = ("--targets", str(self.target_file(dim))) if dim else ()
        extra_flags += ("--lr", rate) if rate else ()
        trial = trials.build_trial(self.plan, cell, seed, self.settings, extra_flags)
        return trial._replace(weight=self.weight(cell))

    def weight(self, cell: Cell) -> float:
        """Return the cost of a cell, as the number of views to train on."""
        if cell.method.stage1 == "pixels":
            return PIXELS_COST
        args = stage1_parser(cell.method.stage1).parse_args(cell.train_flags(self.plan))
        return self.num_views(vars(args), cell.imbalance, args.epochs)

    def num_views(self, args: dict, imbalance: float, epochs: int) -> float:
        """Return the number of views that a training with these arguments uses."""
        sizes = class_sizes("exp", self.spec.num_classes, imbalance, self.largest or self.spec.largest_class)
        return epochs * views_per_epoch(args) * self.spec.repeat * sum(sizes)

    def rate(self, cell: Cell) -> str | None:
        """Return the learning rate of a cell: the selected one, or the plan's only one. None if flags set it."""
        if cell.method.stage1 not in TRAINS_NETWORK or not self.plan.rates or sets_rate(cell.method, cell.extra):
            return None
        if len(self.plan.rates) == 1:
            return self.plan.rates[0]
        return self.rates(self.plan.tuned_length(cell.length))[cell.method.key]

    def rates(self, length: int | None = None) -> dict[str, str]:
        """Return method key -> learning rate, selected at a length by balanced validation accuracy: see `best_rate`.

        Each run is evaluated with the classifier that is selected on validation, like all runs of the study.

        Raises:
            InputError: A run has not finished.
        """
        if length not in self._selected_rates:
            accuracies: dict[str, dict[str, float]] = {}
            for cell, rate in trials.tuning_cells(self.plan, length).items():
                trial = self.trial(cell, self.plan.tune_seed)
                if trials.unfinished_part(trial).commands:
                    raise InputError(
                        f"{trial.run_dir}: not finished, but needed to select the {TUNING}. Run the plan first"
                    )
                run = reading.read_trial(trial, self.plan.tune_seed)
                accuracies.setdefault(cell.method.key, {})[rate] = run.heads["selected"]["val_balanced"]
            self._selected_rates[length] = {key: reading.best_rate(by_rate) for key, by_rate in accuracies.items()}
        return self._selected_rates[length]

    def describe_rates(self, stage: str) -> str:
        """Return the learning rates that a stage selected."""
        length = next(length for length in (None, *self.plan.lengths) if stage_name(TUNING, length) == stage)
        return f"{stage}, selected on validation: " + ", ".join(map(" ".join, self.rates(length).items()))

    def assume_rates(self) -> None:
        """Use the plan's first rate for all methods, to count the runs before the rates are selected."""
        assumed = dict.fromkeys(self.plan.methods, self.plan.rates[0])
        self._selected_rates = dict.fromkeys(self.plan.lengths or [None], assumed)
        self._rates_are_assumed = True

    def stages(self) -> Iterator[tuple[str, list[Trial]]]:
        """Yield the name and trials of each stage in order. Some stages need the results of earlier ones."""
        plan = self.plan
        for length, seeds in (plan.lengths or {None: plan.seeds}).items():
            if tuning := trials.tuning_cells(plan, length):
                yield stage_name(TUNING, length), [self.trial(cell, plan.tune_seed) for cell in tuning]
            yield stage_name("methods", length), self.trials(trials.main_cells(plan, length), range(seeds))
        for sweep in plan.sweeps:
            cells = list(dict.fromkeys(trials.sweep_cells(plan, sweep).values()))
            yield f"sweep {sweep.key}", self.trials(cells, range(sweep.seeds))
        if more_cells := [cell for imbalance in self.unresolved() for cell in self.first_pair(imbalance)]:
            yield "more seeds", self.trials(more_cells, range(plan.seeds, plan.more_seeds))

    def most_runs(self) -> dict[Cell, int]:
        """Return cell -> number of runs, including those of seeds that may be added."""
        plan, counts = self.plan, {}
        for length, seeds in (plan.lengths or {None: plan.seeds}).items():
            counts |= dict.fromkeys(trials.tuning_cells(plan, length), 1)
            counts |= {
                cell: seeds if cell.method.stage1 in TRAINS_NETWORK else 1 for cell in trials.main_cells(plan, length)
            }
        for sweep in plan.sweeps:
            cells = trials.sweep_cells(plan, sweep).values()
            counts |= {cell: max(counts.get(cell, 0), sweep.seeds) for cell in cells}
        if plan.pairs and plan.more_seeds > plan.seeds:
            pairs = (cell for imbalance in plan.imbalances for cell in self.first_pair(imbalance))
            counts |= {cell: plan.more_seeds for cell in pairs if cell.method.stage1 in TRAINS_NETWORK}
        return counts

    def trials(self, cells: list[Cell], seeds: range) -> list[Trial]:
        """Return the trials of all cells, seed by seed, so that an interrupted study has complete seeds.

        Pixels have only seed 0, because they use no random numbers.
        """
        return [
            self.trial(cell, seed) for seed in seeds for cell in cells if cell.method.stage1 != "pixels" or seed == 0
        ]

    def hours(self, remaining: list[Trial]) -> float:
        """Estimate the hours of training on one core, from the runs in the folder. 0: the folder has no runs."""
        weight = seconds = 0.0
        for file in self.folder.glob("rho*/*/args.json"):
            stage = read_stage(file.parent)
            if stage.epochs:
                weight += self.num_views(stage.args, stage.args["imbalance"], len(stage.epochs))
                seconds += sum(record["seconds"] for record in stage.epochs)
        return sum(trial.weight for trial in remaining) * seconds / weight / 3600 if weight else 0.0

    def first_pair(self, imbalance: float) -> list[Cell]:
        """Return the cells of the plan's first pair of methods, at the longest length."""
        cells = trials.main_cells(self.plan._replace(imbalances=(imbalance,)), self.plan.length)
        return [cell for key in self.plan.pairs[0] for cell in cells if cell.method.key == key]

    def unresolved(self) -> list[float]:
        """Return the imbalances at which the interval of the first pair's difference contains 0 and is too wide.

        The runs cannot be read while their learning rates are only assumed. No imbalance is returned then.
        """
        if not self.plan.pairs or self.plan.more_seeds <= self.plan.seeds or self._rates_are_assumed:
            return []
        unresolved = []
        for imbalance in self.plan.imbalances:
            first, second = (self.finished(cell, range(self.plan.seeds)) for cell in self.first_pair(imbalance))
            if len(first) < self.plan.seeds or len(second) < self.plan.seeds:
                continue
            _, low, high = paired_difference(reading.accuracy(first)[:, -1] - reading.accuracy(second)[:, -1])
            if low <= 0 <= high and (high - low) / 2 > self.plan.resolved:
                unresolved.append(imbalance)
        return unresolved

    def finished(self, cell: Cell, seeds: range) -> list[TrialResult]:
        """Return the results of a cell, up to the first seed that has not finished."""
        runs = []
        for seed in seeds if cell.method.stage1 != "pixels" else seeds[:1]:
            trial = self.trial(cell, seed)
            if trials.unfinished_part(trial).commands:
                break
            runs.append(reading.read_trial(trial, seed))
        return runs

    def results(self) -> Results:
        """Return the results of all finished trials. Lengths at which a method has fewer than two seeds are omitted."""
        plan, sweeps = self.plan, {}
        lengths = {length: self.groups(length) for length in plan.lengths if self.is_tuned(length)}
        shortest = min(plan.lengths, default=None)
        groups = lengths[shortest] if shortest in lengths else self.groups(shortest)
        for sweep in plan.sweeps:
            cells = trials.sweep_cells(plan, sweep) if self.is_tuned(sweep.length) else {}
            sweeps[sweep.key] = {key: self.finished(cell, range(sweep.seeds)) for key, cell in cells.items()}
        return reading.select_results(plan, groups, lengths, sweeps)

    def page_results(self) -> Results | None:
        """Return the results of all finished trials, or None if they are not enough for a page."""
        results = self.results() if self.is_tuned(min(self.plan.lengths, default=None)) else None
        return results if results and reading.enough_seeds(results.plan, results.groups) else None

    def groups(self, length: int | None) -> Groups:
        """Return the results of the methods that are trained at a length."""
        seeds = range(max(self.plan.more_seeds, self.plan.lengths.get(length, 0)))
        cells = trials.main_cells(self.plan, length)
        return {(cell.imbalance, cell.method.key): self.finished(cell, seeds) for cell in cells}

    def is_tuned(self, length: int | None) -> bool:
        """Return whether the runs that select the learning rates of a length have finished."""
        cells = trials.tuning_cells(self.plan, self.plan.tuned_length(length))
        tuning = [self.trial(cell, self.plan.tune_seed) for cell in cells]
        return not any(trials.unfinished_part(trial).commands for trial in tuning)


def stage_name(name: str, length: int | None) -> str:
    """Return, as in `methods, 30 epochs`, the name of a stage."""
    return f"{name}, {length:,} epochs" if length else name
