"""The kernels, sizes and α-sequences that the tests run over."""

from __future__ import annotations

import math

import numpy as np

from selfdistill_fast import NTK, RBF, Laplacian, Linear, Matern, Polynomial

KERNELS = [
    RBF(0.7),
    Laplacian(0.4),
    Matern(1.3, 0.5),
    Matern(1.3, 1.5),
    Matern(1.3, 2.5),
    Matern(1.3, math.inf),
    Polynomial(3, 0.5, 1.0),
    Polynomial(2, 0.3, 0.0),
    Linear(),
    NTK(1),
    NTK(3),
]

#: every remainder of a vector register and of a tile, and one past
SIZES = [1, 2, 3, 7, 15, 16, 17, 63, 64, 65, 97]

#: five ground-truth weights, inside and outside [0, 1]
ALPHAS = {
    "zero": 0.0,
    "quarter": 0.25,
    "one": 1.0,
    "negative": -0.6,
    "above one": 1.9,
    "mixed": [0.2, 1.3, -0.5, 0.0, 0.8],
}


def kernel_id(kernel):
    return "-".join([type(kernel).__name__, *(f"{v:g}" for v in vars(kernel).values())])


def points(rng, n, d, dtype=np.float64, offset=0.0):
    """Rows of norm about 1 around ``offset``."""
    return (offset + rng.normal(size=(n, d)) / math.sqrt(max(d, 1))).astype(dtype)


def in_double(a):
    return None if a is None else a.astype(np.float64)
