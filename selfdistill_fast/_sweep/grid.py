"""The grid and the data of a sweep, checked before anything is computed.

:func:`describe` lists everything that the results depend on: the manifest of a store.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import numpy as np

from selfdistill_fast._solvers import (
    Plan,
    check_leave_one_out,
    check_new,
    check_solver,
    with_steps,
)
from selfdistill_fast._solvers.planning import choose, memory_budget
from selfdistill_fast._solvers.problem import Problem
from selfdistill_fast._validation import (
    check_lam,
    check_n_steps,
    check_sample_weight,
    check_targets,
    exact_text,
)
from selfdistill_fast.alpha import check_alphas
from selfdistill_fast.kernels import Custom, Kernel, Precomputed, as_kernel

__all__ = [
    "SCORES",
    "Job",
    "check_client",
    "check_data",
    "check_job",
    "check_kernels",
    "describe",
    "free_choices",
    "with_choices",
]

#: variables of the errors, by the held-out data on which they are measured
SCORES = {"validation": "mse_val", "leave-one-out": "mse_loo"}


@dataclass(frozen=True)
class Job:
    """Everything except data and kernel; sent to workers."""

    lams: np.ndarray
    alphas: tuple[Any, ...]
    labels: list[str]  # of the alphas
    n_steps: int
    scores: tuple[str, ...]  # α is chosen on the first
    solver: str
    plans: dict[str, Plan]  # of "auto", by kernel
    solver_options: dict[str, Any]
    fit_intercept: bool
    clip: bool
    per_target: bool
    random_state: Any
    max_memory: int | None
    backend: Any


def check_kernels(kernels: Any, store: Any) -> list[Kernel]:
    """A list of distinct kernels, which a store, if there is one, must be able to describe."""
    if not isinstance(kernels, Iterable) or isinstance(kernels, (str, Kernel)):
        kernels = [kernels]
    checked = [as_kernel(kernel) for kernel in kernels]
    if any(kernel.maps_rows for kernel in checked):
        raise ValueError(
            "a sweep takes the rows as the kernel uses them: pass X=function(X) and Linear(), or "
            "scale the features of X"
        )
    if not checked:
        raise ValueError("kernels is empty: give at least one")
    _refuse_repeats("kernels", [repr(kernel) for kernel in checked])
    if store is not None and any(isinstance(kernel, Custom) for kernel in checked):
        raise ValueError(
            "a kernel given as a function cannot be saved in a store: there is no way to tell "
            "whether it is the same function the next time. Use a built-in kernel, 'precomputed', "
            "or no store"
        )
    return checked


def _refuse_repeats(name: str, labels: Sequence[Any]) -> None:
    repeated = sorted({label for label in labels if list(labels).count(label) > 1})
    if repeated:
        raise ValueError(f"{name} holds {repeated[0]} more than once; each must be given once")


def _check_lams(lams: Any) -> np.ndarray:
    values = np.atleast_1d(check_lam(lams, batch=True))
    _refuse_repeats("lams", values.tolist())
    return values


def _check_entries(alphas: Any, n_steps: int, p: int) -> tuple[tuple[Any, ...], list[str]]:
    """The entries of the axis of α's, and their labels."""
    if isinstance(alphas, str) or not isinstance(alphas, Iterable):
        alphas = [alphas]
    entries: list[Any] = []
    labels: list[str] = []
    for alpha in alphas:
        if isinstance(alpha, str):
            if alpha not in ("optimal", "joint"):
                raise ValueError(
                    f"alphas may hold numbers, sequences, 'optimal' and 'joint'; got {alpha!r}"
                )
            entries.append(alpha)
            labels.append(alpha)
            continue
        values = check_alphas(alpha, n_steps, p)
        entries.append(values)
        if np.ndim(alpha) == 0:
            labels.append(exact_text(float(alpha)))
        else:
            rows = [", ".join(map(exact_text, np.ravel(row).tolist())) for row in values[1:]]
            labels.append(("; " if values.ndim == 2 else ", ").join(rows))
    if not entries:
        raise ValueError("alphas is empty: give at least one")
    _refuse_repeats("alphas", labels)
    return tuple(entries), labels


def _check_seed(random_state: Any) -> int | None:
    if random_state is None:
        return None
    if isinstance(random_state, bool) or not isinstance(random_state, (int, np.integer)):
        raise TypeError(
            f"random_state must be an integer or None here, got {random_state!r}: every kernel "
            "starts from the same seed, independent of the order of computation"
        )
    if not 0 <= random_state < 2**32:
        raise ValueError(f"random_state must be between 0 and 2**32 - 1, got {random_state}")
    return int(random_state)


def check_client(client: Any) -> None:
    if getattr(client, "asynchronous", None) is not False or not hasattr(client, "scatter"):
        raise TypeError(
            "client must be a dask.distributed.Client that is not asynchronous, got "
            f"{type(client).__name__}"
        )


