"""Point sets on the sphere in closed form: optimal sets and starting points for the search."""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

# Values of q, largest first. Without 2, which L-BFGS finds from random starts (27 points in R^6), and without 4, 8 and
# 9, which are not prime: they need finite fields other than the integers mod q.
QUADRIC_ORDERS = (7, 5, 3)
NOISE = 0.001  # added to each coordinate: without noise, a symmetric start is a saddle point in higher dimensions


def regular_simplex(num_classes: int, dim: int, rng: torch.Generator) -> Tensor:
    """Return C unit vectors whose cosines are all −1/(C−1), (C, D) float64, in a random orientation.

    Raises:
        ValueError: If C > D + 1, because no regular simplex exists.
    """
    if num_classes > dim + 1:
        raise ValueError(f"no regular simplex of {num_classes} points in R^{dim}: at most {dim + 1}")
    if num_classes == 1:
        return normalize(torch.randn(1, dim, generator=rng, dtype=torch.float64), dim=1)
    corners = torch.eye(num_classes, dtype=torch.float64) - 1 / num_classes  # in the hyperplane of sum 0
    plane = torch.linalg.svd(corners).Vh[: num_classes - 1]  # (C−1, C) a basis of it
    rotation, _ = torch.linalg.qr(torch.randn(dim, num_classes - 1, generator=rng, dtype=torch.float64))
    return normalize(corners @ plane.T @ rotation.T, dim=1)


def random_points(num_classes: int, dim: int, rng: torch.Generator) -> Tensor:
    """Return random unit vectors, (C, D) float32, uniform on the sphere."""
    return normalize(torch.randn(num_classes, dim, generator=rng), dim=1)


def quadric_size(q: int) -> tuple[int, int]:
    """Return the number of points and the dimension of `elliptic_quadric`."""
    return (q + 1) * (q**3 + 1), q * (q**2 - q + 1)


def fitting_quadric(num_classes: int, dim: int) -> int | None:
    """Return the largest q whose quadric has at most C points in at most D dimensions, or None."""
    fits = (q for q in QUADRIC_ORDERS if quadric_size(q)[0] <= num_classes and quadric_size(q)[1] <= dim)
    return next(fits, None)


def quadric_start(num_classes: int, dim: int, q: int, rng: torch.Generator) -> Tensor:
    """Return the points of `elliptic_quadric` plus random points, with noise: (C, D) float32 unit vectors."""
    points = random_points(num_classes, dim, rng)
    known = torch.from_numpy(elliptic_quadric(q)).float()  # (C', D')
    points[: len(known)] = 0
    points[: len(known), : known.shape[1]] = known
    return normalize(points + NOISE * torch.randn(num_classes, dim, generator=rng), dim=1)


def elliptic_quadric(q: int) -> np.ndarray:
    """Return (q+1)(q³+1) unit vectors in R^(q(q²−q+1)) with two cosines, −1/q and 1/q²: (C, D) float64; q is prime.

    No set of this size and dimension has less energy: Cohn and Kumar (2007, "Universally optimal distribution
    of points on spheres", table 1). q = 3: 112 points in R^21; 5: 756 in R^105; 7: 2752 in R^301. There is one
    vector for each point of the quadric Q(x) = x0·x1 + x2·x3 + x4² + b·x4·x5 + c·x5² = 0 in the projective space
    of six coordinates mod q. b and c are chosen such that the last three terms are zero only for x4 = x5 = 0. The
    cosine is −1/q for two points on a common line of the quadric, and 1/q² for all other pairs.
    """
    b, c = _anisotropic_form(q)
    vectors = np.indices((q,) * 6).reshape(6, -1).T[1:]  # all but 0
    vectors = vectors[vectors[np.arange(len(vectors)), (vectors != 0).argmax(axis=1)] == 1]  # one vector per direction
    form = np.zeros((6, 6), dtype=np.int64)  # Q(x) = x·form·x
    form[0, 1] = form[2, 3] = form[4, 4] = 1
    form[4, 5], form[5, 5] = b, c
    on_quadric = vectors[((vectors @ form) * vectors).sum(axis=1) % q == 0]
    collinear = on_quadric @ (form + form.T) @ on_quadric.T % q == 0
    gram = np.where(collinear, -1 / q, 1 / q**2)
    np.fill_diagonal(gram, 1)
    values, vectors = np.linalg.eigh(gram)  # rank D: this is the Gram matrix of vectors in R^D
    dim = quadric_size(q)[1]
    return vectors[:, -dim:] * np.sqrt(values[-dim:])


def _anisotropic_form(q: int) -> tuple[int, int]:
    """Return the first b, c with y² + b·y + c ≠ 0 mod q for all y."""
    y = np.arange(q)
    return next((b, c) for b in range(q) for c in range(q) if ((y * y + b * y + c) % q).all())
