"""Landmarks: which rows they are chosen from, three ways to choose them, and their order."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.linalg import LinAlgError

from selfdistill_fast._backend.threads import one_blas_thread
from selfdistill_fast._gram import native_diagonal, native_gram
from selfdistill_fast._solvers.matrix import rounding
from selfdistill_fast._solvers.nystrom.memory import BATCH, pilot_rows, pool_rows
from selfdistill_fast._solvers.problem import TrainingSet
from selfdistill_fast._solvers.sources import Rows
from selfdistill_fast._validation import largest
from selfdistill_fast.kernels import Kernel

__all__ = ["SAMPLINGS", "better_sampling", "landmarks", "pivoted_cholesky", "sample"]

SAMPLINGS = ("auto", "rpcholesky", "uniform", "kmeans")
#: what "auto" chooses from; the first where it cannot tell
_WAYS = ("rpcholesky", "kmeans")
#: iterations of k-means: more do not predict better
_LLOYD = 10


def sample(
    be: Any, X: Rows, w: Any, m: int, sampling: str, random: np.random.Generator
) -> np.ndarray:
    """Indices of the rows that landmarks are chosen from, in ascending order.

    Every row draws a key, and a uniform sample are the rows of the smallest keys: the same one
    for a seed, however the rows arrive.
    """
    keys = random.random(X.shape[0])
    if w is not None:
        keys[be.to_numpy(w) == 0] = np.inf
    kept = int(np.isfinite(keys).sum())
    size = m if sampling == "uniform" else pool_rows(kept, m, X.streaming)
    return np.sort(np.argpartition(keys, size - 1)[:size])


def better_sampling(training: TrainingSet, m: int, fit: Callable[[TrainingSet, str], Any]) -> str:
    """Which way of choosing landmarks predicts the held-out rows of a pilot better.

    Randomly pivoted Cholesky approximates K best, and spends landmarks on lone rows; where the
    data have many of these, which nothing else resembles, rows in the middle of clusters predict
    better. Neither K nor its approximation shows that: the targets do. Each is judged by its
    best λ. ``fit`` makes the model of a training set with the landmarks of one way.
    """
    be, X, y, w = training.backend, training.X, training.y, training.sample_weight
    xp, n = be.xp, pilot_rows(X.shape[0], m)
    if n == 0 or not training.kernel.pair:  # distances may mean nothing to the caller's function
        return _WAYS[0]
    order = xp.asarray(np.random.default_rng(0).permutation(X.shape[0])[:n])
    test, train = order[: n // 4], order[n // 4 :]
    held_out = y[test].reshape(len(test), -1).astype("float64")
    variance = xp.square(held_out - held_out.mean(0)).mean(0)
    variance = xp.where(variance > 0.0, variance, 1.0)
    part = replace(
        training,
        X=Rows(be, X[train]),
        y=y[train],
        sample_weight=None if w is None else w[train],
    )
    errors = []
    for way in _WAYS:
        model = fit(part, way)
        P, d = model.project(X[test]).astype("float64"), model.d.astype("float64")[:, None]
        best = math.inf
        for lam in largest(d) * np.geomspace(1e-9, 1.0, 19):
            F = P @ (model.z / (d + lam)) + model.y_mean
            squares = (xp.square(F - held_out) / variance).mean(1)
            best = min(best, float((squares if w is None else squares * w[test]).mean()))
        errors.append(best)
    return _WAYS[int(errors[1] < errors[0])]


def landmarks(
    be: Any,
    rows: Any,
    w: Any,
    kernel: Kernel,
    m: int,
    sampling: str,
    random: np.random.Generator,
) -> Any:
    """Indices of at most m landmarks among some rows."""
    if sampling == "rpcholesky":
        return _rpcholesky(be, rows, kernel, m, random)
    if sampling == "kmeans":
        weights = None if w is None else be.to_numpy(w)
        return be.xp.asarray(_kmeans(be.to_numpy(rows), weights, m, random))
    return be.xp.arange(len(rows))


def _kmeans(rows: np.ndarray, weights: Any, m: int, random: np.random.Generator) -> np.ndarray:
    """Indices of the rows nearest to the centres of m clusters.

    By scikit-learn, whose Lloyd iterations move empty clusters to where rows are far from all
    others; on one thread, so always the same for a seed.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.metrics import pairwise_distances_argmin

    seed = int(random.integers(2**31 - 1))
    means = KMeans(m, init="random", n_init=1, max_iter=_LLOYD, random_state=seed)
    with one_blas_thread(), warnings.catch_warnings():
        # fewer distinct rows than clusters: then fewer landmarks
        warnings.simplefilter("ignore", ConvergenceWarning)
        centres = means.fit(rows, sample_weight=weights).cluster_centers_
        return np.unique(pairwise_distances_argmin(centres, rows))