def check_data(
    be: Any,
    kernels: list[Kernel],
    X: Any,
    y: Any,
    sample_weight: Any,
    X_val: Any,
    y_val: Any,
    sample_weight_val: Any,
) -> dict[str, Any]:
    """All arrays, native and checked before anything is computed."""
    X = be.asarray(X, "X", ndim=2)
    n = X.shape[0]
    if 0 in X.shape:
        raise ValueError(f"X is empty: shape {X.shape}; expected at least one row and one feature")
    if any(isinstance(kernel, Precomputed) for kernel in kernels) and len(kernels) > 1:
        raise ValueError("kernel 'precomputed' means that X is K: give no other kernel with it")
    y = check_targets(be, y, n, "float64", "y")
    data = {
        "X": X,
        "y": y,
        "sample_weight": check_sample_weight(be, sample_weight, n),
        "X_val": None,
        "y_val": None,
        "sample_weight_val": None,
    }
    if (X_val is None) != (y_val is None):
        raise ValueError("X_val and y_val go together: give both or neither")
    if X_val is None:
        if sample_weight_val is not None:
            raise ValueError("sample_weight_val needs X_val and y_val, which are missing")
        return data
    X_val = check_new(be, X_val, X.shape[1], X.dtype, kernels[0], "X_val")
    m = X_val.shape[0]
    if m == 0:
        raise ValueError("X_val is empty: no row to score on")
    y_val = be.asarray(y_val, "y_val", ndim=(1, 2), dtype="float64")
    p, p_val = (1 if a.ndim == 1 else a.shape[1] for a in (y, y_val))
    if y_val.shape[0] != m or p != p_val:
        raise ValueError(
            f"y_val has shape {y_val.shape}, but X_val has {m} rows and y {p} target(s)"
        )
    weights = check_sample_weight(be, sample_weight_val, m, "sample_weight_val")
    return data | {"X_val": X_val, "y_val": y_val, "sample_weight_val": weights}


def check_job(
    data: dict[str, Any],
    lams: Any,
    alphas: Any,
    n_steps: Any,
    leave_one_out: bool | None,
    *,
    solver: str,
    solver_options: dict[str, Any] | None,
    fit_intercept: bool,
    clip: bool,
    per_target: bool,
    random_state: Any,
    max_memory: int | None,
    backend: Any,
) -> Job:
    """The job of checked data."""
    check_solver(solver, solver_options or {})
    n_steps = check_n_steps(n_steps)
    validates = data["X_val"] is not None
    if leave_one_out is None:
        leave_one_out = not validates
    scores = ["validation"] * validates + ["leave-one-out"] * bool(leave_one_out)
    if not scores:
        raise ValueError("nothing to score on: give X_val and y_val, or leave_one_out=True")
    if leave_one_out:
        check_leave_one_out(solver, n_steps)
    p = 1 if data["y"].ndim == 1 else data["y"].shape[1]
    entries, labels = _check_entries(alphas, n_steps, p)
    return Job(
        lams=_check_lams(lams),
        alphas=entries,
        labels=labels,
        n_steps=n_steps,
        scores=tuple(scores),
        solver=solver,
        plans={},
        solver_options=dict(solver_options or {}),
        fit_intercept=bool(fit_intercept),
        clip=bool(clip),
        per_target=bool(per_target),
        random_state=_check_seed(random_state),
        max_memory=max_memory,
        backend=backend,
    )


def free_choices(be: Any, data: dict[str, Any], kernels: list[Kernel], job: Job) -> dict[str, Any]:
    """The free choices, as JSON values: made once, and saved in the store."""
    seed = job.random_state
    if seed is None:
        seed = int(np.random.SeedSequence().generate_state(1)[0])
    return {"random_state": seed, "plans": _plans(be, data, kernels, job)}


def with_choices(job: Job, free: dict[str, Any]) -> Job:
    """The job with the choices of :func:`free_choices`."""
    plans = {kernel: Plan.from_dict(plan) for kernel, plan in free["plans"].items()}
    return replace(job, random_state=free["random_state"], plans=plans)


def _plans(be: Any, data: dict[str, Any], kernels: list[Kernel], job: Job) -> dict[str, Any]:
    """The solver that "auto" chooses for each kernel, as JSON values.

    They depend on measured rates and free memory; they are chosen once, so that a restart and
    every worker of a cluster use the same.
    """
    if job.solver != "auto":
        return {}
    X, y = data["X"], data["y"]
    options = with_steps(job.solver, job.solver_options, job.n_steps)
    return {
        repr(kernel): choose(
            Problem(
                be,
                X.shape[0],
                X.shape[1],
                1 if y.ndim == 1 else y.shape[1],
                X.dtype,
                kernel,
                lam=job.lams if len(job.lams) > 1 else job.lams[0],
                leave_one_out="leave-one-out" in job.scores,
                budget=memory_budget(be, job.max_memory),
                **options,
            )
        ).to_dict()
        for kernel in kernels
    }


def describe(be: Any, data: dict[str, Any], kernels: list[Kernel], job: Job) -> dict[str, Any]:
    """Everything that the results depend on, as JSON values: the manifest of a store."""

    def array(a: Any) -> str:
        a = np.ascontiguousarray(be.to_numpy(a))
        digest = hashlib.blake2b(a.data, digest_size=16).hexdigest()
        return f"{a.dtype} {a.shape} {digest}"

    def other(value: Any) -> Any:
        return value.item() if np.ndim(value) == 0 and hasattr(value, "item") else repr(value)

    options = {k: array(v) if np.ndim(v) else v for k, v in job.solver_options.items()}
    manifest = {
        "version": version("selfdistill_fast"),
        "data": {name: None if a is None else array(a) for name, a in data.items()},
        "kernels": [kernel.to_dict() for kernel in kernels],
        "lams": job.lams.tolist(),
        "alphas": job.labels,
        "n_steps": job.n_steps,
        "scores": list(job.scores),
        "solver": job.solver,
        "solver_options": json.loads(json.dumps(options, default=other)),
        "fit_intercept": job.fit_intercept,
        "clip": job.clip,
        "per_target": job.per_target,
        "backend": be.name,
    }
    if job.random_state is not None:
        manifest["random_state"] = job.random_state
    return manifest
