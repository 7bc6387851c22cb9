"""Sweeps: kernels × λ × α × steps × targets, scored from one factorisation per kernel.

A kernel is the unit of work: for progress, for a store, and for tasks on a Dask cluster. The
modules, in the order of the data flow::

    grid (the request) → executors → score (one kernel) → result ⇄ store
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, closing
from typing import Any

import numpy as np

from selfdistill_fast._backend import get_backend
from selfdistill_fast._names import SolverName
from selfdistill_fast._sweep import grid
from selfdistill_fast._sweep.executors import Executor, executor
from selfdistill_fast._sweep.result import SweepResult, dataset_of, joined, need
from selfdistill_fast._sweep.store import Store, group_names
from selfdistill_fast.kernels import Kernel

__all__ = ["sweep"]


def sweep(
    X: Any,
    y: Any,
    *,
    kernels: Any,
    lams: Any,
    alphas: Any = ("optimal",),
    n_steps: int,
    X_val: Any = None,
    y_val: Any = None,
    sample_weight: Any = None,
    sample_weight_val: Any = None,
    fit_intercept: bool = False,
    leave_one_out: bool | None = None,
    clip: bool = False,
    per_target: bool = False,
    solver: SolverName = "auto",
    solver_options: dict[str, Any] | None = None,
    store: Any = None,
    overwrite: bool = False,
    progress: bool = True,
    client: Any = None,
    random_state: int | None = None,
    backend: Any = None,
    max_memory: int | None = None,
) -> SweepResult:
    """Score a grid of kernels, λ, α and steps with one factorisation per kernel.

    If killed at any moment and restarted with the same ``store``, it continues with the
    unfinished kernels; the result is bit-identical (for the same number of BLAS threads).

    Parameters
    ----------
    X : array_like of shape (n, d)
        For the kernel "precomputed", the matrix K, (n, n).
    y : array_like of shape (n,) or (n, p)
    kernels : Kernel or sequence of Kernel
        Such as ``[RBF(g) for g in np.logspace(-2, 0, 8)]``.
    lams : sequence of float
        λ values: a batch, never a schedule.
    alphas : sequence of entries, or one entry
        An entry is a number, a sequence of T − 1 numbers, "optimal" or "joint" (see
        :func:`~selfdistill_fast.distill`). The last two are chosen for each kernel and λ on the
        validation set if given, else by leave-one-out; "joint" for each number of steps.
    n_steps : int T
        Every number of steps from 1 to T is scored.
    X_val, y_val, sample_weight_val : optional
        Validation set; with a precomputed kernel, ``X_val`` is K(X_val, X).
    sample_weight : array_like of shape (n,), optional
    fit_intercept : bool
    leave_one_out : bool, optional
        Whether to score by exact leave-one-out; the default if there is no validation set.
    clip, per_target : bool
        For the chosen α's, as in :func:`~selfdistill_fast.distill`.
    solver, solver_options, max_memory, backend
        As in :func:`~selfdistill_fast.spectrum`. "cholesky" factorises once for each λ.
    store : path, optional
        Directory of a zarr store, one group per kernel. It belongs to these data, this grid and
        these options, and is rejected with any others. One process at a time.
    overwrite : bool
        Whether to discard an existing store.
    progress : bool
        Whether to show a progress bar with the time left, if standard error is a terminal.
    client : dask.distributed.Client, optional
        Distribute the kernels over its cluster. Each worker process factorises one kernel at a
        time, with as many threads as the worker has; only this process writes the store.
    random_state : int, optional
        Seed for "nystrom", the same for every kernel. Default: drawn, and saved in the store.

    Returns
    -------
    SweepResult

    Raises
    ------
    TypeError, ValueError
        Invalid data or grid; a store of another sweep (the message names the differences).
    ImportError
        xarray, zarr, tqdm or dask is not installed (the extra ``sweep``).
    OSError
        The store cannot be written. Finished kernels remain, and the store can be used again.
    ValueError, numpy.linalg.LinAlgError, MemoryError, ...
        The exception of a kernel that failed, with its name. With a store, the other kernels
        are finished first and saved: ``SweepResult.load(store)``.

    Examples
    --------
    >>> import numpy as np
    >>> from selfdistill_fast import RBF, sweep
    >>> rng = np.random.default_rng(0)
    >>> X = rng.uniform(size=(60, 1)); y = np.sin(6 * X[:, 0]) + 0.3 * rng.normal(size=60)
    >>> result = sweep(X, y, kernels=[RBF(1.0), RBF(10.0)], lams=[0.01, 0.1],
    ...                alphas=[0, 0.5, "optimal"], n_steps=3, progress=False)
    >>> result.dataset.mse_loo.shape
    (2, 2, 3, 3, 1)
    >>> best = result.best()
    >>> best["kernel"], best["lam"]
    (RBF(gamma=10.0), 0.01)
    """
    need(
        "xarray",
        *(["zarr", "filelock"] if store is not None else []),
        *(["tqdm"] if progress else []),
    )
    arrays = {"X": X, "y": y, "sample_weight": sample_weight}
    arrays |= {"X_val": X_val, "y_val": y_val, "sample_weight_val": sample_weight_val}
    be = get_backend(backend, arrays)
    kernels = grid.check_kernels(kernels, store)
    data = grid.check_data(be, kernels, **arrays)
    job = grid.check_job(
        data,
        lams,
        alphas,
        n_steps,
        leave_one_out,
        solver=solver,
        solver_options=solver_options,
        fit_intercept=fit_intercept,
        clip=clip,
        per_target=per_target,
        random_state=random_state,
        max_memory=max_memory,
        backend=backend,
    )
    if client is not None:
        grid.check_client(client)
    free = grid.free_choices(be, data, kernels, job)
    with ExitStack() as stack:
        kept = None
        if store is not None:
            manifest = grid.describe(be, data, kernels, job)
            names = group_names(len(kernels))
            kept = stack.enter_context(
                Store(store, manifest, names, free=free, overwrite=overwrite)
            )
            free = {name: kept.manifest[name] for name in free}
        job = grid.with_choices(job, free)
        run = executor(be, backend, client, arrays)
        groups = _computed(job, data, kernels, run, kept, progress)
        if kept is not None:
            kept.consolidate()
    return SweepResult(joined(groups), kernels)


def _computed(
    job: grid.Job,
    data: dict[str, Any],
    kernels: list[Kernel],
    run: Executor,
    kept: Store | None,
    progress: bool,
) -> list[Any]:
    """The datasets of all kernels: from the store if it has them, else computed."""
    groups = [None] * len(kernels) if kept is None else [kept.read(name) for name in kept.names]
    pending = [i for i, group in enumerate(groups) if group is None]
    failures: dict[int, Exception] = {}
    advance: Callable[[], Any] = int
    with ExitStack() as stack:
        if progress:
            from tqdm.auto import tqdm

            bar = tqdm(
                total=len(kernels),
                initial=len(kernels) - len(pending),
                desc="sweep",
                unit="kernel",
                disable=None,  # disabled unless standard error is a terminal
            )
            advance = stack.enter_context(bar).update
        try:
            # always closed before the store, so that no task remains on a cluster
            results = stack.enter_context(closing(run(job, data, [kernels[i] for i in pending])))
            for position, outcome in results:
                i = pending[position]
                if isinstance(outcome, Exception):
                    failures[i] = outcome
                    if kept is None:
                        break  # nothing is saved, so there is no point in continuing
                    continue
                groups[i] = dataset_of(job, kernels, i, outcome)
                if kept is not None:
                    kept.write(kept.names[i], groups[i])
                advance()
        except KeyboardInterrupt as interrupt:
            interrupt.add_note(_how_to_go_on(groups, kept))
            raise
    if failures:
        raise _failure(failures, kernels, groups, kept)
    return groups


def _how_to_go_on(groups: list[Any], kept: Store | None) -> str:
    """The note for an interrupted sweep: what is finished, and how to continue."""
    finished = sum(group is not None for group in groups)
    return f"interrupted: {finished} of {len(groups)} kernels are finished" + (
        f" and saved in {kept.path}; run the same sweep again with this store to continue"
        if kept is not None
        else "; with store=... they would have been saved"
    )


def _failure(
    failures: dict[int, Exception], kernels: list[Kernel], groups: list[Any], kept: Store | None
) -> Exception:
    """The first failure, with the name of its kernel."""
    first = min(failures)
    error = failures[first]
    message = f"{kernels[first]!r}: {error or type(error).__name__}"
    if len(failures) > 1:
        message += f" (and {len(failures) - 1} more kernels failed: "
        message += ", ".join(repr(kernels[i]) for i in sorted(failures)[1:]) + ")"
    if kept is not None:
        finished = sum(group is not None for group in groups)
        message += (
            f". The other {finished} of {len(kernels)} kernels are saved: "
            f"SweepResult.load({str(kept.path)!r})"
        )
    known = (ValueError, TypeError, np.linalg.LinAlgError, MemoryError)
    kind = type(error) if type(error) in known else RuntimeError
    failure = kind(message)
    failure.__cause__ = error
    return failure
