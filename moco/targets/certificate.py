"""Quality measures of a target set, and lower bounds for any set of its size.

The energy ratio of C points is the mean over ordered pairs i ≠ j of exp(t_i·t_j / τ). It is 1 if all pairs are
orthogonal; lower is better. Computed with NumPy in float64, without storing the cosines of all pairs at once.
"""

from collections.abc import Iterator
from math import comb

import numpy as np
from scipy.special import roots_jacobi

BLOCK = 2**22  # cosines stored at a time: 32 MB of float64
MAX_DEGREE = 60  # of the quadrature; higher degrees lose too much precision


def certificate(points: np.ndarray, temperature: float) -> dict:
    """Return all quality measures of a target set, normalised in float64, as a dict that JSON can store.

    Args:
        points: (C, D) unit rows, any float type; C ≥ 2.

    Returns:
        classes, dim, temperature; energy_ratio; bound, its lower bound, and gap_percent, both None if no bound is
        known; degree of the bound; optimal: whether the set reaches the bound (to 1e-6); max_cosine and
        max_cosine_bound (Levenshtein's, or None); mean_cosine and its lower bound simplex_cosine = −1/(C−1);
        rms_cosine and its lower bound welch_bound; smallest_angle in degrees; norm_error, the largest
        | ‖t_i‖ − 1 |.
    """
    rows = np.asarray(points, dtype=np.float64)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    points = rows / norms
    count, dim = points.shape
    rule, bound = quadrature(count, dim), energy_bound(count, dim, temperature)
    found = measures(points, temperature)
    gap = None if bound is None else 100 * (found["energy_ratio"] / bound - 1)
    return {
        "classes": count,
        "dim": dim,
        "temperature": temperature,
        "energy_ratio": found["energy_ratio"],
        "bound": bound,
        "gap_percent": gap,
        "degree": degree(count, dim),
        "optimal": gap is not None and gap < 1e-4,
        "max_cosine": found["max_cosine"],
        "max_cosine_bound": None if rule is None else float(rule[0].max()),
        "mean_cosine": found["mean_cosine"],
        "simplex_cosine": -1 / (count - 1),
        "rms_cosine": found["rms_cosine"],
        "welch_bound": welch_bound(count, dim),
        "smallest_angle": float(np.degrees(np.arccos(min(found["max_cosine"], 1.0)))),
        "norm_error": float(abs(norms - 1).max()),
    }


def as_text(facts: dict) -> str:
    """Format a `certificate` in six lines."""
    bound, least = "no bound known (outside the range of the quadrature)", ""
    if facts["bound"] is not None:
        kind = "the regular simplex, exact" if facts["degree"] == 1 else f"quadrature of degree {facts['degree']}"
        # An optimal set equals its bound to float32 precision; its gap is rounding, of either sign.
        gap = "optimal" if facts["optimal"] else f"{facts['gap_percent']:.2f} % above it"
        bound = f"no set is below {facts['bound']:.4f} ({kind}): {gap}"
        least = f"    no set is below {facts['max_cosine_bound']:+.4f}"
    return (
        f"  {facts['classes']} targets in R^{facts['dim']}, temperature {facts['temperature']:g}\n"
        f"  energy ratio   {facts['energy_ratio']:.4f}    {bound}\n"
        f"  largest cosine {facts['max_cosine']:+.4f}{least}; smallest angle {facts['smallest_angle']:.2f}°\n"
        f"  mean cosine    {facts['mean_cosine']:+.6f}  no set is below {facts['simplex_cosine']:+.6f} = −1/(C−1)\n"
        f"  RMS cosine     {facts['rms_cosine']:.6f}   no set is below {facts['welch_bound']:.6f} (Welch)\n"
        f"  norm error     {facts['norm_error']:.1g}"
    )


def energy_of(facts: dict) -> str:
    """Format the size and energy ratio of a `certificate`."""
    return f"{facts['classes']} targets in R^{facts['dim']}, energy ratio {facts['energy_ratio']:.4f}"


def verdict(facts: dict) -> str:
    """Format the distance of a `certificate` from its lower bound."""
    gap = facts["gap_percent"]
    return "optimal" if facts["optimal"] else "bound unknown" if gap is None else f"{gap:.2f} % above the lower bound"


