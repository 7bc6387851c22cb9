"""Brute force: what the paper defines, computed the slow way.

Everything here follows from eq. (1)-(5) of Borup & Andersen (2021) by refitting one
model per step, per left-out row, per candidate. Nothing is imported from the package.
No eigenvalue, no filter, no shortcut appears: a chain is a loop of linear solves.
"""

from __future__ import annotations

import itertools
import math

import mpmath as mp
import numpy as np
from scipy import integrate

# ------------------------------------------------------------------ kernels, from their formulas


def differences(X, Z):
    """x_i − z_j for all pairs, (n, m, d)."""
    return np.asarray(X, np.float64)[:, None, :] - np.asarray(Z, np.float64)[None, :, :]


def kernel_matrix(kernel, X, Z=None):
    """K(X, Z) in float64 by direct differences; ``kernel`` carries only its parameters."""
    X = np.asarray(X, np.float64)
    Z = X if Z is None else np.asarray(Z, np.float64)
    name = type(kernel).__name__
    if name == "RBF":
        return np.exp(-kernel.gamma * np.square(differences(X, Z)).sum(-1))
    if name == "Laplacian":
        return np.exp(-kernel.gamma * np.abs(differences(X, Z)).sum(-1))
    if name == "Matern":
        r = np.sqrt(np.square(differences(X, Z)).sum(-1)) / kernel.length_scale
        if kernel.nu == 0.5:
            return np.exp(-r)
        if kernel.nu == 1.5:
            return (1 + math.sqrt(3) * r) * np.exp(-math.sqrt(3) * r)
        if kernel.nu == 2.5:
            return (1 + math.sqrt(5) * r + 5 * r**2 / 3) * np.exp(-math.sqrt(5) * r)
        return np.exp(-(r**2) / 2)
    inner = np.einsum("id,jd->ij", X, Z)
    if name == "Linear":
        return inner
    if name == "Polynomial":
        return (kernel.gamma * inner + kernel.coef0) ** kernel.degree
    if name == "NTK":
        nx, nz = np.linalg.norm(X, axis=1), np.linalg.norm(Z, axis=1)
        U, V = (A / np.maximum(s, 1e-300)[:, None] for A, s in ((X, nx), (Z, nz)))
        # half of |u − v| is the sine of half the angle: an arccos loses half the digits at 0
        half = np.linalg.norm(differences(U, V), axis=-1) / 2
        angle = np.where(
            half < 0.7, 2 * np.arcsin(np.minimum(half, 1)), np.arccos(np.clip(U @ V.T, -1, 1))
        )
        half = np.linalg.norm(differences(U, -V), axis=-1) / 2
        angle = np.where(half < 0.7, math.pi - 2 * np.arcsin(np.minimum(half, 1)), angle)
        theta = np.cos(angle)  # the tangent kernel over ‖x‖‖z‖
        for _ in range(kernel.depth):
            # one minus the next cosine, without the cancellation near 0
            gap = (angle * np.cos(angle) - np.sin(angle)) / math.pi
            series = sum(  # Σ_k (−1)^k 2k/(2k+1)! θ^(2k+1) = θ cos θ − sin θ
                (-1) ** k * 2 * k / math.factorial(2 * k + 1) * angle ** (2 * k + 1)
                for k in range(1, 9)
            )
            gap = np.where(angle < 0.5, series / math.pi, gap) + 2 * np.sin(angle / 2) ** 2
            theta = (1 - gap) + theta * (1 - angle / math.pi)
            angle = 2 * np.arcsin(np.sqrt(gap / 2))
        return np.outer(nx, nz) * theta
    raise KeyError(name)


