"""The targets of a run, each scaled by its own unit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from selfdistill_fast._solvers.krylov.bounds import norms, sum_rounding
from selfdistill_fast._solvers.krylov.operator import UNIT, KernelProduct

__all__ = ["Targets"]


@dataclass(frozen=True, eq=False)
class Targets:
    """Centred targets in units of powers of two, and the tolerance of each.

    A run thus treats targets of very different sizes alike, and no square over- or underflows. A
    target that is constant up to the rounding of its mean is 0, and its tolerance is relative to
    the constant.

    Attributes
    ----------
    t : (n, p) the targets in their units, on the complement of q
    unit : (p,)
    scale : (p,) the largest |t|, 0 for a constant target
    goal : (p,) the tolerance, in units
    mean_rounding : (p,) rounding of ȳ, which every prediction contains for every λ
    dropped : (p,) size of a target that was set to 0
    """

    t: Any
    unit: np.ndarray
    scale: np.ndarray
    goal: np.ndarray
    mean_rounding: np.ndarray
    dropped: np.ndarray

    @classmethod
    def measured(cls, Y: Any, target: Any, y_mean: Any, tol: float, K: KernelProduct) -> Targets:
        """From centred targets Y (n, p), their weighted form ``target``, and ȳ (p,)."""
        be, xp = K.backend, K.backend.xp
        scale = be.to_numpy(abs(Y).max(0)).astype(np.float64)
        rounding = 8.0 * float(np.finfo(np.float64).eps) * len(target) ** 0.5
        mean = abs(be.to_numpy(y_mean))
        constant = scale <= rounding * mean
        size = np.where(constant, mean, scale)  # the error of a constant is relative to its mean
        scale[constant] = 0.0
        unit = np.exp2(np.floor(np.log2(np.where(size > 0.0, size, 1.0))))
        unit = np.maximum(unit, 1e-300)
        goal = tol * size / unit
        added = (mean + scale) / unit if K.q is not None else 0.0 * scale
        sums = sum_rounding(len(target)) * UNIT
        mean_rounding = (3.0 * sums + 4.0 * K.unit_roundoff) * added
        t = target.astype("float64") / xp.asarray(unit)
        dropped = np.where(constant, norms(t[None], be)[0], 0.0)
        t[:, xp.asarray(constant)] = 0.0
        if K.q is not None:
            t -= K.q[:, None] * (K.q @ t)
        return cls(t, unit, scale / unit, goal, mean_rounding, dropped)
