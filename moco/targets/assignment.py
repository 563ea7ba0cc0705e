"""Exact assignment of targets to classes at every step, updated for the classes whose centroids moved.

The permutation sigma that maximises sum_y c_y · t_sigma(y) solves a linear assignment problem with
costs -c_y · t_j. Give every target a price. If each class has the target with the least cost + price
for it, then no permutation is better (linear programming duality): the prices prove optimality.
A step moves only the centroids of one batch, so the proof is checked for those classes only. A class
whose target is no longer the cheapest gets a new one by shortest augmenting paths (Jonker and
Volgenant 1987, "A shortest augmenting path algorithm for dense and sparse linear assignment
problems").

Only a few targets are close enough to a class to matter. Each class therefore keeps a list: its own
target, the targets that were cheapest when the list was made, and the least cost + price of all other
targets at that time. Prices only rise. While its own target costs no more than that least value, no
target outside the list is cheaper. If the list cannot prove this, the class compares all targets again.
"""

from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import count

import numpy as np
import torch
from torch import Tensor

TOLERANCE = 1e-12  # of the optimality proof, as a cosine: the rounding of some thousand float64 additions
ROWS = 128  # rows of a (rows, C) intermediate result
WIDTH = 64  # targets per list; at most about 30 matter when classes compete for targets
REVIEW = 4  # rounds of one solve between checks of all lists, while some classes still need a target
PATIENCE = 128  # rounds of one solve before lists double in size; a list of all targets always decides

_host = ThreadPoolExecutor(1, "assignment")  # the thread starts at the first solve


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
        self._own = np.empty(num_classes)  # (C,) cost of this target
        self._price = None  # (C,) price of each target, set by the first solve
        self._beyond = np.empty(num_classes)  # (C,) least cost + price of the targets not on the list
        self._clear_lists(min(WIDTH, num_classes))
        self._pending: Future | None = None
        self._device = targets.device

    def _clear_lists(self, width: int) -> None:
        self._near = np.zeros((len(self._target), width), dtype=np.int64)  # (C, width) targets
        self._cost = np.full(self._near.shape, np.inf)  # (C, width) their costs; inf: unused entry

    def start(self, centroids: Tensor) -> None:
        """Start to solve for these (C, D) centroids in a thread. `result` waits for it."""
        if self._pending:  # `result` was not called, because of an error in between
            wait([self._pending])
        self._incoming.copy_(centroids, non_blocking=True)
        copied = torch.cuda.current_stream(self._device).record_event() if centroids.is_cuda else None
        self._pending = _host.submit(self._solve_when, copied)

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
        losers = self._look(moved.numpy(), make_lists=False)
        if len(losers):
            self._repair(losers)
            level = np.floor(self._price.min())  # subtracting an integer is exact and keeps prices small
            self._price -= level
            self._beyond -= level
        return self._target.copy()

    def _look(self, classes: np.ndarray, make_lists: bool) -> np.ndarray:
        """Compare all targets for these classes. Return the classes for which another target is cheaper than their own.

        A class that keeps its target needs no list. Without `make_lists`, lists are made only for blocks of classes
        of which at least one has a cheaper target.
        """
        losers = [classes[:0]]
        for rows in np.split(classes, range(ROWS, len(classes), ROWS)):
            cost = (self._centroids[rows].double() @ self._minus_targets).numpy()  # (rows, C)
            own = np.arange(len(rows)), self._target[rows]
            offer = cost + self._price
            limit = offer[own] - TOLERANCE
            offer[own] = np.inf  # from here on: offers of all other targets
            self._own[rows], self._beyond[rows] = cost[own], offer.min(axis=1)
            losers.append(rows[self._beyond[rows] < limit])
            self._near[rows, 0], self._cost[rows, 0], self._cost[rows, 1:] = own[1], cost[own], np.inf
            if len(losers[-1]) or make_lists:
                self._list_others(rows, cost, offer)
        return np.concatenate(losers)

    def _list_others(self, rows: np.ndarray, cost: np.ndarray, offer: np.ndarray) -> None:
        """Fill the lists of these classes with their cheapest other targets; `cost` and `offer` are (rows, C)."""
        others = self._near.shape[1] - 1
        offers, order = torch.from_numpy(offer).topk(others + 1, largest=False)  # the cheapest first
        order = order[:, :others].numpy()
        self._near[rows, 1:] = order
        self._cost[rows, 1:] = np.take_along_axis(cost, order, axis=1)
        self._beyond[rows] = offers[:, others].numpy()  # inf if all targets are listed

    def _repair(self, losers: np.ndarray) -> None:
        """Find targets for the losers, until the lists prove that every class has its cheapest target."""
        for rounds in count(1):
            waiting = self._move_on(losers)
            doubtful = self._doubtful(waiting)
            if not len(waiting) and not len(doubtful):
                return
            if len(waiting) and rounds % REVIEW:  # the rest is checked together, after prices have risen further
                doubtful = np.intersect1d(doubtful, waiting, assume_unique=True)
            if rounds % PATIENCE == 0:
                self._clear_lists(min(2 * self._near.shape[1], len(self._target)))
                doubtful = np.arange(len(self._target))
            losers = np.setdiff1d(waiting, doubtful, assume_unique=True)
            if len(doubtful):
                losers = np.concatenate([losers, self._look(doubtful, make_lists=True)])

    def _doubtful(self, waiting: np.ndarray) -> np.ndarray:
        """Return the classes whose list does not prove their target (if waiting: some target) to be the cheapest."""
        limit = self._own + self._price[self._target]
        limit[waiting] = (self._cost[waiting] + self._price[self._near[waiting]]).min(axis=1)
        limit -= TOLERANCE
        doubtful = np.flatnonzero(self._beyond < limit)
        if not len(doubtful) and not len(waiting):  # targets off the lists are no cheaper; check the lists
            doubtful = np.flatnonzero((self._cost + self._price[self._near]).min(axis=1) < limit)
        return doubtful

    def _move_on(self, losers: np.ndarray) -> np.ndarray:
        """Give some losers their targets. Return the others; they get the remaining targets for now."""
        if not len(losers):
            return losers
        pays = self._own + self._price[self._target]
        chains, self._price = shortest_chains(self._near, self._cost, self._target, pays, self._price, losers)
        left = set(self._target[losers].tolist())
        for chain in chains:
            for mover, target in chain:
                self._target[mover] = target
                self._own[mover] = self._cost[mover, (self._near[mover] == target).argmax()]
            left.remove(chain[0][1])
        if not chains:  # forces new lists, which include the own target
            self._beyond[losers] = -np.inf
        waiting = np.array(sorted(set(losers.tolist()) - {chain[-1][0] for chain in chains}), dtype=np.int64)
        self._target[waiting] = sorted(left)
        return waiting