def ntk_by_quadrature(x, z, depth):
    """The NTK of a ReLU network without bias, He scaling, from its Gaussian expectations.

    Σ⁰ = ⟨x, z⟩;  Σʰ = 2 E[relu(u) relu(v)],  Σ̇ʰ = 2 E[1(u>0) 1(v>0)] with (u, v) Gaussian
    of covariance Σʰ⁻¹;  Θ⁰ = Σ⁰,  Θʰ = Σʰ + Θʰ⁻¹ Σ̇ʰ. In polar coordinates the radius
    integrates to ∫ r³ e^{−r²/2} dr = 2 and ∫ r e^{−r²/2} dr = 1; the angle is left to
    quadrature.
    """
    sxx, szz, sxz = float(x @ x), float(z @ z), float(x @ z)
    theta = sxz
    for _ in range(depth):
        angle = math.acos(max(-1.0, min(1.0, sxz / math.sqrt(sxx * szz))))
        lo, hi = angle - math.pi / 2, math.pi / 2  # where both u and v are positive
        both = integrate.quad(
            lambda t, a=angle: math.cos(t) * math.cos(t - a), lo, hi, epsabs=1e-13, epsrel=1e-13
        )[0]
        sxz = 2 * math.sqrt(sxx * szz) * 2 / (2 * math.pi) * both
        derivative = 2 * (hi - lo) / (2 * math.pi)
        theta = sxz + theta * derivative
    return theta


def mp_kernel(kernel, x, z):
    """κ(x, z) to working precision of mpmath; Matérn from its Bessel function definition."""
    x, z = [mp.mpf(float(v)) for v in x], [mp.mpf(float(v)) for v in z]
    name = type(kernel).__name__
    square = mp.fsum((a - b) ** 2 for a, b in zip(x, z, strict=True))
    inner = mp.fsum(a * b for a, b in zip(x, z, strict=True))
    if name == "RBF":
        return mp.exp(-mp.mpf(kernel.gamma) * square)
    if name == "Laplacian":
        manhattan = mp.fsum(abs(a - b) for a, b in zip(x, z, strict=True))
        return mp.exp(-mp.mpf(kernel.gamma) * manhattan)
    if name == "Matern":
        ell = mp.mpf(kernel.length_scale)
        if math.isinf(kernel.nu):
            return mp.exp(-square / (2 * ell**2))
        if square == 0:
            return mp.mpf(1)
        nu = mp.mpf(kernel.nu)
        s = mp.sqrt(2 * nu * square) / ell
        return 2 ** (1 - nu) / mp.gamma(nu) * s**nu * mp.besselk(nu, s)
    if name == "Linear":
        return inner
    if name == "Polynomial":
        return (mp.mpf(kernel.gamma) * inner + mp.mpf(kernel.coef0)) ** kernel.degree
    if name == "NTK":
        norm = mp.sqrt(mp.fsum(a * a for a in x) * mp.fsum(b * b for b in z))
        if norm == 0:
            return mp.mpf(0)
        sigma = theta = max(mp.mpf(-1), min(mp.mpf(1), inner / norm))
        for _ in range(kernel.depth):
            angle = mp.acos(sigma)
            sigma = (mp.sin(angle) + sigma * (mp.pi - angle)) / mp.pi
            sigma = min(mp.mpf(1), sigma)
            theta = sigma + theta * (mp.pi - angle) / mp.pi
        return norm * theta
    raise KeyError(name)


# ------------------------------------------------------------------ one fit


def ridge(K, t, lam, weight=None, intercept=False):
    """Dual coefficients a (n, p) and intercept b (p,) of one kernel ridge regression.

    Minimises Σ_i w_i (t_i − f(x_i) − b)² + λ‖f‖² over f = Σ_j a_j κ(·, x_j) and an
    unpenalised b (b = 0 without intercept): the stationarity conditions

        W(K a + b 1 − t) + λ a = 0,    1ᵀ a = 0

    are solved as one linear system. A row of weight 0 gets a = 0.
    """
    n, p = t.shape
    w = np.ones(n) if weight is None else np.asarray(weight, np.float64)
    size = n + bool(intercept)
    M, rhs = np.zeros((size, size)), np.zeros((size, p))
    M[:n, :n] = w[:, None] * K + lam * np.eye(n)
    rhs[:n] = w[:, None] * t
    if intercept:
        M[:n, n], M[n, :n] = w, 1.0
    solution = np.linalg.solve(M, rhs)
    return solution[:n], (solution[n] if intercept else np.zeros(p))


