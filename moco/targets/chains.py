"""Shortest augmenting paths for `moco.targets.assignment`, which defines the terms: priced cost, unassigned, list."""

import numpy as np

MAX_EXPANDED = 128  # classes whose lists are read at a time


def shortest_chains(
    listed: np.ndarray,
    listed_cost: np.ndarray,
    target: np.ndarray,
    current: np.ndarray,
    price: np.ndarray,
    unassigned: np.ndarray,
) -> tuple[list[list[tuple[int, int]]], np.ndarray]:
    """Find targets for the unassigned classes, each through a chain of classes that change targets.

    The unassigned classes give up their targets. The extra cost of a move to a target on a class's list is the priced
    cost of this target minus that of the class's own target (for an unassigned class, minus the least priced cost on
    its list). A chain with the least total extra cost is found by one Bellman-Ford search from all unassigned classes.
    It stops at a limit: the extra cost at which a quarter of the given-up targets are reached. The new prices prove
    that the moves are optimal. Example: class 2 is unassigned. It takes target 0 from class 0. Class 0 takes target 1
    from class 1 (extra cost 1). Class 1 takes target 2 (extra cost 3).

    >>> listed, target, price = np.array(3 * [[0, 1, 2]]), np.array([0, 1, 2]), np.zeros(3)
    >>> cost = np.array([[0.0, 1.0, 5.0], [2.0, 0.0, 3.0], [0.0, 5.0, 9.0]])
    >>> chains, risen = shortest_chains(listed, cost, target, cost.diagonal(), price, unassigned=np.array([2]))
    >>> chains, risen.tolist()
    ([[(1, 2), (0, 1), (2, 0)]], [4.0, 3.0, 0.0])

    Args:
        listed, listed_cost: (C, width), the targets on each class's list and their costs; inf: unused entry. The
            list of a class includes its own target; that of an unassigned class may lack it.
        target, current: (C,), the target of each class, and its priced cost.
        price: (C,), the price of each target. At these prices, the target of each class except the unassigned ones is
            the cheapest on its list.
        unassigned: (L,) classes.

    Returns:
        Chains of moves (class, new target) without common classes, each ending with the move of an unassigned class;
        and the prices (C,) after these moves. There are no chains if the lists reach no given-up target.
    """
    current = current.copy()
    current[unassigned] = (listed_cost[unassigned] + price[listed[unassigned]]).min(axis=1)
    extra_cost, mover_to, limit = _search(listed, listed_cost, target, current, price, unassigned)
    ends = target[unassigned]
    ends = ends[extra_cost[ends] < np.inf]
    if not len(ends):
        return [], price
    limit = min(limit, extra_cost[ends].max())
    chains = _trace(ends[extra_cost[ends] <= limit], mover_to, target, unassigned)
    # Raise the price of each target by its distance to the limit. The old and the new target of a class on a chain
    # then cost the same, and no other target costs any class less.
    return chains, price + np.maximum(limit - extra_cost, 0)


def _trace(ends, mover_to, target, unassigned) -> list[list[tuple[int, int]]]:
    """Follow the moves back from each target in `ends` to an unassigned class; keep one chain per unassigned class."""
    chains, matched, searching = [], set(), set(unassigned.tolist())
    for end in ends:
        chain = [(int(mover_to[end]), int(end))]
        while (mover := chain[-1][0]) not in searching:
            chain.append((int(mover_to[target[mover]]), int(target[mover])))
        if mover not in matched:
            matched.add(mover)
            chains.append(chain)
    return chains


def _search(listed, listed_cost, target, current, price, unassigned) -> tuple[np.ndarray, np.ndarray, float]:
    """Search for `shortest_chains`.

    Returns:
        The extra costs (C,), which are exact below the limit; the moving class per target (C,); and the limit.
    """
    holder, given_up, quarter = np.empty_like(target), target[unassigned], (len(unassigned) - 1) // 4
    holder[target] = np.arange(len(target))
    extra_cost = np.full(len(target), np.inf)  # (C,) total extra cost of the best known chain to each target
    mover_to = np.empty_like(target)  # (C,) class that would move to it
    unexpanded = np.zeros(len(target), dtype=bool)  # (C,) chain improved since its class was expanded
    movers, cost_so_far, limit = unassigned, np.zeros(len(unassigned)), np.inf
    while len(movers):
        reachable = listed[movers]  # (movers, width)
        step_cost = np.maximum(listed_cost[movers] + price[reachable] - current[movers, None], 0)
        total = step_cost + cost_so_far[:, None]
        better = total < np.minimum(extra_cost[reachable], limit)
        to, by, total = reachable[better], np.repeat(movers, better.sum(axis=1)), total[better]
        np.minimum.at(extra_cost, to, total)
        best = total == extra_cost[to]
        mover_to[to[best]] = by[best]
        limit = np.partition(extra_cost[given_up], quarter)[quarter]
        unexpanded[to], unexpanded[given_up] = True, False
        frontier = np.flatnonzero(unexpanded)
        frontier = frontier[extra_cost[frontier] < limit]
        if len(frontier) > MAX_EXPANDED:  # nearest first: fewer are expanded twice
            frontier = frontier[np.argpartition(extra_cost[frontier], MAX_EXPANDED)[:MAX_EXPANDED]]
        unexpanded[frontier] = False
        movers, cost_so_far = holder[frontier], extra_cost[frontier]
    return extra_cost, mover_to, limit