def shortest_chains(
    near: np.ndarray, cost: np.ndarray, target: np.ndarray, pays: np.ndarray, price: np.ndarray, losers: np.ndarray
) -> tuple[list[list[tuple[int, int]]], np.ndarray]:
    """Find targets for the losers, each through a chain of classes that change targets with the least total loss.

    The losers give up their targets. If a class moves to a target on its list, its loss is cost + price minus what it
    pays now; a loser pays its cheapest cost + price. All losers search at once, by relaxation (Bellman and Ford), up to
    the nearest quarter of the targets given up. In the example, class 2 takes target 0 from class 0, which takes
    target 1 at a loss of 1 from class 1, which takes target 2 at a loss of 3. The new prices prove optimality:

    >>> near, target, price = np.array(3 * [[0, 1, 2]]), np.array([0, 1, 2]), np.zeros(3)
    >>> cost = np.array([[0.0, 1.0, 5.0], [2.0, 0.0, 3.0], [0.0, 5.0, 9.0]])
    >>> chains, risen = shortest_chains(near, cost, target, cost.diagonal(), price, losers=np.array([2]))
    >>> chains, risen.tolist()
    ([[(1, 2), (0, 1), (2, 0)]], [4.0, 3.0, 0.0])

    Args:
        near, cost: (C, width), the targets on each class's list and their costs; inf: unused entry. The list includes
            the class's own target, except for losers that hold a remaining target.
        target, pays: (C,), the target of each class, and its cost + price.
        price: (C,), the price of each target. At these prices, the target of each class except the losers is the
            cheapest on its list.
        losers: (L,) classes.

    Returns:
        Chains of moves (class, new target) without common classes, each ending with the move of a loser; and the
        prices (C,) after these moves. There are no chains if the lists lead to no target that was given up.
    """
    pays = pays.copy()
    pays[losers] = (cost[losers] + price[near[losers]]).min(axis=1)
    loss, sender, limit = _search(near, cost, target, pays, price, losers)
    chains, found, searching = [], set(), set(losers.tolist())
    ends = target[losers]
    ends = ends[loss[ends] < np.inf]
    if not len(ends):
        return [], price
    limit = min(limit, loss[ends].max())
    for end in ends[loss[ends] <= limit]:
        chain = [(int(sender[end]), int(end))]
        while (mover := chain[-1][0]) not in searching:
            chain.append((int(sender[target[mover]]), int(target[mover])))
        if mover not in found:
            found.add(mover)
            chains.append(chain)
    # Raise the price of each target by its distance to the limit. The old and the new target of a class on a chain
    # then cost the same, and no other target costs any class less.
    return chains, price + np.maximum(limit - loss, 0)


def _search(near, cost, target, pays, price, losers) -> tuple[np.ndarray, np.ndarray, float]:
    """Search for `shortest_chains`. Return losses (C,), exact below the limit, moving classes (C,), and limit."""
    holder, given_up, quarter = np.empty_like(target), target[losers], (len(losers) - 1) // 4
    holder[target] = np.arange(len(target))
    loss = np.full(len(target), np.inf)  # (C,) loss of the best known chain to each target
    sender = np.empty_like(target)  # (C,) class that would move to it
    unread = np.zeros(len(target), dtype=bool)  # (C,) chain improved since its class was expanded
    movers, so_far, limit = losers, np.zeros(len(losers)), np.inf
    while len(movers):
        wanted = near[movers]  # (movers, width)
        onward = np.maximum(cost[movers] + price[wanted] - pays[movers, None], 0) + so_far[:, None]
        nearer = onward < np.minimum(loss[wanted], limit)
        to, by, onward = wanted[nearer], np.repeat(movers, nearer.sum(axis=1)), onward[nearer]
        np.minimum.at(loss, to, onward)
        best = onward == loss[to]
        sender[to[best]] = by[best]
        limit = np.partition(loss[given_up], quarter)[quarter]
        unread[to], unread[given_up] = True, False
        reached = np.flatnonzero(unread)
        reached = reached[loss[reached] < limit]
        if len(reached) > ROWS:  # nearest first: fewer are expanded twice
            reached = reached[np.argpartition(loss[reached], ROWS)[:ROWS]]
        unread[reached] = False
        movers, so_far = holder[reached], loss[reached]
    return loss, sender, limit