# ------------------------------------------------------------------ chains of refits, eq. (3)-(5)


def alphas_of(alpha, n_steps):
    """(T,) ground-truth weights, the first one nan: a constant or T − 1 values."""
    rest = np.broadcast_to(np.asarray(alpha, np.float64), (n_steps - 1,))
    return np.concatenate([[np.nan], rest])


def weights_of(alphas):
    """c_1..c_T with f^(T) = Σ c_k F_k, by following eq. (3) on coefficient vectors.

    The targets α y + (1 − α) y^(τ−1) of step τ mix the pure columns of the step before,
    each of which becomes one step older, with a fresh first one.
    """
    c = np.array([1.0])
    for alpha in alphas[1:]:
        c = np.concatenate([[alpha], (1 - alpha) * c])
    return c


def chain(K, Y, lam, alphas, weight=None, intercept=False):
    """(dual, intercept) of every step: refit on α y + (1 − α) y^(τ−1), T times.

    ``lam`` is one ridge for all steps or one for each.
    """
    models, targets = [], Y
    lams = np.broadcast_to(lam, len(alphas))
    for t, alpha in enumerate(alphas):
        if t:
            dual, b = models[-1]
            targets = alpha * Y + (1 - alpha) * (K @ dual + b)
        models.append(ridge(K, targets, lams[t], weight, intercept))
    return models


def predict(models, K_new):
    """Predictions of every step at new points, (T, m, p); K_new is κ(X_new, X)."""
    return np.stack([K_new @ dual + b for dual, b in models])


def pure_chain(K, Y, lam, n_steps, weight=None, intercept=False):
    """The chain that never looks at the ground truth again: α = 0."""
    return chain(K, Y, lam, alphas_of(0.0, n_steps), weight, intercept)


def leave_one_out(K, Y, lam, alphas, weight=None, intercept=False):
    """(T, n, p): for each row, the whole chain refitted without it, predicting it."""
    return leave_out(np.arange(len(Y)), K, Y, lam, alphas, weight, intercept)


def leave_out(labels, K, Y, lam, alphas, weight=None, intercept=False):
    """(T, n, p): for each group of rows with one label, the chain without them, at them."""
    out = np.empty((len(alphas), *Y.shape))
    for label in np.unique(labels):
        keep = labels != label
        w = None if weight is None else np.asarray(weight)[keep]
        models = chain(K[np.ix_(keep, keep)], Y[keep], lam, alphas, w, intercept)
        out[:, ~keep] = predict(models, K[np.ix_(~keep, keep)])
    return out


def d_max(K, weight=None):
    """Largest eigenvalue of W^½ K W^½: what the tolerance scales with."""
    root = np.ones(len(K)) if weight is None else np.sqrt(np.asarray(weight, np.float64))
    return float(np.linalg.norm(root[:, None] * K * root, 2))


# ------------------------------------------------------------------ the same in many digits


def mp_chain(K, K_new, Y, lam, alphas, digits=60):
    """Predictions (T, m, p) at the rows of K_new; K, K_new, Y are taken as exact numbers."""
    with mp.workdps(digits):
        n, p = Y.shape
        A, B, y = mp.matrix(K.tolist()), mp.matrix(K_new.tolist()), mp.matrix(Y.tolist())
        inverse = (A + mp.mpf(float(lam)) * mp.eye(n)) ** -1
        out, dual = [], None
        for alpha in alphas:
            targets = y
            if dual is not None:
                a = mp.mpf(float(alpha))
                targets = a * y + (1 - a) * (A * dual)
            dual = inverse * targets
            out.append(B * dual)
        return np.array(
            [[[float(P[i, j]) for j in range(p)] for i in range(len(K_new))] for P in out]
        )


def mp_leave_one_out(K, Y, lam, alphas, digits=60):
    n = len(K)
    out = np.empty((len(alphas), n, Y.shape[1]))
    for i in range(n):
        keep = np.arange(n) != i
        out[:, i] = mp_chain(K[np.ix_(keep, keep)], K[i, keep][None], Y[keep], lam, alphas, digits)[
            :, 0
        ]
    return out


