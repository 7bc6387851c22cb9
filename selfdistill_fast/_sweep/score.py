"""The scores of one kernel: one factorisation, and the held-out columns of its pure steps.

Every λ, α and number of steps is a mixture Σ_k c_k F_k of the pure steps' held-out predictions,
and its mean squared error a quadratic form in their residuals
(:func:`~selfdistill_fast.alpha.cell_losses`): a hundred α's cost no more than one.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from selfdistill_fast._chain.selection import held_out_columns
from selfdistill_fast._solvers import spectrum, with_steps
from selfdistill_fast._solvers.solvers import solver_named
from selfdistill_fast._sweep.grid import SCORES, Job
from selfdistill_fast._sweep.result import sequence_of
from selfdistill_fast.alpha import cell_losses, chain_weights, step_weights
from selfdistill_fast.kernels import Kernel

__all__ = ["score_kernel"]

#: bytes that the held-out predictions of some λ's may take
_BLOCK_BYTES = 1 << 29


def score_kernel(job: Job, data: dict[str, Any], kernel: Kernel) -> dict[str, Any]:
    """The variables of one kernel, as arrays without the axis of kernels."""
    one = _one_at_a_time(job)
    fitted: Any = None
    parts = []
    for lams in _blocks(job, data):
        if fitted is None or one:
            fitted = None  # not two at a time
            fitted = _factorise(job, data, kernel, float(lams[0]) if one else job.lams)
        parts.append(_cells(job, data, fitted, lams, one))
    found: dict[str, Any] = {
        name: np.concatenate([part[name] for part in parts]) for name in parts[0]
    }
    found["solver"] = fitted.name
    return found


def _one_at_a_time(job: Job) -> bool:
    """Whether a factorisation serves a single λ."""
    solver = solver_named(job.solver)
    return len(job.lams) == 1 or (solver is not None and solver.one_lam)


def _blocks(job: Job, data: dict[str, Any]) -> list[np.ndarray]:
    """The λ's whose held-out predictions are in memory at the same time."""
    n = max(len(data[name]) for name in ("X", "X_val") if data[name] is not None)
    p = 1 if data["y"].ndim == 1 else data["y"].shape[1]
    count = max(1, _BLOCK_BYTES // ((6 * p + 4) * job.n_steps * n * 8))
    count = 1 if _one_at_a_time(job) else count
    return [job.lams[at : at + count] for at in range(0, len(job.lams), count)]


def _cells(
    job: Job, data: dict[str, Any], fitted: Any, lams: np.ndarray, one: bool
) -> dict[str, Any]:
    """The variables of some λ's, with these as their first axis."""
    held = {}
    for score in job.scores:
        names = ("X_val", "y_val", "sample_weight_val") if score == "validation" else ()
        validation = [data[name] for name in names] or [None] * 3
        lam = float(lams[0]) if one else lams
        y, F, w = held_out_columns(fitted, lam, job.n_steps, None, *validation)
        held[score] = y, F[None] if one else F, w
    y, F, w = held[job.scores[0]]
    options: dict[str, Any] = {
        "sample_weight": w,
        "clip": job.clip,
        "per_target": job.per_target,
    }
    p, T = y.shape[1], job.n_steps
    entries = [  # numbers give the same weights for every λ
        (alpha, None if isinstance(alpha, str) else (alpha, step_weights(alpha)))
        for alpha in job.alphas
    ]
    cells = [
        [given or chain_weights(y, f, alpha, **options) for alpha, given in entries] for f in F
    ]
    own = any(alphas.ndim == 2 for row in cells for alphas, _ in row)  # of each target
    copies = (p,) if own else ()
    C = np.stack([[_spread(C, 2, copies) for _, C in row] for row in cells])  # (L, A, T, T[, p])
    alphas = np.stack([[_spread(alphas, 1, copies) for alphas, _ in row] for row in cells])
    found: dict[str, Any] = {"alphas": alphas}
    words = [alpha if isinstance(alpha, str) else "" for alpha in job.alphas]
    if "joint" in words:
        at = words.index("joint")
        found["joint_weights"] = C[:, at]
        alphas[:, at] = [sequence_of(c[-1]) for c in C[:, at]]
    L, A = C.shape[:2]
    for score, (y, F, w) in held.items():
        mse = cell_losses(y, F, C.reshape(L, A * T, *C.shape[3:]), sample_weight=w)
        found[SCORES[score]] = mse.reshape(L, A, T, p)
    return found


def _factorise(job: Job, data: dict[str, Any], kernel: Kernel, lam: Any) -> Any:
    """The one call that a sweep is made of."""
    return spectrum(
        data["X"],
        data["y"],
        kernel,
        solver=job.plans.get(kernel.definite, job.solver),
        lam=lam,
        sample_weight=data["sample_weight"],
        fit_intercept=job.fit_intercept,
        random_state=job.random_state,
        backend=job.backend,
        max_memory=job.max_memory,
        leave_one_out="leave-one-out" in job.scores,
        **with_steps(job.solver, job.solver_options, job.n_steps),
    )


def _spread(a: np.ndarray, ndim: int, copies: tuple[int, ...]) -> np.ndarray:
    """``a`` with a last axis of targets, where one is wanted and it has none."""
    if a.ndim > ndim or not copies:
        return a
    return np.broadcast_to(a[..., None], (*a.shape, *copies))
