"""Which class has which target, exactly and at every step, at the price of the few classes that moved.

The permutation sigma that maximises sum_y c_y · t_sigma(y) is a linear assignment with costs
-c_y · t_j. Put a price on every target. If each class has a target that is cheapest for it,
cost + price, then no permutation is better (linear programming duality): prices are the proof.
A step moves the centroids of one batch, so the proof is read again for those classes alone, and
a class whose target is no longer its cheapest finds one by a shortest augmenting path (Jonker
and Volgenant 1987, "A shortest augmenting path algorithm for dense and sparse linear assignment
problems").
"""

from concurrent.futures import Future, ThreadPoolExecutor, wait

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

TOLERANCE = 1e-12  # of the proof, in units of a cosine: float64 and some thousand additions
ROWS = 128  # of a (rows, C) intermediate
REPAIRABLE = 1 / 4  # share of the classes above which starting afresh is faster
FREE = -1  # the class of a target that no class has

_host = ThreadPoolExecutor(1, "assignment")  # its thread starts with the first solve


class Assignment:
    """The best permutation for the centroids of this step, from that of the last.

    It remembers costs, permutation and prices, but they only save time: the answer is a
    function of the centroids, so none of it belongs into a checkpoint, and all ranks find
    the same. (Two permutations whose sums differ by less than float64 can tell are one.)

    Args:
        targets: (C, D) unit vectors. Host memory: 8·C² bytes, 530 MB for C = 8142.
    """

    def __init__(self, targets: Tensor):
        num_classes, on_gpu = len(targets), targets.is_cuda
        self._minus_targets = -targets.detach().cpu().double().T  # (D, C)
        self._incoming = torch.empty(targets.shape, dtype=targets.dtype, pin_memory=on_gpu)  # (C, D)
        self._centroids = torch.full_like(self._incoming, torch.nan)  # of the last solve; nan differs from all
        self._cost = torch.empty(num_classes, num_classes, dtype=torch.float64)  # (C, C) class, target
        self._target = np.arange(num_classes)  # (C,) of each class
        self._class = np.arange(num_classes)  # (C,) of each target: the inverse, or FREE
        self._price = np.zeros(num_classes)  # (C,) of each target
        self._pending: Future | None = None
        self._device = targets.device

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
        losers = self._move(moved, centroids)
        if not self._repair(moved, losers):
            self._start_afresh()
        return self._target.copy()

    def _move(self, moved: Tensor, centroids: Tensor) -> np.ndarray:
        """Take in the centroids that moved; returns the classes whose own target is not their cheapest now."""
        losers = [moved[:0]]
        for rows in moved.split(ROWS):
            self._centroids[rows] = centroids[rows]
            cost = centroids[rows].double() @ self._minus_targets  # (rows, C)
            self._cost[rows] = cost
            losers.append(self._losers(rows, cost))
        return torch.cat(losers).numpy()

    def _repair(self, moved: Tensor, losers: np.ndarray) -> bool:
        """Give the losers among the moved their cheapest targets. False: too many, or the proof fails."""
        if len(losers) > REPAIRABLE * len(self._target):
            return False
        if not len(losers):
            return True
        target_before, price_before = self._target.copy(), self._price.copy()
        self._class[self._target[losers]] = FREE
        for loser in losers:
            chain, self._price = shortest_chain(self._cost.numpy(), self._price, self._class, loser)
            for mover, target in chain:
                self._class[target], self._target[mover] = mover, target
        # Prices only rise, so a class whose own price stands has nothing cheaper than before.
        touched = (self._target != target_before) | (self._price > price_before)[self._target]
        touched[moved] = True
        rows = torch.from_numpy(np.flatnonzero(touched))
        proven = not any(len(self._losers(part, self._cost[part])) for part in rows.split(ROWS))
        self._price -= np.floor(self._price.min())  # an integer: exact, and prices stay small
        return proven

    def _losers(self, rows: Tensor, cost: Tensor) -> Tensor:
        """Those of the classes `rows`, of costs (rows, C), for which another target is cheaper than their own."""
        offer = cost + torch.from_numpy(self._price)  # (rows, C)
        own = offer.gather(1, torch.from_numpy(self._target)[rows, None])[:, 0]  # (rows,)
        return rows[offer.amin(dim=1) < own - TOLERANCE]

    def _start_afresh(self) -> None:
        """Solve without a memory, and find the prices that prove it."""
        _, self._target = linear_sum_assignment(self._cost.numpy())
        self._class = self._target.argsort()
        self._price = prices(self._cost, self._target)