# ------------------------------------------------------------------ the same in long double


def long_double_rbf(kernel, X, Z):
    """RBF kernel matrix in long double, from direct differences."""
    A, B = (np.asarray(a, np.longdouble) for a in (X, Z))
    return np.exp(-np.longdouble(kernel.gamma) * np.square(A[:, None] - B[None]).sum(-1))


def long_double_factor(A):
    """Lower Cholesky factor of A."""
    L = np.array(A, np.longdouble)
    for j in range(len(L)):
        L[j, j] = np.sqrt(L[j, j])
        L[j + 1 :, j] /= L[j, j]
        L[j + 1 :, j + 1 :] -= np.outer(L[j + 1 :, j], L[j + 1 :, j])
    return np.tril(L)


def long_double_forward(L, B):
    """L⁻¹ B for lower L."""
    B = np.array(B, np.longdouble)
    for i in range(len(L)):
        B[i] = (B[i] - L[i, :i] @ B[:i]) / L[i, i]
    return B


def long_double_landmarks(kernel, X, y, landmarks, X_new, lam):
    """Predictions of ridge regression on κ(·, L) K_LL^(−½), its kernel an RBF."""
    L = long_double_factor(long_double_rbf(kernel, landmarks, landmarks))
    features, new = (
        long_double_forward(L, long_double_rbf(kernel, landmarks, a)) for a in (X, X_new)
    )
    C = long_double_factor(features @ features.T + np.longdouble(lam) * np.eye(len(L)))
    inner = long_double_forward(C, features @ np.asarray(y, np.longdouble))
    return (long_double_forward(C, new).T @ inner).astype(np.float64)


# ------------------------------------------------------------------ the best α, the best weights


def vertex(f):
    """Where the parabola through f(−1), f(0), f(1) has its vertex."""
    left, middle, right = f(-1.0), f(0.0), f(1.0)
    return 0.5 * (left - right) / (left - 2 * middle + right)


def squared_error(y, prediction, weight=None):
    w = np.ones(len(y)) if weight is None else np.asarray(weight, np.float64)
    return float((w[:, None] * np.square(y - prediction)).sum())


def algorithm_1(first, student, y, n_steps, *, clip=False, weight=None):
    """Algorithm 1, literally. ``student(alphas)`` refits: the last step's predictions.

    Returns (T,) with the first one nan.
    """
    alphas = [np.nan]
    for _ in range(n_steps - 1):
        without_truth = student([*alphas, 0.0])  # y_{α=0}^{(t)}
        best = vertex(lambda a, s=without_truth: squared_error(y, a * first + (1 - a) * s, weight))
        alphas.append(min(max(best, 0.0), 1.0) if clip else best)
    return np.array(alphas)


def best_weights(y, F, *, clip=False, weight=None):
    """argmin ‖y − Σ c_k F_k‖² with Σ c_k = 1, and c >= 0 if clip. F (T, m, p).

    With clip every possible support is tried: the optimum solves the problem with
    equality constraints on its own support.
    """
    n_steps = len(F)
    root = np.ones(len(y)) if weight is None else np.sqrt(np.asarray(weight, np.float64))
    columns = (root[:, None] * F).reshape(n_steps, -1)
    target = (root[:, None] * y).ravel()

    def on(support):
        base, rest = support[0], support[1:]
        c = np.zeros(n_steps)
        if rest:
            M = (columns[rest] - columns[base]).T
            c[rest] = np.linalg.lstsq(M, target - columns[base], rcond=None)[0]
        c[base] = 1.0 - c.sum()
        return c

    if not clip:
        return on(list(range(n_steps)))
    candidates = [
        on(list(support))
        for size in range(1, n_steps + 1)
        for support in itertools.combinations(range(n_steps), size)
    ]
    feasible = [c for c in candidates if c.min() >= -1e-12]
    return min(feasible, key=lambda c: np.square(target - c @ columns).sum())
