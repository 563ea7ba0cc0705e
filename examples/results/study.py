"""A study: the trials of its plan, stage by stage, and their results."""

from collections.abc import Iterator
from pathlib import Path

import torch

from examples.results import reading, trials
from examples.results.plan import VIEWS, Plan, parser_of
from examples.results.reading import Found, Results
from examples.results.trials import Cell, Common, Trial
from imagenet_inat.datasets import row
from imagenet_inat.lists.profiles import class_sizes
from moco.targets.files import target_file_name
from moco.targets.generation import generate_file
from utils.errors import InputError
from utils.report.runs import read_stage
from utils.report.trials import paired_difference

PIXELS = 400_000  # cost of fitting classifiers to pixels, as a number of training images
TUNING = "learning rates"


class Study:
    """A study with its stages, in this order: learning rates, seeds, sweeps, and additional seeds.

    Args:
        plan: The plan.
        folder: Folder for the runs.
        device: Device of all runs.
    """

    def __init__(self, plan: Plan, folder: Path, device: torch.device):
        self.plan, self.folder, self.device = plan, folder, device
        # The images are small and there is one run per core, so loader processes would not help.
        self.common = Common(folder, ("--device", str(device), "-j", "0"))
        asked = parser_of("contrast").parse_args([*plan.data])
        self.spec, self.data_root = row(asked.dataset), Path(asked.data_root)
        self.largest = asked.largest or (self.spec.largest if self.spec.most else None)
        self._rates: dict[str, str] = {}

    def prepare(self) -> None:
        """Write the lists and targets in advance, so that simultaneous runs do not write them."""
        cells = [*trials.main_cells(self.plan)]
        for sweep in self.plan.sweeps:
            cells += trials.sweep_cells(self.plan, sweep).values()
        for imbalance in sorted({cell.imbalance for cell in cells}):
            if self.spec.write:
                self.spec.write(self.data_root, imbalance, self.largest)
        for file, dim in {(self.targets(dim), dim) for dim in map(self.dim_of_targets, cells) if dim}:
            if not file.exists():
                generate_file(file, self.spec.num_classes, dim)

    def targets(self, dim: int) -> Path:
        return self.folder / target_file_name(self.spec.num_classes, dim)

    def dim_of_targets(self, cell: Cell) -> int | None:
        """Return the feature dimension of a cell that uses targets, or None."""
        if cell.method.way != "contrast":
            return None
        asked = parser_of("contrast").parse_args(cell.words(self.plan))
        return asked.moco_dim if asked.targeted else None

    def trial(self, cell: Cell, seed: int) -> Trial:
        dim, rate = self.dim_of_targets(cell), self.rate(cell)
        more = ("--targets", str(self.targets(dim))) if dim else ()
        more += ("--lr", rate) if rate else ()
        trial = trials.trial_of(self.plan, cell, seed, self.common, more)
        return trial._replace(weight=self.weight(cell))

    def weight(self, cell: Cell) -> float:
        """Return the cost of a cell, as the number of views that it trains on."""
        if cell.method.way == "pixels":
            return PIXELS
        epochs = parser_of(cell.method.way).parse_args(cell.words(self.plan)).epochs
        return self.views(cell.method.way, cell.imbalance, epochs)

    def views(self, way: str, imbalance: float, epochs: int) -> float:
        sizes = class_sizes("exp", self.spec.num_classes, imbalance, self.largest or self.spec.largest)
        return epochs * VIEWS[way] * self.spec.repeat * sum(sizes)

    def rate(self, cell: Cell) -> str | None:
        """Return the learning rate of a cell: selected, or the plan's only one. None if the method's flags set it."""
        if cell.method.way not in VIEWS or not self.plan.rates or "--lr" in (*cell.method.flags, *cell.extra):
            return None
        return self.rates()[cell.method.key] if len(self.plan.rates) > 1 else self.plan.rates[0]

    def rates(self) -> dict[str, str]:
        """Return method key -> learning rate, selected by balanced validation accuracy: see `best_rate`.

        Each run is evaluated with the classifier that is selected on validation, as everywhere in the study.

        Raises:
            InputError: A run has not finished.
        """
        if not self._rates:
            found: dict[str, dict[str, float]] = {}
            for cell, rate in trials.tuning_cells(self.plan).items():
                trial = self.trial(cell, self.plan.tune_seed)
                if trials.left_of(trial).commands:
                    raise InputError(
                        f"{trial.run_dir}: not finished, but the {TUNING} are selected from it. Run the plan first"
                    )
                run = reading.found(trial, self.plan.tune_seed)
                found.setdefault(cell.method.key, {})[rate] = run.heads["selected"]["val_balanced"]
            self._rates = {key: best_rate(of_rates) for key, of_rates in found.items()}
        return self._rates

    def assume_rates(self) -> None:
        """Use the first rate for all methods, to count the runs before rates are selected."""
        self._rates = {key: self.plan.rates[0] for key in self.plan.methods}

    def stages(self) -> Iterator[tuple[str, list[Trial]]]:
        """Yield the name and trials of each stage in order. A stage may need the results of earlier ones."""
        plan = self.plan
        if tuning := trials.tuning_cells(plan):
            yield TUNING, [self.trial(cell, plan.tune_seed) for cell in tuning]
        main = trials.main_cells(plan)
        yield "methods", self.trials(main, range(plan.seeds))
        for sweep in plan.sweeps:
            cells = list(dict.fromkeys(trials.sweep_cells(plan, sweep).values()))
            yield f"sweep {sweep.key}", self.trials(cells, range(sweep.seeds))
        if wanted := [cell for imbalance in self.unresolved() for cell in self.pair(imbalance)]:
            yield "more seeds", self.trials(wanted, range(plan.seeds, plan.more_seeds))

    def trials(self, cells: list[Cell], seeds: range) -> list[Trial]:
        """Return the trials seed by seed, so that an interrupted study has complete seeds. Pixels have a single run."""
        return [self.trial(cell, seed) for seed in seeds for cell in cells if cell.method.way != "pixels" or seed == 0]

    def hours(self, left: list[Trial]) -> float:
        """Estimate the hours that the trials take on one core, from the training in this folder; 0 without any."""
        weight = seconds = 0.0
        for file in self.folder.glob("rho*/*/args.json"):
            stage = read_stage(file.parent)
            if stage.epochs:
                way = "contrast" if "contrast" in stage.args else "cross-entropy"
                weight += self.views(way, stage.args["imbalance"], len(stage.epochs))
                seconds += sum(record["seconds"] for record in stage.epochs)
        return sum(trial.weight for trial in left) * seconds / weight / 3600 if weight else 0.0

    def pair(self, imbalance: float) -> list[Cell]:
        """Return the two methods of the plan's first pair."""
        return [Cell(imbalance, self.plan.methods[key]) for key in self.plan.pairs[0]]

    def unresolved(self) -> list[float]:
        """Return the imbalances at which the first pair's confidence interval contains 0 and is wide."""
        if not self.plan.pairs or self.plan.more_seeds <= self.plan.seeds:
            return []
        found = []
        for imbalance in self.plan.imbalances:
            one, other = (self.found(cell, range(self.plan.seeds)) for cell in self.pair(imbalance))
            if len(one) < self.plan.seeds or len(other) < self.plan.seeds:
                continue
            _, low, high = paired_difference(reading.accuracy(one)[:, -1] - reading.accuracy(other)[:, -1])
            if low <= 0 <= high and (high - low) / 2 > self.plan.resolved:
                found.append(imbalance)
        return found

    def found(self, cell: Cell, seeds: range) -> list[Found]:
        """Return the finished runs of a cell, up to the first seed that has not finished."""
        runs = []
        for seed in seeds if cell.method.way != "pixels" else seeds[:1]:
            trial = self.trial(cell, seed)
            if trials.left_of(trial).commands:
                break
            runs.append(reading.found(trial, seed))
        return runs

    def results(self) -> Results:
        """Return the results of all finished runs."""
        plan, most = self.plan, range(self.plan.more_seeds)
        groups = {(cell.imbalance, cell.method.key): self.found(cell, most) for cell in trials.main_cells(plan)}
        sweeps = {}
        for sweep in plan.sweeps:
            cells = trials.sweep_cells(plan, sweep)
            sweeps[sweep.key] = {at: self.found(cell, range(sweep.seeds)) for at, cell in cells.items()}
        return Results(plan, groups, sweeps)


def best_rate(accuracies: dict[str, float]) -> str:
    """Return the rate with the best mean accuracy over itself and its two neighbours in the grid.

    The mean is used because the noise of one run exceeds the difference between neighbours. The ends of the grid have
    only one neighbour and are never selected. In a grid of two, the better rate is selected. In a tie, the first wins.
    """
    rates, values = [*accuracies], [*accuracies.values()]
    if len(rates) < 3:
        return max(rates, key=accuracies.get)
    means = {rate: sum(values[at - 1 : at + 2]) / 3 for at, rate in enumerate(rates) if 0 < at < len(rates) - 1}
    return max(means, key=means.get)
