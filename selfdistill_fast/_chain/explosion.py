"""The warning about a chain whose weights explode: at which step, and the figures that show it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from selfdistill_fast._solvers import Penalties, Spectrum, mix

__all__ = ["alarm_of"]

#: a step looks exploded from this Σ_k |c_k| a^k on, a = d_max/(d_max + λ)
LARGE_WEIGHTS = 1e3
#: its training error: this many times that of step 1, and of the targets themselves
LARGE_ERROR, LARGE_FUNCTION = 10.0, 2.0


def alarm_of(
    spectrum: Spectrum,
    penalties: Penalties,
    C: np.ndarray,
    alphas: np.ndarray,
    pure: Any,
    shrinkage: Any,
    *,
    first: int,
    chosen: bool,
) -> str | None:
    """The warning about a step that looks exploded, the earliest from ``first`` on, or None.

    C (T, T) or (T, T, p) mixes the ``pure`` steps' coordinates; ``chosen``: α's were chosen.
    """
    T = len(C)
    errors = _training_errors(spectrum, C, pure, shrinkage, penalties.lam)

    def by_target(a: np.ndarray) -> np.ndarray:
        return np.broadcast_to(a.reshape(T, -1), (T, spectrum.p))

    weights = by_target(np.abs(C).sum(1))
    # for large λ, F_k is as small as a^k, and correspondingly large weights are correct
    d = getattr(spectrum, "d", None)  # else a bound, ‖K‖ before centring
    largest = spectrum.scale if d is None else float(max(d[-1:], default=0.0))
    terms = (largest / (largest + penalties.smallest)) ** np.arange(1, T + 1)
    reasons: list[tuple[np.ndarray, Callable[[int, int], str]]] = [
        (
            by_target(np.tensordot(terms, np.abs(C), (0, 1))) > LARGE_WEIGHTS,
            lambda t, j: f"Σ|c| = {weights[t, j]:.3g}",
        )
    ]
    if shrinkage is not None and spectrum.max_loo_steps > 0:  # the trace of Ritz values differs
        traces = spectrum.backend.to_numpy(shrinkage.sum(1, dtype="float64"))
        dof = by_target(traces) + spectrum.fit_intercept
        n = spectrum.target.shape[0]
        reasons.append(
            (abs(dof) > 1.01 * n, lambda t, j: f"{dof[t, j]:.3g} degrees of freedom of {n} rows")
        )
    if errors is not None:
        rmse, size = errors
        reasons.append(
            (
                (rmse > LARGE_ERROR * rmse[0]) & (rmse > LARGE_FUNCTION * size),
                lambda t, j: (
                    f"training RMSE {rmse[t, j]:.3g} ({rmse[0, j]:.3g} at step 1, "
                    f"{size[j]:.3g} without a model)"
                ),
            )
        )
    places = np.argwhere(np.any([far for far, _ in reasons], axis=0)[first - 1 :])
    if not len(places):
        return None
    t, j = places[0] + (first - 1, 0)
    figures = ", ".join(text(t, j) for far, text in reasons if far[t, j])
    own = alphas if alphas.ndim == 1 else alphas[:, j]
    c = C[t] if C.ndim == 2 else C[t, :, j]
    name, values = ("c", c) if np.isnan(own[1:]).any() else ("α", own[1 : t + 1])
    listed = "… " * (len(values) > 6) + ", ".join(f"{value:.6g}" for value in values[-6:])
    hint = (
        "clip=True restricts chosen α's to [0, 1]; a validation set (X_val, y_val), fewer steps "
        "or a larger lam may do better"
        if chosen
        else "use α's closer to [0, 1], or alpha='optimal' with clip=True"
    )
    return (
        f"the chain looks exploded at step {t + 1} ({name} = {listed}): {figures}. "
        f"Its predictions may be far from the targets; {hint}"
    )


def _training_errors(
    spectrum: Spectrum, C: np.ndarray, pure: Any, shrinkage: Any, lam: float | None
) -> tuple[np.ndarray, np.ndarray] | None:
    """Training RMSE of every step (T, p), and that of the constant function (p,).

    With eigenvalues the residual is (1 − B) z. Without them: the coefficients c_k of pure step k
    solve (K + λI) c_k = F_(k−1), so F_(k−1) − F_k = λ c_k, and y − Σ_k C_k F_k is
    λ Σ_s c_s Σ_(k>=s) C_k; None for a schedule. Neither case needs a product with K.
    """
    xp, to_numpy = spectrum.backend.xp, spectrum.backend.to_numpy
    scale = max(1e-300, float(abs(spectrum.target).max()))

    def squares(a: Any) -> np.ndarray:
        scaled = a.astype("float64") / scale
        return to_numpy((scaled * scaled).sum(-2))

    size = squares(spectrum.target)
    if shrinkage is not None:
        B = shrinkage if shrinkage.ndim == 3 else shrinkage[..., None]
        outside = np.maximum(size - squares(spectrum.z), 0.0)
        residual = squares((1.0 - B) * spectrum.z) + outside
    elif lam is not None:
        tails = np.cumsum(C[:, ::-1], axis=1)[:, ::-1]
        residual = squares(lam * mix(xp.asarray(tails.copy()), pure, xp))
        round_off = 100.0 * float(np.finfo(spectrum.dtype).eps) * np.abs(tails).sum(1)
        residual = np.maximum(residual - round_off.reshape(len(C), -1) ** 2 * size, 0.0)
    else:
        return None
    rows = spectrum.total_weight
    return scale * np.sqrt(residual / rows), scale * np.sqrt(size / rows)
