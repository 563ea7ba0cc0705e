"""Which class has which target, exactly and at every step, at the price of the few classes that moved.

The permutation sigma that maximises sum_y c_y · t_sigma(y) is a linear assignment with costs
-c_y · t_j. Put a price on every target. If each class has a target that is cheapest for it,
cost + price, then no permutation is better (linear programming duality): prices are the proof.
A step moves the centroids of one batch, so the proof is read again for those classes alone, and
classes whose target is no longer their cheapest find one by shortest augmenting paths (Jonker
and Volgenant 1987, "A shortest augmenting path algorithm for dense and sparse linear assignment
problems").

Few targets are near enough to a class to matter. So each class keeps a list: its own target, those
that were the cheapest when the list was made, and the least that any other cost then. Prices only
rise: while its own costs no more than that, no target off the list is cheaper. A class that its
list leaves in doubt looks at all targets again.
"""

from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import count

import numpy as np
import torch
from torch import Tensor

TOLERANCE = 1e-12  # of the proof, in units of a cosine: float64 and some thousand additions
ROWS = 128  # of a (rows, C) intermediate
WIDTH = 64  # targets on a list: some 30 matter at most where centroids are contested
REVIEW = 4  # rounds of one solve from one review of all lists to the next, while some classes wait for a target
PATIENCE = 128  # rounds of one solve after which lists grow: a list of all targets leaves no doubt

_host = ThreadPoolExecutor(1, "assignment")  # its thread starts with the first solve


class Assignment:
    """The best permutation for the centroids of this step, from that of the last.

    It remembers lists, permutation and prices, but they only save time: the answer is a
    function of the centroids, so none of it belongs into a checkpoint, and all ranks find
    the same. (Two permutations whose sums differ by less than float64 can tell are one.)

    Args:
        targets: (C, D) unit vectors. Host memory: some 7 kB a class, 0.06 GB for C = 8142, 0.5 GB for C = 80,000.
    """

    def __init__(self, targets: Tensor):
        num_classes, on_gpu = len(targets), targets.is_cuda
        self._minus_targets = -targets.detach().cpu().double().T  # (D, C)
        self._incoming = torch.empty(targets.shape, dtype=targets.dtype, pin_memory=on_gpu)  # (C, D)
        self._centroids = torch.full_like(self._incoming, torch.nan)  # of the last solve; nan differs from all
        self._target = np.arange(num_classes)  # (C,) of each class
        self._own = np.empty(num_classes)  # (C,) its cost for the class
        self._price = None  # (C,) of each target, from the first solve on
        self._beyond = np.empty(num_classes)  # (C,) the least cost + price of what is not on the class's list
        self._clear_lists(min(WIDTH, num_classes))
        self._pending: Future | None = None
        self._device = targets.device

    def _clear_lists(self, width: int) -> None:
        self._near = np.zeros((len(self._target), width), dtype=np.int64)  # (C, width) targets
        self._cost = np.full(self._near.shape, np.inf)  # (C, width); inf: nothing there

    def start(self, centroids: Tensor) -> None:
        """Begin to solve for these (C, D) centroids, beside whatever the caller does until `result`."""
        if self._pending:  # nobody asked for it: an error came between
            wait([self._pending])
        self._incoming.copy_(centroids, non_blocking=True)
        copied = torch.cuda.current_stream(self._device).record_event() if centroids.is_cuda else None
        self._pending = _host.submit(self._solve_when, copied)

    def result(self) -> Tensor:
        """Wait for the solve: (C,) int64 on the targets' device, the row of each class's target.

        Raises:
            FloatingPointError: a centroid is not finite: the features have diverged.
        """
        pending, self._pending = self._pending, None
        return torch.from_numpy(pending.result()).to(self._device, non_blocking=True)

    def _solve_when(self, copied: torch.cuda.Event | None) -> np.ndarray:
        if copied is not None:
            with torch.cuda.device(self._device):  # a thread starts on GPU 0, and waiting there takes its memory
                copied.synchronize()
        return self.solve(self._incoming)

    def solve(self, centroids: Tensor) -> np.ndarray:
        """The best permutation (C,) for these (C, D) centroids on the CPU, here and now. Raises as `result`."""
        moved = (centroids != self._centroids).any(dim=1).nonzero()[:, 0]  # (M,) classes
        if not centroids[moved].isfinite().all():
            raise FloatingPointError("a class centroid is not finite")
        self._centroids[moved] = centroids[moved]
        if self._price is None:  # what all classes have in common decides nothing: prices take it away
            self._price = -(self._centroids.double().mean(dim=0) @ self._minus_targets).numpy()
        losers = self._look(moved.numpy(), make_lists=False)
        if len(losers):
            self._repair(losers)
            level = np.floor(self._price.min())  # an integer: exact, and prices stay small
            self._price -= level
            self._beyond -= level
        return self._target.copy()

    def _look(self, classes: np.ndarray, make_lists: bool) -> np.ndarray:
        """Compare all targets for these classes; returns those for which another one is cheaper than their own.

        A class at rest in its target needs no list but that, so without `make_lists` it gets one only if it, or one
        that is read with it, is not.
        """
        losers = [classes[:0]]
        for rows in np.split(classes, range(ROWS, len(classes), ROWS)):
            cost = (self._centroids[rows].double() @ self._minus_targets).numpy()  # (rows, C)
            own = np.arange(len(rows)), self._target[rows]
            offer = cost + self._price
            limit = offer[own] - TOLERANCE
            offer[own] = np.inf  # from here on: of all others
            self._own[rows], self._beyond[rows] = cost[own], offer.min(axis=1)
            losers.append(rows[self._beyond[rows] < limit])
            self._near[rows, 0], self._cost[rows, 0], self._cost[rows, 1:] = own[1], cost[own], np.inf
            if len(losers[-1]) or make_lists:
                self._list_others(rows, cost, offer)
        return np.concatenate(losers)

    def _list_others(self, rows: np.ndarray, cost: np.ndarray, offer: np.ndarray) -> None:
        """Fill the lists of these classes with the cheapest of the others; `cost` and `offer` are (rows, C)."""
        others = self._near.shape[1] - 1
        offers, order = torch.from_numpy(offer).topk(others + 1, largest=False)  # the cheapest first
        order = order[:, :others].numpy()
        self._near[rows, 1:] = order
        self._cost[rows, 1:] = np.take_along_axis(cost, order, axis=1)
        self._beyond[rows] = offers[:, others].numpy()  # inf: all are listed

    def _repair(self, losers: np.ndarray) -> None:
        """Give the losers targets until no class is in doubt."""
        for rounds in count(1):
            waiting = self._move_on(losers)
            doubtful = self._doubtful(waiting)
            if not len(waiting) and not len(doubtful):
                return
            if len(waiting) and rounds % REVIEW:  # the others are looked at together, when prices have risen further
                doubtful = np.intersect1d(doubtful, waiting, assume_unique=True)
            if rounds % PATIENCE == 0:
                self._clear_lists(min(2 * self._near.shape[1], len(self._target)))
                doubtful = np.arange(len(self._target))
            losers = np.setdiff1d(waiting, doubtful, assume_unique=True)
            if len(doubtful):
                losers = np.concatenate([losers, self._look(doubtful, make_lists=True)])

    def _doubtful(self, waiting: np.ndarray) -> np.ndarray:
        """The classes whose lists do not prove which target is their cheapest: their own, but for those that wait."""
        limit = self._own + self._price[self._target]
        limit[waiting] = (self._cost[waiting] + self._price[self._near[waiting]]).min(axis=1)
        limit -= TOLERANCE
        doubtful = np.flatnonzero(self._beyond < limit)
        if not len(doubtful) and not len(waiting):  # what is off the lists is no cheaper; and what is on them?
            doubtful = np.flatnonzero((self._cost + self._price[self._near]).min(axis=1) < limit)
        return doubtful

    def _move_on(self, losers: np.ndarray) -> np.ndarray:
        """Give some of the losers their targets; the others get what is left over for now, and are returned."""
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
        if not chains:  # a list that is made now has the class's own target
            self._beyond[losers] = -np.inf
        waiting = np.array(sorted(set(losers.tolist()) - {chain[-1][0] for chain in chains}), dtype=np.int64)
        self._target[waiting] = sorted(left)
        return waiting


