"""Reference answers in long double, and in 60 digits where those are too few.

A chain is refitted step by step, once for each set of rows that is left out. Rows are left out by
a weight of zero, so that all refits of one problem have one shape and are solved together: with
weights W and q = √w/‖√w‖ a step solves

    (H W^½ K W^½ H + λI) c = W^½ (t − t̄),   H = I − qqᵀ with an intercept, else I,
    f(x) = t̄ + (κ(x, X) − k̄ᵀ) W^½ c,        k̄ the weighted mean of the rows of K (0 without one)

by LDLᵀ. The arithmetic is that of the arrays: np.longdouble, or objects of mpmath. Nothing is
imported from the package, and no eigenvalue, filter or shortcut appears.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import mpmath as mp
import numpy as np
import oracle

LONG = np.longdouble
#: machine epsilon of long double; that of double on some platforms
EPS = float(np.finfo(LONG).eps)
#: whether long double is wider than double, so that it can judge
WIDE = EPS < 1e-18
DIGITS = 60
#: 60 digits are for problems of so many rows at most: more would take seconds each
MOST_ROWS = 12


class TooHard(Exception):
    """Neither long double nor 60 digits can judge this problem in reasonable time."""


# ------------------------------------------------------------------ numbers


_to_mp = np.vectorize(lambda v: mp.mpf(float(v)), otypes=[object])
_mp_sqrt = np.vectorize(mp.sqrt, otypes=[object])


def _sqrt(a):
    return _mp_sqrt(a) if a.dtype == object else np.sqrt(a)


def widened(a, like):
    """Floating-point numbers, exactly, in the arithmetic of another array."""
    a = np.asarray(a)
    if like.dtype != object:
        return a.astype(LONG)
    return _to_mp(a) if a.size else np.empty(a.shape, object)


def to_long(a):
    """An array of mpmath in long double: the sum of a double and what is left."""
    a = np.asarray(a)
    if a.dtype != object:
        return a.astype(LONG)
    high = np.array([float(v) for v in a.flat])
    low = [float(v - mp.mpf(h)) for v, h in zip(a.flat, high, strict=True)]
    return (high.astype(LONG) + np.array(low, LONG)).reshape(a.shape)


# ------------------------------------------------------------------ kernels


def kernel_matrix(kernel, X, Z=None, *, digits=False):
    """K(X, Z) of rows taken as exact: in long double, or in 60 digits."""
    Z = X if Z is None else Z
    if digits:
        with mp.workdps(DIGITS):
            return np.array([[oracle.mp_kernel(kernel, x, z) for z in Z] for x in X], object)
    X, Z = np.asarray(X, LONG), np.asarray(Z, LONG)
    difference = X[:, None, :] - Z[None, :, :]
    name = type(kernel).__name__
    if name == "Laplacian":
        return np.exp(-LONG(kernel.gamma) * np.abs(difference).sum(-1))
    if name == "NTK":
        return _ntk(kernel.depth, X, Z)
    if name in ("Linear", "Polynomial"):
        inner = (X[:, None, :] * Z[None, :, :]).sum(-1)
        if name == "Linear":
            return inner
        return (LONG(kernel.gamma) * inner + LONG(kernel.coef0)) ** kernel.degree
    square = np.square(difference).sum(-1)
    if name == "RBF":
        return np.exp(-LONG(kernel.gamma) * square)
    assert name == "Matern", name
    ell = LONG(kernel.length_scale)
    if math.isinf(kernel.nu):
        return np.exp(-square / (2 * ell**2))
    s = np.sqrt(LONG(2 * kernel.nu) * square) / ell
    polynomial = {0.5: 1, 1.5: 1 + s, 2.5: 1 + s + s**2 / 3}[kernel.nu]
    return polynomial * np.exp(-s)


def _ntk(depth, X, Z):
    """The tangent kernel from the angle, which differences of unit rows know to ε."""
    pi = 4 * np.arctan(LONG(1))
    nx, nz = np.sqrt(np.square(X).sum(1)), np.sqrt(np.square(Z).sum(1))
    U, V = (A / np.where(s == 0, 1, s)[:, None] for A, s in ((X, nx), (Z, nz)))
    sine, cosine = (
        np.sqrt(np.square(U[:, None, :] - sign * V[None, :, :]).sum(-1)) / 2 for sign in (1, -1)
    )
    angle = 2 * np.arctan2(sine, cosine)
    theta = np.cos(angle)
    for _ in range(depth):
        series = sum(  # Σ_k (−1)^k 2k/(2k+1)! θ^(2k+1) = θ cos θ − sin θ, without cancellation
            (-1) ** k * 2 * k / LONG(math.factorial(2 * k + 1)) * angle ** (2 * k + 1)
            for k in range(1, 11)
        )
        gap = np.where(angle < 0.5, series, angle * np.cos(angle) - np.sin(angle)) / pi
        gap = np.maximum(gap + 2 * np.sin(angle / 2) ** 2, 0)  # one minus the next cosine
        theta = (1 - gap) + theta * (1 - angle / pi)
        angle = 2 * np.arcsin(np.sqrt(gap / 2))
    return nx[:, None] * nz[None, :] * theta


def landmark_matrices(kernel, X, X_new, landmarks):
    """K and K_new of the model on landmark rows, κ(x, L) K_LL⁻¹ κ(L, z), in 60 digits.

    K_LL may be singular up to the rounding of doubles, and is factorised in these digits, too.
    """
    with mp.workdps(DIGITS):
        L = X[np.asarray(landmarks)]
        if not len(L):
            return _to_mp(np.zeros((len(X), len(X)))), _to_mp(np.zeros((len(X_new), len(X))))
        lower, pivots = _factor(kernel_matrix(kernel, L, digits=True)[None])
        rows = kernel_matrix(kernel, L, np.concatenate([X, X_new]), digits=True)[None]
        features = _forward(lower, rows)[0]  # D^½ times the features, transposed
        features = features / _mp_sqrt(pivots[0])[:, None]
        train = features[:, : len(X)]
        return train.T @ train, features[:, len(X) :].T @ train


# ------------------------------------------------------------------ linear systems, many at once


def _factor(M):
    """Unit lower factor and pivots of M = LDLᵀ, (B, n, n) and (B, n)."""
    A = M.copy()
    n = A.shape[1]
    for j in range(n):
        below = A[:, j + 1 :, j].copy()
        A[:, j + 1 :, j] = below / A[:, j, j, None]
        A[:, j + 1 :, j + 1 :] -= A[:, j + 1 :, j, None] * below[:, None, :]
    return A, A[:, np.arange(n), np.arange(n)]


def _forward(A, T):
    """L⁻¹ T for the lower triangle of A, T (B, n, p)."""
    T = T.copy()
    for j in range(A.shape[1]):
        T[:, j + 1 :] -= A[:, j + 1 :, j, None] * T[:, j, None]
    return T


def _solve(A, pivots, T):
    """M⁻¹ T by the factor of M."""
    T = _forward(A, T) / pivots[..., None]
    for j in range(A.shape[1])[::-1]:
        T[:, :j] -= A[:, j, :j, None] * T[:, j, None]
    return T


class Refits:
    """Ridge regressions on the same rows with B sets of weights, factorised once.

    K (n, n), K_new (m, n), lam one ridge, W (B, n) weights.
    """

    def __init__(self, K, K_new, lam, W, intercept):
        self.K, self.K_new = K, K_new
        W = widened(W, K)
        self.root = _sqrt(W)
        total = W.sum(1)
        self.share = W / np.where(total == 0, 1, total)[:, None]  # a set may be empty
        M = self.root[:, :, None] * K * self.root[:, None, :]
        self.q = None
        if intercept:
            self.q = q = _sqrt(self.share)
            m = (M * q[:, None, :]).sum(2)
            qm = (q * m).sum(1)
            M = M - q[:, :, None] * m[:, None, :] - m[:, :, None] * q[:, None, :]
            M = M + qm[:, None, None] * q[:, :, None] * q[:, None, :]
            self.mean_row = self.share @ K
        n = K.shape[0]
        M[:, np.arange(n), np.arange(n)] += widened(np.float64(lam), K)[()]
        self.A, self.pivots = _factor(M)

    @property
    def positive(self):
        """Whether every system is positive definite, so that LDLᵀ needs no pivoting."""
        return bool((self.pivots > 0).all())

    def steps(self, Y, alphas):
        """Predictions of a chain at X and at X_new, (T, B, n + m, p), refit by refit."""
        Y = widened(Y, self.K)[None]
        out, targets = [], Y
        for t, alpha in enumerate(alphas):
            if t:
                a = widened(np.float64(alpha), self.K)[()]
                targets = a * Y + (1 - a) * out[-1][:, : self.K.shape[0]]
            out.append(self._step(targets))
        return np.stack(out)

    def _step(self, targets):
        both = np.concatenate([self.K, self.K_new])
        if self.q is None:
            c = _solve(self.A, self.pivots, self.root[:, :, None] * targets)
            return both @ (self.root[:, :, None] * c)
        mean = (self.share[:, :, None] * targets).sum(1, keepdims=True)
        c = _solve(self.A, self.pivots, self.root[:, :, None] * (targets - mean))
        # c ⟂ q, where the system is only λ and so rounding is amplified twice
        c = c - self.q[:, :, None] * (self.q[:, :, None] * c).sum(1, keepdims=True)
        dual = self.root[:, :, None] * c
        return mean + both @ dual - (self.mean_row[:, :, None] * dual).sum(1, keepdims=True)


# ------------------------------------------------------------------ the answers


@dataclass(frozen=True)
class Answer:
    """A chain and the pure steps that it mixes, (T, rows, p) in long double.

    ``error`` (p,) bounds the rounding of both.
    """

    chain: np.ndarray
    pure: np.ndarray
    error: np.ndarray


def largest_eigenvalue(K, weight=None):
    """Of W^½ K W^½ before any centring, as a long double."""
    K = to_long(K)
    root = np.ones(len(K), LONG) if weight is None else np.sqrt(np.asarray(weight, LONG))
    K = root[:, None] * K * root
    scale = np.abs(K).max(initial=LONG(0))
    if scale == 0:
        return scale
    return scale * LONG(np.linalg.norm((K / scale).astype(np.float64), 2))


def refits(K, K_new, Y, lam, alphas, W, intercept, error, exact=None):
    """An :class:`Answer` at X and X_new of B chains, (T, B, n + m, p).

    In long double if its own rounding stays below ``error``, relative to the targets. Else in 60
    digits, from the matrices that ``exact()`` returns (default: these, taken as exact numbers).

    Raises
    ------
    TooHard
    """
    condition = float(largest_eigenvalue(K, W.max(0)) / LONG(lam))
    own = 10 * len(K) * len(alphas) * np.abs(oracle.weights_of(alphas)).sum() * EPS
    pure = oracle.alphas_of(0.0, len(alphas))
    if WIDE and own * condition <= error:
        models = Refits(K, K_new, lam, W, intercept)
        if models.positive:
            mixed, steps = models.steps(Y, alphas), models.steps(Y, pure)
            sizes = condition * np.abs(Y).max(0) + np.abs(steps).max((0, 1, 2))
            return Answer(mixed, steps, own * sizes)
    if len(K) > MOST_ROWS:
        raise TooHard
    with mp.workdps(DIGITS):
        K, K_new = exact() if exact is not None else (_to_mp(K), _to_mp(K_new))
        models = Refits(K, K_new, lam, W, intercept)
        return Answer(
            to_long(models.steps(Y, alphas)), to_long(models.steps(Y, pure)), np.zeros(Y.shape[1])
        )


def chain(K, K_new, Y, lam, alphas, weight, intercept, error, exact=None):
    """The chain at X and X_new, (T, n + m, p)."""
    W = np.ones((1, len(K))) if weight is None else np.asarray(weight, np.float64)[None]
    answer = refits(K, K_new, Y, lam, alphas, W, intercept, error, exact)
    return Answer(answer.chain[:, 0], answer.pure[:, 0], answer.error)


def leave_out(labels, K, Y, lam, alphas, weight, intercept, error, exact=None):
    """For each group of rows with one label the chain without them, at them: (T, n, p)."""
    w = np.ones(len(K)) if weight is None else np.asarray(weight, np.float64)
    groups, group = np.unique(labels, return_inverse=True)
    W = np.where(group[None, :] == np.arange(len(groups))[:, None], 0.0, w)
    nothing = K[:0]

    def square():
        return exact()[0], _to_mp(nothing)

    answer = refits(
        K, nothing, Y, lam, alphas, W, intercept, error, None if exact is None else square
    )
    rows = np.arange(len(K))
    return Answer(answer.chain[:, group, rows], answer.pure[:, group, rows], answer.error)