def _rpcholesky(be: Any, X: Any, kernel: Kernel, m: int, random: np.random.Generator) -> Any:
    """Indices of at most m landmarks by randomly pivoted Cholesky (Chen et al. 2023).

    A row is drawn with probability proportional to what the landmarks so far leave of
    κ(x, x). Rows are proposed in batches and thinned so that the law is that of one at a time.
    """
    xp = be.xp
    diagonal = native_diagonal(be, X, kernel)
    left = diagonal.copy()
    factor = xp.zeros((X.shape[0], m), X.dtype)
    chosen: list[int] = []
    floor = rounding(float(diagonal.max()), X.dtype)
    while len(chosen) < m:
        weights = be.to_numpy(xp.maximum(left, 0.0)).astype(np.float64)
        weights[weights <= floor] = 0.0
        if not weights.any():
            break  # the landmarks span everything
        batch = min(BATCH, m - len(chosen), int(np.count_nonzero(weights)))
        proposed = random.choice(len(weights), size=batch, replace=True, p=weights / weights.sum())
        done = len(chosen)
        at = xp.asarray(proposed)
        G = be.to_numpy(native_gram(be, X[at], None, kernel)).astype(np.float64)
        F = be.to_numpy(factor[at, :done]).astype(np.float64)
        G = G - F @ F.T  # a batch of rows
        start = weights[proposed]
        accepted: list[int] = []
        triangle = np.zeros((batch, batch))
        for i in range(batch):
            rest = G[i, i] - triangle[i] @ triangle[i]
            if not accepted:  # equals ``left`` up to rounding; 0 stops further proposals of it
                left[int(proposed[i])] = rest if rest > floor else 0.0
            if rest > floor and random.uniform() * start[i] <= rest:
                column = len(accepted)
                rest_column = G[:, i] - triangle @ triangle[i]
                triangle[:, column] = rest_column / np.sqrt(rest)
                accepted.append(i)
        if not accepted:
            continue
        rows = xp.asarray(proposed[accepted])
        L = np.tril(triangle[accepted][:, : len(accepted)])
        new = native_gram(be, X, X[rows], kernel)
        if kernel.pair:
            new -= factor[:, :done] @ factor[rows, :done].T
        else:  # the caller may keep its function's result
            new = new - factor[:, :done] @ factor[rows, :done].T
        new = be.triangular_solve(xp.asarray(L, dtype=X.dtype), new.T, lower=True).T
        factor[:, done : done + len(rows)] = new
        left -= xp.square(new, dtype="float64").sum(1)
        left[rows] = 0.0
        chosen.extend(proposed[accepted].tolist())
    return xp.asarray(chosen, dtype="int64")


def pivoted_cholesky(K: Any, kernel: Kernel, xp: Any) -> tuple[Any, Any]:
    """Order and upper factor R (r, r) with K[order][:, order] = RᵀR; pivots above round-off.

    Panels of rows; the rest of K is updated by one product for each.

    Raises
    ------
    numpy.linalg.LinAlgError
        A pivot is clearly negative, and the kernel is not definite by construction.
    """
    m = K.shape[0]
    A = K.astype("float64")  # a copy: the caller may keep the result of its function
    left = xp.diagonal(A).copy()
    floor = rounding(largest(left), K.dtype)
    R = xp.zeros((m, m))
    order: list[int] = []
    while len(order) < m:
        start = len(order)
        for i in range(start, min(start + BATCH, m)):
            pivot = int(left.argmax())
            if not float(left[pivot]) > floor:
                break
            R[i] = (A[pivot] - R[start:i, pivot] @ R[start:i]) / float(left[pivot]) ** 0.5
            left = left - R[i] ** 2
            left[pivot] = 0.0
            order.append(pivot)
        panel = R[start : len(order)]
        if len(panel) < BATCH:
            break
        for first in range(0, m, 1024):
            A[first : first + 1024] -= panel[:, first : first + 1024].T @ panel
    if m and not kernel.definite and float(left.min()) < -m * floor:
        raise indefinite(f"{float(left.min()):g} on their own diagonal")
    chosen = xp.asarray(order, dtype="int64")
    return chosen, xp.triu(R[: len(order)][:, chosen])


def indefinite(what: str) -> Exception:
    return LinAlgError(
        f"K is not positive semi-definite: the landmarks leave {what}, far below round-off; "
        "use a positive semi-definite kernel"
    )