def shortest_chains(
    near: np.ndarray, cost: np.ndarray, target: np.ndarray, pays: np.ndarray, price: np.ndarray, losers: np.ndarray
) -> tuple[list[list[tuple[int, int]]], np.ndarray]:
    """Find losers a target, each at the least total loss through a chain of classes that each move on.

    The losers give up their targets. The step from a class to a target on its list costs what the class loses by it,
    cost + price less what it pays now, or for a loser less its cheapest. All losers search at once, by relaxation
    (Bellman and Ford), as far as a quarter of the targets given up. Here class 2 takes target 0, whose class 0
    loses 1 by taking target 1, whose class 1 loses 3 by taking target 2, and the prices prove that nothing is better:

    >>> near, target, price = np.array(3 * [[0, 1, 2]]), np.array([0, 1, 2]), np.zeros(3)
    >>> cost = np.array([[0.0, 1.0, 5.0], [2.0, 0.0, 3.0], [0.0, 5.0, 9.0]])
    >>> chains, risen = shortest_chains(near, cost, target, cost.diagonal(), price, losers=np.array([2]))
    >>> chains, risen.tolist()
    ([[(1, 2), (0, 1), (2, 0)]], [4.0, 3.0, 0.0])

    Args:
        near, cost: (C, width) targets on each class's list, its own among them but for a loser that was left with one,
            and their costs; inf: nothing there.
        target, pays: (C,) of each class, and its cost + price. price: (C,) of each target, at which its class's own
            is the cheapest on its list but for the losers'. losers: (L,) classes.

    Returns:
        Chains of moves (class, its new target) that have no class in common, the loser's last, and the prices (C,)
        after them. None, where the lists lead to no target that is given up.
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
    # Nearer targets rise by how much nearer they are: old and new target then cost a class on a chain the same, and
    # no other costs any class less.
    return chains, price + np.maximum(limit - loss, 0)


def _search(near, cost, target, pays, price, losers) -> tuple[np.ndarray, np.ndarray, float]:
    """The search of `shortest_chains`: losses (C,), right below the limit, who would move (C,), and the limit."""
    holder, given_up, quarter = np.empty_like(target), target[losers], (len(losers) - 1) // 4
    holder[target] = np.arange(len(target))
    loss = np.full(len(target), np.inf)  # (C,) of the best chain known to each target
    sender = np.empty_like(target)  # (C,) the class that would move there
    unread = np.zeros(len(target), dtype=bool)  # (C,) whether the chain has become better since its class was read
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
        if len(reached) > ROWS:  # the nearest first: fewer are read twice
            reached = reached[np.argpartition(loss[reached], ROWS)[:ROWS]]
        unread[reached] = False
        movers, so_far = holder[reached], loss[reached]
    return loss, sender, limit
