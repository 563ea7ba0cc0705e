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


def target_quality(points: np.ndarray, temperature: float) -> dict:
    """Return all quality measures of a target set, normalised in float64, as a dict that JSON can store.

    Args:
        points: (C, D) unit rows, any float type; C ≥ 2.

    Returns:
        A dict with the keys:

        - classes, dim, temperature: C, D, τ
        - energy_ratio: the energy ratio of the set
        - bound: the lower bound of the energy ratio, or None if no bound is known
        - gap_percent: how far energy_ratio is above bound, or None
        - degree: degree of the quadrature that gives the bound, or None
        - optimal: whether the set reaches the bound, up to 1e-6 of it
        - max_cosine: the largest cosine of two targets
        - max_cosine_bound: Levenshtein's lower bound of max_cosine, or None
        - mean_cosine: the mean cosine over all pairs
        - simplex_cosine: the lower bound of mean_cosine, −1/(C−1)
        - rms_cosine: the root mean square of the cosines
        - welch_bound: Welch's lower bound of rms_cosine
        - smallest_angle: the angle of max_cosine, in degrees
        - norm_error: the largest | ‖t_i‖ − 1 |
    """
    rows = np.asarray(points, dtype=np.float64)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    points = rows / norms
    count, dim = points.shape
    rule, bound = quadrature(count, dim), energy_bound(count, dim, temperature)
    measured = target_measures(points, temperature)
    gap = None if bound is None else 100 * (measured["energy_ratio"] / bound - 1)
    return {
        "classes": count,
        "dim": dim,
        "temperature": temperature,
        "energy_ratio": measured["energy_ratio"],
        "bound": bound,
        "gap_percent": gap,
        "degree": degree(count, dim),
        "optimal": gap is not None and gap < 1e-4,
        "max_cosine": measured["max_cosine"],
        "max_cosine_bound": None if rule is None else float(rule[0].max()),
        "mean_cosine": measured["mean_cosine"],
        "simplex_cosine": -1 / (count - 1),
        "rms_cosine": measured["rms_cosine"],
        "welch_bound": welch_bound(count, dim),
        "smallest_angle": float(np.degrees(np.arccos(min(measured["max_cosine"], 1.0)))),
        "norm_error": float(abs(norms - 1).max()),
    }


def format_quality(quality: dict) -> str:
    """Format the dict of `target_quality` in six lines."""
    bound, cosine_bound = "no bound known for so many points in so few dimensions", ""
    if quality["bound"] is not None:
        kind = "the regular simplex, exact" if quality["degree"] == 1 else f"quadrature of degree {quality['degree']}"
        # An optimal set equals its bound to float32 precision; its gap is rounding, of either sign.
        gap = "optimal" if quality["optimal"] else f"{quality['gap_percent']:.2f} % above it"
        bound = f"no set is below {quality['bound']:.4f} ({kind}): {gap}"
        cosine_bound = f"    no set is below {quality['max_cosine_bound']:+.4f}"
    return (
        f"  {quality['classes']} targets in R^{quality['dim']}, temperature {quality['temperature']:g}\n"
        f"  energy ratio   {quality['energy_ratio']:.4f}    {bound}\n"
        f"  largest cosine {quality['max_cosine']:+.4f}{cosine_bound}; smallest angle "
        f"{quality['smallest_angle']:.2f}°\n"
        f"  mean cosine    {quality['mean_cosine']:+.6f}  no set is below {quality['simplex_cosine']:+.6f} = −1/(C−1)\n"
        f"  RMS cosine     {quality['rms_cosine']:.6f}   no set is below {quality['welch_bound']:.6f} (Welch)\n"
        f"  norm error     {quality['norm_error']:.1g}"
    )


def format_energy(quality: dict) -> str:
    """Format the size and energy ratio from the dict of `target_quality`."""
    return f"{quality['classes']} targets in R^{quality['dim']}, energy ratio {quality['energy_ratio']:.4f}"


def format_gap(quality: dict) -> str:
    """Format the distance from the lower bound, from the dict of `target_quality`."""
    gap = quality["gap_percent"]
    return "optimal" if quality["optimal"] else "bound unknown" if gap is None else f"{gap:.2f} % above the lower bound"


def target_measures(points: np.ndarray, temperature: float) -> dict:
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
        off_diagonal = np.ones(block.shape, dtype=bool)
        np.fill_diagonal(off_diagonal[:, start:], False)
        yield block[off_diagonal]


def welch_bound(count: int, dim: int) -> float:
    """Return the least RMS cosine of C points in R^D (Welch 1974): √((C−D) / (D(C−1))), or 0 if C ≤ D."""
    return float(np.sqrt(max(count - dim, 0) / (dim * (count - 1))))


def energy_bound(count: int, dim: int, temperature: float) -> float | None:
    """Return the universal lower bound of the energy ratio of C points in R^D; None if `quadrature` is None.

    The bound is C/(C−1) · Σ ρ_i exp(α_i / τ). It is tight for the regular simplex, the cross-polytope and other
    sets of high symmetry (Boyvalenkov, Dragnev, Hardin, Saff and Stoyanova, 2016, "Universal lower bounds for potential
    energy of spherical codes"). α_i and ρ_i are the nodes and weights of Levenshtein's quadrature.
    """
    rule = quadrature(count, dim)
    if rule is None:
        return None
    nodes, weights = rule
    return float(count / (count - 1) * (weights * np.exp(nodes / temperature)).sum())


def degree(count: int, dim: int) -> int | None:
    """Return the degree m of the quadrature for C points in R^D, R(m) < C ≤ R(m + 1), or None above MAX_DEGREE.

    R(m) is a lower bound of the size of a spherical design of strength m, a set of points whose mean equals that of the
    sphere for all polynomials up to degree m (Delsarte, Goethals, Seidel 1977): 2, D + 1, 2D,
    D(D+3)/2, … for m = 1, 2, 3, 4, …
    """

    def smallest_design(m: int) -> int:
        return comb(dim - 1 + m // 2, dim - 1) + comb(dim - 2 + (m + 1) // 2, dim - 1)

    return next((m for m in range(1, MAX_DEGREE + 1) if count <= smallest_design(m + 1)), None)


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
    x, w = roots_jacobi(k + 2, (dim - 3) / 2, (dim - 3) / 2)  # distribution of the cosine of two random unit vectors
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
    previous, current = np.zeros_like(x), np.ones_like(x)  # p_{n−1}, p_n
    for n in range(k):
        norm = (w * current * current).sum()
        a[n] = (w * x * current * current).sum() / norm
        b[n] = norm / (w * previous * previous).sum() if n else 0.0
        previous, current = current, (x - a[n]) * current - b[n] * previous
    off = np.sqrt(b[1:])
    nodes, vectors = np.linalg.eigh(np.diag(a) + np.diag(off, 1) + np.diag(off, -1))
    return nodes, w.sum() * vectors[0] ** 2
