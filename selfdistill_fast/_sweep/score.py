"""The scores of one kernel: one factorisation, and the held-out columns of its pure steps.

For every λ, α and number of steps, the chain is a mixture Σ_k c_k F_k of the pure steps' held-out
predictions, and its mean squared error is a quadratic form in their residuals
(:func:`~selfdistill_fast.alpha.cell_losses`): a hundred α's cost hardly more than one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import numpy as np

from selfdistill_fast._chain.selection import choose_cells, held_out
from selfdistill_fast._names import SolverName
from selfdistill_fast._solvers import Penalties, spectrum, with_steps
from selfdistill_fast._solvers.solvers import solver_named
from selfdistill_fast._sweep.grid import SCORES, Job
from selfdistill_fast.alpha import cell_losses
from selfdistill_fast.alpha.weights import alphas_or_nan
from selfdistill_fast.kernels import Kernel

__all__ = ["score_kernel"]

#: bytes for the held-out predictions of the λ values processed together
_BLOCK_BYTES = 1 << 29


def score_kernel(job: Job, data: dict[str, Any], kernel: Kernel) -> dict[str, Any]:
    """The variables of one kernel, as arrays without the axis of kernels."""
    one = _one_at_a_time(job)
    fitted: Any = None
    parts = []
    for lams in _blocks(job, data):
        if fitted is None or one:
            fitted = None  # not two in memory at a time
            fitted = _factorise(job, data, kernel, float(lams[0]) if one else job.lams)
        parts.append(_cells(job, data, fitted, lams, one))
    result: dict[str, Any] = {
        name: np.concatenate([part[name] for part in parts]) for name in parts[0]
    }
    result["solver"] = fitted.name
    return result


def _one_at_a_time(job: Job) -> bool:
    """Whether a factorisation serves only a single λ."""
    solver = solver_named(job.solver)
    return len(job.lams) == 1 or (solver is not None and solver.one_lam)


def _blocks(job: Job, data: dict[str, Any]) -> list[np.ndarray]:
    """Groups of λ values whose held-out predictions are in memory at the same time."""
    n = max(len(data[name]) for name in ("X", "X_val") if data[name] is not None)
    p = 1 if data["y"].ndim == 1 else data["y"].shape[1]
    count = max(1, _BLOCK_BYTES // ((6 * p + 4) * job.n_steps * n * 8))
    count = 1 if _one_at_a_time(job) else count
    return [job.lams[at : at + count] for at in range(0, len(job.lams), count)]


def _cells(
    job: Job, data: dict[str, Any], fitted: Any, lams: np.ndarray, one: bool
) -> dict[str, Any]:
    """The variables of some λ values, which form their first axis."""
    held, penalties = {}, Penalties.of(lams[0] if one else lams, job.n_steps)
    for score in job.scores:
        names = ("X_val", "y_val", "sample_weight_val") if score == "validation" else ()
        columns = held_out(fitted, penalties, **{name: data[name] for name in names})
        held[score] = replace(columns, F=columns.F[None]) if one else columns
    alphas, C = choose_cells(
        held[job.scores[0]], job.alphas, clip=job.clip, per_target=job.per_target
    )
    result: dict[str, Any] = {"alphas": alphas}
    if "joint" in job.labels:
        at = job.labels.index("joint")
        result["joint_weights"] = C[:, at]
        alphas[:, at] = [alphas_or_nan(c[-1]) for c in C[:, at]]
    L, A, T = C.shape[:3]
    for score, columns in held.items():
        y, F, w = columns.y, columns.F, columns.weight
        mse = cell_losses(y, F, C.reshape(L, A * T, *C.shape[3:]), sample_weight=w)
        result[SCORES[score]] = mse.reshape(L, A, T, y.shape[1])
    return result


def _factorise(job: Job, data: dict[str, Any], kernel: Kernel, lam: Any) -> Any:
    """The factorisation of one kernel."""
    return spectrum(
        data["X"],
        data["y"],
        kernel,
        solver=job.plans.get(repr(kernel), cast(SolverName, job.solver)),
        lam=lam,
        sample_weight=data["sample_weight"],
        fit_intercept=job.fit_intercept,
        random_state=job.random_state,
        backend=job.backend,
        max_memory=job.max_memory,
        leave_one_out="leave-one-out" in job.scores,
        **with_steps(job.solver, job.solver_options, job.n_steps),
    )
