"""Self-distillation of a factorised training set: spectrum + α's → path.

By Theorem 4.1, the chain of steps 1..T with weights α_2..α_T predicts f^(τ) = Σ_k c_k F_k
(alpha/). Its coordinates are therefore the same mixture of the pure steps' coordinates, and its
dual coefficients are those coordinates expressed in the training rows.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from selfdistill_fast._backend import on_device
from selfdistill_fast._chain.explosion import alarm_of
from selfdistill_fast._chain.path import DistillationPath
from selfdistill_fast._chain.selection import HeldOut, choose, held_out
from selfdistill_fast._names import AlphaLike, Numbers
from selfdistill_fast._solvers import NoLimit, Penalties, Spectrum, mix
from selfdistill_fast._validation import check_memory, warn_caller
from selfdistill_fast.alpha import check_alphas, step_weights

__all__ = ["assemble", "distill", "distilled", "limit_of"]


def distill(
    spectrum: Spectrum,
    lam: float | None,
    alpha: AlphaLike,
    n_steps: int,
    *,
    lam_steps: Numbers | None = None,
    X_val: Any = None,
    y_val: Any = None,
    sample_weight_val: Any = None,
    clip: bool = False,
    per_target: bool = False,
) -> DistillationPath:
    """Self-distil a factorised training set for ``n_steps`` steps.

    Parameters
    ----------
    spectrum : Spectrum
        From :func:`~selfdistill_fast.spectrum`.
    lam : float
        λ of (K + λI)⁻¹, the same in every step (scikit-learn's KernelRidge calls it
        ``alpha``). A single value: a sequence would be a batch, which this function does not
        accept. For a schedule use ``lam_steps``.
    alpha : float, sequence of T − 1, "optimal" or "joint"
        Ground-truth weights α_2..α_T, any real numbers (or a path's ``.alphas``).
        "optimal": eq. (16) step by step (Algorithm 1). "joint": the weights of all pure
        steps that are best for the last step. Both are chosen on ``X_val, y_val`` if
        given, else by exact leave-one-out.
    n_steps : int
        Number of steps T >= 1; step 1 is ordinary kernel ridge regression.
    lam_steps : sequence of T floats, optional
        A value λ_t for each step t; ``lam`` is then ignored and may be None. ỹ⁽¹⁾ of
        eq. (16) is then, at step τ, the one-step fit with λ_τ.
    X_val : array_like of shape (m, d), optional
        With a precomputed kernel, K(X_val, X_train), (m, n).
    y_val : array_like of shape (m,) or (m, p), optional
    sample_weight_val : array_like of shape (m,), optional
    clip : bool
        Restrict chosen α's to [0, 1] ("joint": c to the simplex).
    per_target : bool
        Choose α's for each target separately instead of shared ones.

    Returns
    -------
    DistillationPath

    Warns
    -----
    RuntimeWarning
        A step looks exploded: Σ_k |c_k| a^k with a = d_max/(d_max + λ) is above 1000; or its
        degrees of freedom (known to "eigh" and "nystrom") exceed the number of rows; or its
        training RMSE is above ten times that of step 1 and above twice that without a model.

    Raises
    ------
    TypeError, ValueError
        Bad λ, α, number of steps or validation data.
    MemoryError
        The dual coefficients of all steps do not fit.

    Examples
    --------
    >>> import numpy as np
    >>> from selfdistill_fast import RBF, distill, spectrum
    >>> x = np.linspace(0, 1, 20); y = np.sin(6 * x)
    >>> path = distill(spectrum(x[:, None], y, RBF(10.0)), 0.1, "optimal", n_steps=2)
    >>> path.alphas.shape, path.predict(x[:3, None]).shape
    ((2,), (3,))
    """
    validation = {"X_val": X_val, "y_val": y_val, "sample_weight_val": sample_weight_val}
    options: dict[str, Any] = {"lam_steps": lam_steps, "clip": clip, "per_target": per_target}
    return distilled(spectrum, lam, alpha, n_steps, **options, **validation)[0]


@on_device
def distilled(
    spectrum: Spectrum,
    lam: float | None,
    alpha: Any,
    n_steps: int,
    *,
    lam_steps: Any = None,
    clip: bool = False,
    per_target: bool = False,
    **validation: Any,
) -> tuple[DistillationPath, HeldOut | None]:
    """:func:`distill`, and the held-out data on which α's were chosen, if they were."""
    penalties = Penalties.of(lam, n_steps, lam_steps, batch=False)
    n_steps = penalties.n_steps
    rows = spectrum.n if spectrum.basis is None else spectrum.basis.shape[0]
    check_memory(
        spectrum.backend,
        2 * (n_steps * rows + penalties.count * spectrum.k) * spectrum.p * spectrum.dtype.itemsize
        + 16 * n_steps**2,
        f"the coefficients of {n_steps} steps and {spectrum.p} target(s)",
        hint="use fewer steps (step=inf needs none), or fewer targets at a time",
    )
    chosen = isinstance(alpha, str)
    if chosen and alpha not in ("optimal", "joint"):
        raise ValueError(
            f"alpha must be a number, a sequence of {n_steps - 1} numbers, 'optimal' or 'joint'; "
            f"got {alpha!r}"
        )
    X_val = validation["X_val"]
    if (X_val is None) != (validation["y_val"] is None):
        raise ValueError("X_val and y_val go together: give both or neither")
    if validation["sample_weight_val"] is not None and X_val is None:
        raise ValueError("sample_weight_val needs X_val and y_val, which are missing")
    held = selection = None
    if chosen:
        held = held_out(spectrum, penalties, **validation)
        options = {"clip": clip, "per_target": per_target}
        alphas, C, selection = choose(held, penalties, alpha, **options)
    else:
        alphas = check_alphas(alpha, n_steps, spectrum.p)
        C = step_weights(alphas)
    path = assemble(
        spectrum,
        penalties,
        C,
        alphas,
        limit=limit_of(spectrum, penalties.lam, alpha, alphas),
        selection=selection,
        joint=chosen and alpha == "joint",
    )
    if path.alarm:
        warn_caller(path.alarm, RuntimeWarning)
    return path, held


@on_device
def assemble(
    spectrum: Spectrum,
    penalties: Penalties,
    C: np.ndarray,
    alphas: np.ndarray,
    *,
    limit: Any,
    selection: dict[str, Any] | None = None,
    joint: bool = False,
) -> DistillationPath:
    """The path whose steps mix the pure steps with the weights C, (T, T) or (T, T, p).

    ``joint``: C was chosen for the last step alone; the earlier steps have no meaning.
    """
    xp = spectrum.backend.xp
    native_C, (lam, lam_steps) = xp.asarray(C), (penalties.lam, penalties.lam_steps)
    spectrum.warn_below_rounding(penalties.values)
    spectrum._warn_of_underflow(penalties.values)
    pure = spectrum._steps(penalties)
    shrinkage = spectrum.shrinkage(native_C, lam, lam_steps)
    alarm = alarm_of(
        spectrum,
        penalties,
        C,
        alphas,
        pure,
        shrinkage,
        first=penalties.n_steps if joint else 1,
        chosen=selection is not None,
    )
    coordinates = mix(native_C, pure, xp, scheduled=penalties.scheduled).astype(spectrum.dtype)
    return DistillationPath(
        kernel=spectrum.kernel,
        X=spectrum.basis,
        lam=lam,
        lam_steps=lam_steps,
        step_weights=C,
        alphas=alphas,
        shrinkage=shrinkage,
        duals=spectrum.dual(coordinates),
        constants=spectrum.constant(coordinates),
        limit=limit,
        one_target=spectrum.one_target,
        backend=spectrum.backend,
        selection=selection,
        alarm=alarm,
    )


@on_device
def limit_of(spectrum: Spectrum, lam: float | None, alpha: Any, alphas: np.ndarray) -> Any:
    """Dual coefficients and constant of the limit, or the reason why there is none."""
    if lam is None:
        return "a limit exists only for a single lam; this path has one for each step"
    if isinstance(alpha, str):
        return (
            "a limit exists only for one constant alpha, given as a number; this path chose its own"
        )
    constant = float(alpha) if np.ndim(alpha) == 0 else None
    if constant is None and len(alphas) > 1 and (alphas[1:] == alphas.flat[-1]).all():
        constant = float(alphas.flat[-1])
    if constant is None:
        return "a limit exists only for one constant alpha; this path has different ones"
    try:
        coordinates = spectrum.limit(lam, constant)
    except NoLimit as error:
        return str(error)
    except ValueError:  # it exists, but its coefficients overflow: an error only if it is used
        rows = spectrum.n if spectrum.basis is None else spectrum.basis.shape[0]
        infinite = spectrum.backend.xp.full((rows, spectrum.p), math.inf, spectrum.dtype)
        return infinite, spectrum.backend.xp.full(spectrum.p, math.inf, spectrum.dtype)
    return spectrum.dual(coordinates), spectrum.constant(coordinates)
