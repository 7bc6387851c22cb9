"""How close is close: the one table of tolerances, and the comparison that uses it.

A chain of refits loses digits in proportion to the conditioning d_max/λ of the ridge
system and to the size Σ|c_k| of the weights that mix the pure steps; no method does
better. So predictions agree to

    max(floor, 100 · eps · (d_max/λ) · Σ|c_k|)   relative to the largest pure step in the mix.

That is promised where λ is at least n · eps · d_max. Below that an answer may still be right, and
may be warned of; but one that is wrong in the second digit must not come without a warning.

A Gram matrix loses digits to the rounding of a squared distance, eps · (‖x‖² + ‖z‖²),
multiplied by the slope of the kernel.
"""

from __future__ import annotations

import numpy as np

#: dtype -> (machine epsilon, floor of relative agreement)
TABLE = {
    np.dtype(np.float64): (2.0**-52, 1e-10),
    np.dtype(np.float32): (2.0**-23, 1e-5),
}


def eps(dtype=np.float64):
    return TABLE[np.dtype(dtype)][0]


def floor(dtype=np.float64):
    return TABLE[np.dtype(dtype)][1]


def conditioning(d_max, lam, c=1.0, dtype=np.float64):
    """What the conditioning of the ridge system and the weights ``c`` cost."""
    return 100 * eps(dtype) * (d_max / lam) * np.abs(c).sum()


def chain(d_max, lam, c=1.0, dtype=np.float64):
    """Relative tolerance of a mixed chain with weights ``c`` on the pure steps."""
    return max(floor(dtype), conditioning(d_max, lam, c, dtype))


#: relative error of short formulas on float64 numbers: α of eq. (16), weights, filters
FORMULA = 1e-14

#: relative error of an answer without a warning where λ is below rounding and nothing is promised
UNPROMISED = 1e-2


def rounding(n, d_max, dtype=np.float64):
    """The λ from which digits are promised; ``d_max`` is that of W^½KW^½ before centring."""
    return n * eps(dtype) * d_max


def silent(n, d_max, lam, c=1.0, dtype=np.float64):
    """Relative tolerance of an answer that comes without a warning.

    Below half of :func:`rounding` (d_max may be known to its size only) it is not that of
    :func:`chain`, which lets everything pass there.
    """
    promised = chain(d_max, lam, c, dtype)
    return promised if lam >= 0.5 * rounding(n, d_max, dtype) else min(promised, UNPROMISED)


def unequal_weights(weight, condition):
    """What unequal weights cost predictions from eigenvectors: a factor of :func:`silent`.

    Its 100 ε ‖K‖/λ holds where rows have about the same weight.
    """
    if weight is None:
        return 1.0
    kept = weight[weight > 0]
    return max(1.0, min(float(kept.max() / kept.min()), condition) ** 0.5 / 100.0)


def nystrom(s, lam, c=1.0):
    """What the rounding of a landmark model costs predictions, relative to max |y|.

    K is known to its ``rounding``, so small predictions K/λ y to that share of ‖K‖; and samples
    far from the training samples, those that are held out too, by the rounding of features.
    """
    if s.scale == 0.0:
        return 0.0
    return (1000 * s.rounding / min(lam, s.scale) + 10 * s._far / lam) * np.abs(c).sum()


def underflow(n, largest, dtype=np.float64):
    """Error that n dual coefficients, times entries of K up to ``largest``, owe to underflow."""
    return 8.0 * n * largest * float(np.finfo(dtype).smallest_subnormal)


def held_out(weight, labels, intercept):
    """What unequal weights cost held-out predictions: a factor of the tolerance.

    A row of weight w is known to ε √(max w / w); with an intercept, a fold without which a
    share s of the weight is left, to ε/s.
    """
    if weight is None:
        return 1.0
    kept = weight[weight > 0]
    growth = float(np.sqrt(kept.max() / kept.min()))
    if intercept:
        left = min(float(weight[labels != label].sum()) for label in np.unique(labels))
        growth = max(growth, float(weight.sum()) / max(left, 1e-300))
    return growth


def krylov(tol=1e-8, c=1.0):
    """What solver="krylov" may add: ``tol`` of every pure step, relative to the targets.

    Its default is the solver's own for float64.
    """
    return tol * np.abs(c).sum()


def gram(kernel, X, Z, dtype=np.float64):
    """Absolute tolerance of K(X, Z): rounding of the pair quantity times the slope, and of κ."""
    xx = float(np.square(X).sum(1).max(initial=0.0))
    zz = float(np.square(Z).sum(1).max(initial=0.0))
    name = type(kernel).__name__
    if name == "RBF":
        slope, size = kernel.gamma, 1.0
    elif name == "Laplacian":
        # sums of |x_j - z_j|: at most the norms' sum times the root of the dimension
        slope, size = kernel.gamma * np.sqrt(X.shape[1] / max(xx + zz, 1e-300)), 1.0
    elif name == "Matern":
        # bounded by the slope where the points are apart; coincident ones are exact
        slope, size = 3.0 / kernel.length_scale**2, 1.0
    elif name == "Polynomial":
        size = (kernel.gamma * np.sqrt(xx) * np.sqrt(zz) + abs(kernel.coef0)) ** kernel.degree
        base = kernel.gamma * np.sqrt(xx) * np.sqrt(zz) + abs(kernel.coef0)
        slope = kernel.degree * kernel.gamma * base ** (kernel.degree - 1)
    elif name == "Linear":
        slope, size = 1.0, np.sqrt(xx) * np.sqrt(zz)
    elif name == "NTK":
        slope, size = kernel.depth + 1.0, (kernel.depth + 1.0) * np.sqrt(xx) * np.sqrt(zz)
    else:
        raise KeyError(name)
    return 8 * eps(dtype) * (slope * (xx + zz) + size)


#: error of a Gram matrix relative to its largest entry (at least 1), for points of norm about 1
LOOPS = {np.dtype(np.float64): 1e-12, np.dtype(np.float32): 5e-6}


def loops(kernel, dtype):
    """Relative tolerance of the compiled loops for such points: a power multiplies errors."""
    return LOOPS[np.dtype(dtype)] * getattr(kernel, "degree", 1)


def host(a):
    """An array as NumPy, wherever it lies."""
    return a.get() if hasattr(a, "get") and hasattr(a, "dtype") else np.asarray(a)


def assert_close(actual, expected, rtol, scale=None, what="values"):
    """max |actual - expected| <= rtol · scale; ``scale`` defaults to max |expected|."""
    actual, expected = host(actual), host(expected)
    assert actual.shape == expected.shape, f"{what}: shape {actual.shape}, not {expected.shape}"
    if expected.size == 0:
        return
    assert np.isfinite(actual).all(), f"{what}: not finite"
    error = np.abs(actual.astype(np.float64) - expected.astype(np.float64)).max()
    scale = np.abs(expected).max() if scale is None else scale
    assert error <= rtol * scale, (
        f"{what}: off by {error:.3e} = {error / max(scale, 1e-300):.3e} of their size, "
        f"allowed {rtol:.3e}"
    )
