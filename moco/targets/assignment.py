"""Exact assignment of targets to classes at every step, updated for the classes whose centroids moved.

The permutation sigma that maximises sum_y c_y · t_sigma(y) solves a linear assignment problem with
costs -c_y · t_j. Give every target a price; the priced cost of a target for a class is its cost plus
its price. If each class has the target with the least priced cost for it, then no permutation is
better (linear programming duality): the prices prove optimality. A step moves only the centroids of
one batch, so the proof is checked for those classes only. A class whose target is no longer the
cheapest (least priced cost) is unassigned: it gives up its target and gets a new one by shortest
augmenting paths (Jonker and Volgenant 1987, "A shortest augmenting path algorithm for dense and
sparse linear assignment problems").

Only a few targets are close enough to a class to matter. Each class therefore keeps a list: its own
target, the targets that were cheapest when the list was made, and the least priced cost of all other
targets at that time. Prices only rise. While the priced cost of its own target is at most that least
value, no target outside the list is cheaper. If the list cannot prove this, the class compares all
targets again.
"""

from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import count

import numpy as np
import torch
from torch import Tensor

from moco.targets.chains import shortest_chains

TOLERANCE = 1e-12  # of the optimality proof, as a cosine: the rounding of some thousand float64 additions
ROWS = 128  # rows of a (rows, C) intermediate result
WIDTH = 64  # targets per list; at most about 30 matter when classes compete for targets
REVIEW = 4  # while classes need a target, the lists of all others are checked only in every 4th round
PATIENCE = 128  # every 128 rounds, the lists double in size; lists that contain all targets prove everything

_solver_thread = ThreadPoolExecutor(1, "assignment")  # the thread starts at the first solve