def shortest_chain(
    cost: np.ndarray, price: np.ndarray, class_of: np.ndarray, loser: int
) -> tuple[list[tuple[int, int]], np.ndarray]:
    """Find the loser a target, at the least total loss through a chain of classes that each move on.

    Dijkstra's algorithm from the loser to the nearest free target: the step from a class to a target costs what the
    class loses by it, cost + price less that of its own. Here class 2 takes target 0, whose class 0 loses 1 by taking
    target 1, whose class 1 loses 3 by taking the free target 2; and the prices prove that nothing is better:

    >>> cost = np.array([[0.0, 1.0, 5.0], [2.0, 0.0, 3.0], [0.0, 5.0, 9.0]])
    >>> chain, risen = shortest_chain(cost, price=np.zeros(3), class_of=np.array([0, 1, FREE]), loser=2)
    >>> chain, risen.tolist()
    ([(1, 2), (0, 1), (2, 0)], [4.0, 3.0, 0.0])

    Args:
        cost: (C, C) float64, class by target. price: (C,) at which each class's target is its cheapest.
        class_of: (C,) the class of each target, or FREE. loser: the class without one.

    Returns:
        The moves (class, its new target), the loser's last, and the prices (C,) after them.
    """
    loss = cost[loser] + price
    loss -= loss.min()  # (C,) of the best chain known to each target
    sender = np.full(len(loss), loser)  # (C,) the class that would move there
    tentative = np.ones(len(loss), dtype=bool)  # (C,) whether a better chain may yet be found
    held, final = {}, []  # target of each class on the way, and its loss
    while (mover := class_of[target := loss.argmin()]) != FREE:
        held[mover] = target
        final.append(loss[target])
        onward = cost[mover] + price
        onward += loss[target] - onward[target]
        loss[target], tentative[target] = np.inf, False  # never the least again
        nearer = (onward < loss) & tentative
        np.copyto(loss, onward, where=nearer)
        sender[nearer] = mover
    # Nearer targets rise by how much nearer they are: old and new target then cost a class on the chain the same, and
    # no other costs any class less.
    risen = price.copy()
    risen[list(held.values())] += loss[target] - np.array(final)
    chain = [(int(sender[target]), int(target))]
    while (mover := chain[-1][0]) != loser:
        chain.append((int(sender[held[mover]]), int(held[mover])))
    return chain, risen


def prices(cost: Tensor, target: np.ndarray) -> np.ndarray:
    """The least prices >= 0 at which every class's target of a best permutation is its cheapest.

    Each class raises the prices of the targets it would rather have, until none does: the
    relaxation of Bellman and Ford, for those classes alone whose own price has risen.

    Args:
        cost: (C, C) float64, class by target. target: (C,) the permutation.

    Raises:
        ArithmeticError: there are no such prices: the permutation is not the best.
    """
    num_classes = len(cost)
    own = cost.numpy()[np.arange(num_classes), target]  # (C,)
    price = np.zeros(num_classes)  # (C,)
    raisers = np.arange(num_classes)  # classes
    for _ in range(num_classes + 1):
        if not len(raisers):
            return price
        least = torch.from_numpy(price.copy())
        limit = torch.from_numpy(own + price[target])  # (C,) what each class pays now
        for rows in torch.from_numpy(raisers).split(ROWS):
            least = torch.maximum(least, (limit[rows, None] - cost[rows]).amax(dim=0))
        raised = least.numpy() > price + TOLERANCE
        price[raised] = least.numpy()[raised]
        raisers = np.flatnonzero(raised[target])
    raise ArithmeticError("the assignment has no proof of being the best: prices rise without end")