def measures(points: np.ndarray, temperature: float) -> dict:
    """Return energy_ratio, max_cosine, mean_cosine, rms_cosine over pairs i ≠ j of (C, D) float64 rows, C ≥ 2."""
    energy = total = squares = 0.0
    largest = -1.0
    for cosines in pair_cosines(points):
        energy += np.exp(cosines / temperature).sum()
        total += cosines.sum()
        squares += (cosines**2).sum()
        largest = max(largest, cosines.max())
    pairs = len(points) * (len(points) - 1)
    return {
        "energy_ratio": float(energy / pairs),
        "max_cosine": float(largest),
        "mean_cosine": float(total / pairs),
        "rms_cosine": float(np.sqrt(squares / pairs)),
    }


def pair_cosines(points: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the cosines of all ordered pairs i ≠ j, as flat arrays for some rows at a time."""
    count = len(points)
    rows = max(1, BLOCK // count)
    for start in range(0, count, rows):
        block = points[start : start + rows] @ points.T  # (B, C)
        other = np.ones(block.shape, dtype=bool)
        np.fill_diagonal(other[:, start:], False)
        yield block[other]


def welch_bound(count: int, dim: int) -> float:
    """Return the least RMS cosine of C points in R^D (Welch 1974): √((C−D) / (D(C−1))), or 0 if C ≤ D."""
    return float(np.sqrt(max(count - dim, 0) / (dim * (count - 1))))


def energy_bound(count: int, dim: int, temperature: float) -> float | None:
    """Return the universal lower bound of the energy ratio of C points in R^D; None if `quadrature` is None.

    The bound is C/(C−1) · Σ ρ_i exp(α_i / τ). It is tight for the regular simplex, the cross-polytope and all sharp
    configuration: Boyvalenkov, Dragnev, Hardin, Saff, Stoyanova (2016, "Universal lower bounds for potential
    energy of spherical codes"), with the nodes of Levenshtein's quadrature.
    """
    rule = quadrature(count, dim)
    if rule is None:
        return None
    nodes, weights = rule
    return float(count / (count - 1) * (weights * np.exp(nodes / temperature)).sum())


def degree(count: int, dim: int) -> int | None:
    """Return the degree m of the quadrature for C points in R^D, R(m) < C ≤ R(m + 1), or None above MAX_DEGREE.

    R(m) is the least size of a spherical design of strength m (Delsarte, Goethals, Seidel 1977): 2, D + 1, 2D,
    D(D+3)/2, … for m = 1, 2, 3, 4, …
    """

    def least(m: int) -> int:
        return comb(dim - 1 + m // 2, dim - 1) + comb(dim - 2 + (m + 1) // 2, dim - 1)

    return next((m for m in range(1, MAX_DEGREE + 1) if count <= least(m + 1)), None)


def quadrature(count: int, dim: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Return Levenshtein's nodes α_i and weights ρ_i > 0 for C points in R^D, without the node 1 of weight 1/C.

    f(1)/C + Σ ρ_i f(α_i) = ∫ f(u·v) dσ(v), the mean over the sphere, for all polynomials f up to `degree`.
    Odd degree 2k−1: k inner nodes. Even degree 2k: k inner nodes and −1. The largest node is Levenshtein's
    lower bound of the largest cosine.

    Returns:
        (nodes, weights), float64, with ascending nodes. None if C is too large for D, or if D = 1 and C > 2.
    """
    m = degree(count, dim)
    if count < 2 or m is None:
        return None
    if count <= dim + 1:
        return np.array([-1 / (count - 1)]), np.array([1 - 1 / count])
    k = (m + 1) // 2
    x, w = roots_jacobi(k + 2, (dim - 3) / 2, (dim - 3) / 2)  # the cosine of a random pair
    x, w = np.append(x, 1.0), np.append(w / w.sum(), -1 / count)
    if m % 2:
        return gauss(x, w, k)
    nodes, weights = gauss(x, w * (1 + x), k)
    weights = weights / (1 + nodes)
    return np.append(-1.0, nodes), np.append(1 - 1 / count - weights.sum(), weights)


def gauss(x: np.ndarray, w: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the Gauss quadrature with k nodes for the discrete measure with (signed) weights w at x.

    Uses Stieltjes' recurrence p_{n+1} = (x − a_n) p_n − b_n p_{n−1} and the eigenvectors of its matrix (Golub and
    Welsch).
    """
    a, b = np.zeros(k), np.zeros(k)
    before, now = np.zeros_like(x), np.ones_like(x)
    for n in range(k):
        norm = (w * now * now).sum()
        a[n] = (w * x * now * now).sum() / norm
        b[n] = norm / (w * before * before).sum() if n else 0.0
        before, now = now, (x - a[n]) * now - b[n] * before
    off = np.sqrt(b[1:])
    nodes, vectors = np.linalg.eigh(np.diag(a) + np.diag(off, 1) + np.diag(off, -1))
    return nodes, w.sum() * vectors[0] ** 2