class Assignment:
    """Solver for the optimal permutation of the current centroids, starting from the previous solution.

    Lists, permutation and prices are kept only to save time. The result depends on the centroids
    alone, so checkpoints need no solver state, and all ranks get the same result. (Permutations
    whose sums are equal to float64 precision count as the same.)

    Args:
        targets: (C, D) unit vectors. Host memory: about 7 kB per class, 0.06 GB for C = 8142, 0.5 GB for C = 80,000.
    """

    def __init__(self, targets: Tensor):
        num_classes, on_gpu = len(targets), targets.is_cuda
        self._minus_targets = -targets.detach().cpu().double().T  # (D, C)
        self._incoming = torch.empty(targets.shape, dtype=targets.dtype, pin_memory=on_gpu)  # (C, D)
        self._centroids = torch.full_like(self._incoming, torch.nan)  # of the last solve; nan: unequal to all
        self._target = np.arange(num_classes)  # (C,) target of each class
        self._assigned_cost = np.empty(num_classes)  # (C,) cost of this target
        self._price = None  # (C,) price of each target, set by the first solve
        self._unlisted_min = np.empty(num_classes)  # (C,) least priced cost of the targets not on the list
        self._clear_lists(min(WIDTH, num_classes))
        self._pending: Future | None = None
        self._device = targets.device

    def _clear_lists(self, width: int) -> None:
        self._listed = np.zeros((len(self._target), width), dtype=np.int64)  # (C, width) targets
        self._listed_cost = np.full(self._listed.shape, np.inf)  # (C, width) their costs; inf: unused entry

    def start(self, centroids: Tensor) -> None:
        """Start to solve for these (C, D) centroids in a thread. `result` waits for it."""
        if self._pending:  # `result` was not called, because of an error in between
            wait([self._pending])
        self._incoming.copy_(centroids, non_blocking=True)
        copied = torch.cuda.current_stream(self._device).record_event() if centroids.is_cuda else None
        self._pending = _solver_thread.submit(self._solve_when, copied)

    def result(self) -> Tensor:
        """Wait for the solver and return the row of each class's target, (C,) int64 on the device of the targets.

        Raises:
            FloatingPointError: If a centroid is not finite, because the features have diverged.
        """
        pending, self._pending = self._pending, None
        return torch.from_numpy(pending.result()).to(self._device, non_blocking=True)

    def _solve_when(self, copied: torch.cuda.Event | None) -> np.ndarray:
        if copied is not None:
            with torch.cuda.device(self._device):  # a thread uses GPU 0 by default, and would allocate there
                copied.synchronize()
        return self.solve(self._incoming)

    def solve(self, centroids: Tensor) -> np.ndarray:
        """Return the optimal permutation (C,) for these (C, D) centroids on the CPU. Raises the errors of `result`."""
        moved = (centroids != self._centroids).any(dim=1).nonzero()[:, 0]  # (M,) classes
        if not centroids[moved].isfinite().all():
            raise FloatingPointError("a class centroid is not finite")
        self._centroids[moved] = centroids[moved]
        if self._price is None:  # minus the mean cost of each target, which is common to all classes
            self._price = -(self._centroids.double().mean(dim=0) @ self._minus_targets).numpy()
        unassigned = self._compare_all_targets(moved.numpy(), make_lists=False)
        if len(unassigned):
            self._repair(unassigned)
            level = np.floor(self._price.min())  # subtracting an integer is exact and keeps prices small
            self._price -= level
            self._unlisted_min -= level
        return self._target.copy()

    def _compare_all_targets(self, classes: np.ndarray, make_lists: bool) -> np.ndarray:
        """Compare all targets for these classes. Return the classes for which another target is cheaper than their own.

        A class that keeps its target needs no list. Without `make_lists`, lists are made only for blocks of classes
        of which at least one has a cheaper target.
        """
        unassigned = [classes[:0]]
        for rows in np.split(classes, range(ROWS, len(classes), ROWS)):
            cost = (self._centroids[rows].double() @ self._minus_targets).numpy()  # (rows, C)
            own = np.arange(len(rows)), self._target[rows]
            priced_cost = cost + self._price
            limit = priced_cost[own] - TOLERANCE
            priced_cost[own] = np.inf  # from here on: of all other targets
            self._assigned_cost[rows], self._unlisted_min[rows] = cost[own], priced_cost.min(axis=1)
            unassigned.append(rows[self._unlisted_min[rows] < limit])
            self._listed[rows, 0], self._listed_cost[rows, 0], self._listed_cost[rows, 1:] = own[1], cost[own], np.inf
            if len(unassigned[-1]) or make_lists:
                self._list_others(rows, cost, priced_cost)
        return np.concatenate(unassigned)

    def _list_others(self, rows: np.ndarray, cost: np.ndarray, priced_cost: np.ndarray) -> None:
        """Fill the lists of these classes with their cheapest other targets; the costs are (rows, C)."""
        others = self._listed.shape[1] - 1
        cheapest, order = torch.from_numpy(priced_cost).topk(others + 1, largest=False)  # the cheapest first
        order = order[:, :others].numpy()
        self._listed[rows, 1:] = order
        self._listed_cost[rows, 1:] = np.take_along_axis(cost, order, axis=1)
        self._unlisted_min[rows] = cheapest[:, others].numpy()  # inf if all targets are listed

    def _repair(self, unassigned: np.ndarray) -> None:
        """Find targets for the unassigned classes, until the lists prove that every class has its cheapest target."""
        for rounds in count(1):
            still_unassigned = self._reassign(unassigned)
            unproven = self._unproven(still_unassigned)
            if not len(still_unassigned) and not len(unproven):
                return
            if len(still_unassigned) and rounds % REVIEW:  # the rest is checked together, after prices have risen
                unproven = np.intersect1d(unproven, still_unassigned, assume_unique=True)
            if rounds % PATIENCE == 0:
                self._clear_lists(min(2 * self._listed.shape[1], len(self._target)))
                unproven = np.arange(len(self._target))
            unassigned = np.setdiff1d(still_unassigned, unproven, assume_unique=True)
            if len(unproven):
                unassigned = np.concatenate([unassigned, self._compare_all_targets(unproven, make_lists=True)])

    def _unproven(self, still_unassigned: np.ndarray) -> np.ndarray:
        """Return the classes whose list does not prove that their target is the cheapest one.

        The list of a class that is still unassigned must prove that the cheapest target is on the list.
        """
        limit = self._assigned_cost + self._price[self._target]
        cheapest = self._listed_cost[still_unassigned] + self._price[self._listed[still_unassigned]]
        limit[still_unassigned] = cheapest.min(axis=1)
        limit -= TOLERANCE
        unproven = np.flatnonzero(self._unlisted_min < limit)
        if not len(unproven) and not len(still_unassigned):  # targets off the lists are no cheaper; check the lists
            unproven = np.flatnonzero((self._listed_cost + self._price[self._listed]).min(axis=1) < limit)
        return unproven

    def _reassign(self, unassigned: np.ndarray) -> np.ndarray:
        """Give some unassigned classes their targets. Return the others; they hold the remaining targets for now."""
        if not len(unassigned):
            return unassigned
        current = self._assigned_cost + self._price[self._target]
        chains, self._price = shortest_chains(
            self._listed, self._listed_cost, self._target, current, self._price, unassigned
        )
        remaining = set(self._target[unassigned].tolist())
        for chain in chains:
            for mover, target in chain:
                self._target[mover] = target
                self._assigned_cost[mover] = self._listed_cost[mover, (self._listed[mover] == target).argmax()]
            remaining.remove(chain[0][1])
        if not chains:  # -inf: `_unproven` returns them, and they get new lists with their current target
            self._unlisted_min[unassigned] = -np.inf
        still_unassigned = np.array(
            sorted(set(unassigned.tolist()) - {chain[-1][0] for chain in chains}), dtype=np.int64
        )
        self._target[still_unassigned] = sorted(remaining)
        return still_unassigned
