"""Sweeps: kernels × λ × α × steps × targets, scored from one factorisation for each kernel.

For one kernel every λ, α and number of steps is a mixture Σ_k c_k F_k of the pure steps'
held-out predictions, and its mean squared error a quadratic form in their residuals
(:func:`~selfdistill_fast.alpha.cell_losses`, which also serves the estimator's
cross-validation): a hundred α's cost no more than one. So kernels are the unit of work: of
progress, of what a store keeps, and of what a Dask cluster is given.
"""

from __future__ import annotations

import hashlib
import json
import math
import numbers
import queue
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, closing
from dataclasses import dataclass, fields, replace
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from selfdistill_fast._backend import Gpu, device_of, devices, get_backend
from selfdistill_fast._backend.threads import limits_by_any_thread
from selfdistill_fast._chain.selection import held_out_columns
from selfdistill_fast._solvers import (
    Plan,
    check_leave_one_out,
    check_new,
    check_solver,
    spectrum,
    with_steps,
)
from selfdistill_fast._solvers.planning import choose, memory_budget
from selfdistill_fast._solvers.problem import Problem
from selfdistill_fast._solvers.solvers import solver_named
from selfdistill_fast._sweep.store import Store, read_group, read_manifest
from selfdistill_fast._validation import (
    check_lam,
    check_n_steps,
    check_sample_weight,
    check_targets,
    exact_text,
)
from selfdistill_fast.alpha import (
    cell_losses,
    chain_weights,
    check_alphas,
    step_weights,
    weights_to_alphas,
)
from selfdistill_fast.kernels import Custom, Kernel, Precomputed, as_kernel, kernel_from_dict

__all__ = ["SweepResult", "sweep"]

#: variables of the errors, by the name of what they are measured on
SCORES = {"validation": "mse_val", "leave-one-out": "mse_loo"}
#: bytes that the held-out predictions of some λ's may take
_BLOCK_BYTES = 1 << 29
#: rounds in which a cluster may lose every task before it is given up
_LOST_ROUNDS = 3


@dataclass(frozen=True)
class _Job:
    """Everything but data and kernel; travels to workers."""

    lams: np.ndarray
    alphas: tuple[Any, ...]
    n_steps: int
    scores: tuple[str, ...]  # the first is what α is chosen on
    solver: str
    plans: dict[bool, Plan]  # of "auto", for definite kernels and others
    solver_options: dict[str, Any]
    fit_intercept: bool
    clip: bool
    per_target: bool
    random_state: Any
    max_memory: int | None
    backend: Any


class SweepResult:
    """Scores of a sweep; made by :func:`sweep`, or from its store by :meth:`load`.

    Attributes
    ----------
    dataset : xarray.Dataset
        ``mse_val`` and/or ``mse_loo`` (kernel, lam, alpha, step, target), mean squared errors
        on the validation set and by exact leave-one-out; ``alphas`` (kernel, lam, alpha, step),
        the α of each step (NaN for step 1), for "joint" that of the last step's optimum (NaN
        where no α-sequence has it), with a last axis of targets where they differ;
        ``joint_weights`` (kernel, lam, step, pure_step), the weights of the joint optimum of
        each number of steps. Labels: ``kernel`` and ``alpha`` are text, ``sel(alpha="0.25")``;
        the parameters of the kernels and the ``solver`` used are further coordinates.
        ``attrs["chosen_on"]`` says what "optimal" and "joint" were chosen on.
    kernels : list of Kernel
        In the order of ``dataset.kernel``.
    """

    def __init__(self, dataset: Any, kernels: Sequence[Kernel]) -> None:
        self.dataset = dataset
        self.kernels = list(kernels)

    def __repr__(self) -> str:
        sizes = " × ".join(f"{size} {name}" for name, size in self._scores()[1].sizes.items())
        return f"SweepResult({sizes}, scored by {', '.join(self.scores)})"

    @property
    def scores(self) -> list[str]:
        """What the errors are measured on: "validation", "leave-one-out" or both."""
        return [name for name, variable in SCORES.items() if variable in self.dataset]

    def _scores(self, score: str | None = None) -> tuple[str, Any]:
        """Name and errors of a score; by default of the one that chose."""
        score = self.dataset.attrs["chosen_on"] if score is None else score
        if score not in self.scores:
            raise ValueError(f"score must be {' or '.join(self.scores)} here, got {score!r}")
        return score, self.dataset[SCORES[score]]

    @classmethod
    def load(cls, store: Any) -> SweepResult:
        """What a store holds so far, finished or not.

        Parameters
        ----------
        store : path
            As given to :func:`sweep`.

        Raises
        ------
        FileNotFoundError, ValueError
            There is no such store, no kernel is finished, or a file is damaged.
        """
        _need("xarray", "zarr")
        manifest, names = read_manifest(store)
        if not names:
            raise ValueError(f"no kernel of the sweep in {store} is finished yet")
        described = manifest["kernels"]
        kernels = [
            kernel_from_dict(described[_group_names(len(described)).index(n)]) for n in names
        ]
        return cls(_joined([read_group(Path(store) / name) for name in names]), kernels)

    def best(self, score: str | None = None, *, target: Any = None) -> dict[str, Any]:
        """The cell with the smallest error.

        Parameters
        ----------
        score : {"validation", "leave-one-out"}, optional
            Default: what the α's were chosen on.
        target : label, optional
            Of one target; default the mean over targets.

        Returns
        -------
        dict
            ``kernel`` (a Kernel), ``lam``, ``alpha`` (its label), ``step``, ``mse``; ``alphas``
            (τ[, p]) of the chain with that many steps, as :func:`~selfdistill_fast.distill`
            takes them, NaN for joint weights without an α-sequence; ``weights`` (τ[, p]) of
            its pure steps.

        Raises
        ------
        ValueError
            No such score; no error is finite.
        """
        errors = self._scores(score)[1]
        errors = errors.mean("target") if target is None else errors.sel(target=target)
        values = errors.values
        if not np.isfinite(values).any():
            raise ValueError("no held-out error is finite: the targets or predictions overflow")
        i, j, a, t = np.unravel_index(np.nanargmin(values), values.shape)
        cell = self.dataset.isel(kernel=i, lam=j, alpha=a)
        if str(cell.alpha.item()) == "joint":
            weights = cell.joint_weights.values[t, : t + 1]
            alphas = _sequence(weights)
        else:
            alphas = cell.alphas.values[: t + 1]
            weights = step_weights(alphas)[-1]
        return {
            "kernel": self.kernels[i],
            "lam": float(cell.lam),
            "alpha": str(cell.alpha.item()),
            "step": int(errors.step[t]),
            "mse": float(values[i, j, a, t]),
            "alphas": alphas,
            "weights": weights,
        }

    def to_dataframe(self) -> Any:
        """One row for each kernel, λ, α, step and target, as a pandas.DataFrame.

        Columns: the five labels, the kernels' parameters, the solver, the errors, and ``alphas``:
        the α of that step.
        """
        names = [SCORES[score] for score in self.scores]
        return self.dataset[[*names, "alphas"]].to_dataframe().reset_index()

    def plot(
        self, *, kernel: Any = None, alpha: str | None = None, score: str | None = None
    ) -> Any:
        """Heat map of the error over λ and step, and α curves.

        Parameters
        ----------
        kernel : label or Kernel, optional
            Default: that of the best cell.
        alpha : label, optional
            Default: that of the best cell.
        score : {"validation", "leave-one-out"}, optional

        Returns
        -------
        matplotlib.figure.Figure
            As :func:`~selfdistill_fast.plotting.figure_sweep` draws it.
        """
        from selfdistill_fast.plotting import figure_sweep

        score, _ = self._scores(score)
        best = self.best(score)
        return figure_sweep(
            self.dataset,
            variable=SCORES[score],
            kernel=repr(best["kernel"]) if kernel is None else str(kernel),
            alpha=best["alpha"] if alpha is None else alpha,
        )


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
    solver: str = "auto",
    solver_options: dict[str, Any] | None = None,
    store: Any = None,
    overwrite: bool = False,
    progress: bool = True,
    client: Any = None,
    random_state: int | None = None,
    backend: Any = None,
    max_memory: int | None = None,
) -> SweepResult:
    """Score a grid of kernels, λ, α and steps; one factorisation for each kernel.

    Killed at any moment and started again with the same ``store``, it goes on with the
    kernels that are not finished; the result has the same bits (for the same number of BLAS
    threads).

    Parameters
    ----------
    X : array_like of shape (n, d)
        For the kernel "precomputed" the matrix K, (n, n).
    y : array_like of shape (n,) or (n, p)
    kernels : Kernel or sequence of Kernel
        Such as ``[RBF(g) for g in np.logspace(-2, 0, 8)]``.
    lams : sequence of float
        Ridges: a batch, never a schedule.
    alphas : sequence of entries, or one entry
        An entry is a number, a sequence of T − 1 numbers, "optimal" or "joint" (see
        :func:`~selfdistill_fast.distill`). The last two are chosen for each kernel and λ on the
        validation set where it is given, else by leave-one-out; "joint" for each number of steps.
    n_steps : int T
        Every number of steps from 1 to T is scored.
    X_val, y_val, sample_weight_val : optional
        Validation set; with a precomputed kernel ``X_val`` is K(X_val, X).
    sample_weight : array_like of shape (n,), optional
    fit_intercept : bool
    leave_one_out : bool, optional
        Score by exact leave-one-out; default where there is no validation set.
    clip, per_target : bool
        Of the chosen α's, as in :func:`~selfdistill_fast.distill`.
    solver, solver_options, max_memory, backend
        As in :func:`~selfdistill_fast.spectrum`. "cholesky" factorises once for each λ.
    store : path, optional
        Directory of a zarr store, one group per kernel. It is made for these data, this grid
        and these options, and refused with anything else. One process at a time.
    overwrite : bool
        Start afresh where the store exists.
    progress : bool
        A progress bar with the time left, where standard error is a terminal.
    client : dask.distributed.Client, optional
        Spread the kernels over its cluster. Each worker process factorises one kernel at a
        time, with as many threads as the worker has; this process alone writes the store.
    random_state : int, optional
        Seed of "nystrom", the same for every kernel. Default: drawn, and kept in the store.

    Returns
    -------
    SweepResult

    Raises
    ------
    TypeError, ValueError
        Bad data or grid; a store that was made for something else (the differences are named).
    ImportError
        xarray, zarr, tqdm or dask is not installed (the extra ``sweep``).
    OSError
        The store cannot be written. What is finished stays, and the store can be used again.
    ValueError, numpy.linalg.LinAlgError, MemoryError, ...
        What a kernel failed with, with its name. With a store the others are finished first
        and kept: ``SweepResult.load(store)``.

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
    _need(
        "xarray",
        *(["zarr", "filelock"] if store is not None else []),
        *(["tqdm"] if progress else []),
    )
    arrays = {"X": X, "y": y, "sample_weight": sample_weight}
    arrays |= {"X_val": X_val, "y_val": y_val, "sample_weight_val": sample_weight_val}
    be = get_backend(backend, arrays)
    kernels = _check_kernels(kernels, store)
    data = _check_data(be, kernels, X, y, sample_weight, X_val, y_val, sample_weight_val)
    check_solver(solver, solver_options or {})
    n_steps = check_n_steps(n_steps)
    if leave_one_out is None:
        leave_one_out = X_val is None
    scores = ["validation"] * (X_val is not None) + ["leave-one-out"] * bool(leave_one_out)
    if not scores:
        raise ValueError("nothing to score on: give X_val and y_val, or leave_one_out=True")
    if leave_one_out:
        check_leave_one_out(solver, n_steps)
    p = 1 if data["y"].ndim == 1 else data["y"].shape[1]
    entries, labels = _check_entries(alphas, n_steps, p)
    job = _Job(
        lams=_check_lams(lams),
        alphas=entries,
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
    if client is not None:
        _check_client(client)
    names = _group_names(len(kernels))
    seed = job.random_state
    if seed is None:
        seed = int(np.random.SeedSequence().generate_state(1)[0])
    # what is free to choose is chosen once, and kept in the store
    free = {"random_state": seed, "plans": _plans(be, data, kernels, job)}
    groups: list[Any] = [None] * len(kernels)
    failures: dict[int, Exception] = {}
    with ExitStack() as stack:
        kept = None
        if store is not None:
            manifest = _describe(be, data, kernels, job, labels)
            kept = stack.enter_context(
                Store(store, manifest, names, free=free, overwrite=overwrite)
            )
            free = {name: kept.manifest[name] for name in free}
            groups = [kept.read(name) for name in names]
        plans = {key == "definite": Plan.from_dict(plan) for key, plan in free["plans"].items()}
        job = replace(job, random_state=free["random_state"], plans=plans)
        pending = [i for i, group in enumerate(groups) if group is None]
        bar = stack.enter_context(_bar(len(kernels), len(kernels) - len(pending), progress))
        run: Any = _here if client is None else _on_cluster(client)
        on_host = device_of(arrays)[1] is None
        if client is None and backend == "gpu" and on_host and len(devices()) > 1:
            run = _on_devices(be, devices())
        try:
            # closed before the store is, whatever happens: no task is left on a cluster
            results = stack.enter_context(closing(run(job, data, [kernels[i] for i in pending])))
            for position, outcome in results:
                i = pending[position]
                if isinstance(outcome, Exception):
                    failures[i] = outcome
                    if kept is None:
                        break  # nothing is kept: no use in going on
                    continue
                groups[i] = _dataset(job, labels, kernels, i, outcome)
                if kept is not None:
                    kept.write(names[i], groups[i])
                bar.update()
        except KeyboardInterrupt as interrupt:
            finished = sum(group is not None for group in groups)
            interrupt.add_note(
                f"interrupted: {finished} of {len(kernels)} kernels are finished"
                + (
                    f" and kept in {store}; run the same sweep again with this store to go on"
                    if kept is not None
                    else "; with store=... they would have been kept"
                )
            )
            raise
        if failures:
            raise _failure(failures, kernels, groups, store)
        if kept is not None:
            kept.consolidate()
    return SweepResult(_joined(groups), kernels)


# ---------------------------------------------------------------- one kernel
def _score(job: _Job, data: dict[str, Any], kernel: Kernel) -> dict[str, Any]:
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


def _one_at_a_time(job: _Job) -> bool:
    """Whether a factorisation serves a single λ."""
    solver = solver_named(job.solver)
    return len(job.lams) == 1 or (solver is not None and solver.one_lam)


def _blocks(job: _Job, data: dict[str, Any]) -> list[np.ndarray]:
    """The λ's whose held-out predictions are in memory at the same time."""
    n = max(len(data[name]) for name in ("X", "X_val") if data[name] is not None)
    p = 1 if data["y"].ndim == 1 else data["y"].shape[1]
    count = max(1, _BLOCK_BYTES // ((6 * p + 4) * job.n_steps * n * 8))
    count = 1 if _one_at_a_time(job) else count
    return [job.lams[at : at + count] for at in range(0, len(job.lams), count)]


def _cells(
    job: _Job, data: dict[str, Any], fitted: Any, lams: np.ndarray, one: bool
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
        alphas[:, at] = [_sequence(c[-1]) for c in C[:, at]]
    L, A = C.shape[:2]
    for score, (y, F, w) in held.items():
        mse = cell_losses(y, F, C.reshape(L, A * T, *C.shape[3:]), sample_weight=w)
        found[SCORES[score]] = mse.reshape(L, A, T, p)
    return found


def _factorise(job: _Job, data: dict[str, Any], kernel: Kernel, lam: Any) -> Any:
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


def _plans(be: Any, data: dict[str, Any], kernels: list[Kernel], job: _Job) -> dict[str, Any]:
    """What "auto" takes for definite kernels and for others, as JSON values.

    It depends on measured rates and free memory: chosen once, so that a restart and every
    worker of a cluster do the same.
    """
    if job.solver != "auto":
        return {}
    X, y = data["X"], data["y"]
    options = with_steps(job.solver, job.solver_options, job.n_steps)
    return {
        "definite" if kernel.definite else "indefinite": choose(
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
        for kernel in {kernel.definite: kernel for kernel in kernels}.values()
    }


def _spread(a: np.ndarray, ndim: int, copies: tuple[int, ...]) -> np.ndarray:
    """``a`` with a last axis of targets, where one is wanted and it has none."""
    if a.ndim > ndim or not copies:
        return a
    return np.broadcast_to(a[..., None], (*a.shape, *copies))


def _sequence(weights: np.ndarray) -> np.ndarray:
    """The α's of the chain with these weights, NaN where there are none."""
    try:
        return weights_to_alphas(weights)
    except ValueError:
        return np.full(weights.shape, np.nan)


def _dataset(
    job: _Job, labels: list[str], kernels: list[Kernel], i: int, found: dict[str, Any]
) -> Any:
    """What :func:`_score` found for kernel i as an xarray.Dataset."""
    import xarray

    p = found[SCORES[job.scores[0]]].shape[-1]
    grid = ("kernel", "lam", "alpha", "step", "target")
    own = grid if found["alphas"].ndim == 4 else grid[:-1]
    variables: dict[str, Any] = {
        SCORES[score]: (grid, found[SCORES[score]][None]) for score in job.scores
    }
    variables["alphas"] = (own, found["alphas"][None])
    if "joint_weights" in found:
        axes = ("kernel", "lam", "step", "pure_step", *own[4:])
        variables["joint_weights"] = (axes, found["joint_weights"][None])
    steps = np.arange(1, job.n_steps + 1)
    coordinates: dict[str, Any] = {
        "kernel": [repr(kernels[i])],
        "lam": job.lams,
        "alpha": labels,
        "step": steps,
        "target": np.arange(p),
        "solver": ("kernel", [found["solver"]]),
    }
    if "joint_weights" in found:
        coordinates["pure_step"] = steps
    for name in {f.name: None for kernel in kernels for f in fields(kernel)}:
        values = [getattr(kernel, name, math.nan) for kernel in kernels]
        if all(isinstance(value, numbers.Real) for value in values):
            coordinates[name] = ("kernel", [float(values[i])])
    return xarray.Dataset(variables, coordinates, {"chosen_on": job.scores[0]})


def _joined(groups: list[Any]) -> Any:
    """The groups of all kernels as one xarray.Dataset."""
    import xarray

    return xarray.concat(
        groups,
        "kernel",
        data_vars="minimal",
        coords="minimal",
        compat="override",
        join="exact",
        combine_attrs="override",
    )


# ----------------------------------------------------------- where it is done
def _here(
    job: _Job, data: dict[str, Any], kernels: list[Kernel]
) -> Iterator[tuple[int, dict[str, Any] | Exception]]:
    """Position and outcome of each kernel, one after the other, in this process."""
    for position, kernel in enumerate(kernels):
        try:
            outcome: Any = _score(job, data, kernel)
        except Exception as error:
            outcome = error
        yield position, outcome


def _on_devices(be: Any, numbers: list[int]) -> Any:
    """As :func:`_here`, a kernel at a time on each of several GPUs, in any order."""

    def run(
        job: _Job, data: dict[str, Any], kernels: list[Kernel]
    ) -> Iterator[tuple[int, dict[str, Any] | Exception]]:
        host = {name: None if a is None else be.to_numpy(a) for name, a in data.items()}
        free: queue.SimpleQueue[int] = queue.SimpleQueue()
        for number in numbers:
            free.put(number)

        def score(kernel: Kernel) -> dict[str, Any]:
            number = free.get()
            try:
                gpu = Gpu(device=number)
                with gpu.on():
                    return _score(replace(job, backend=gpu), host, kernel)
            finally:
                free.put(number)

        with ThreadPoolExecutor(len(numbers), thread_name_prefix="selfdistill_fast") as pool:
            futures = {pool.submit(score, kernel): i for i, kernel in enumerate(kernels)}
            try:
                for future in as_completed(futures):
                    error = future.exception()
                    if error is not None and not isinstance(error, Exception):
                        raise error
                    yield futures[future], error or future.result()
            finally:
                for future in futures:
                    future.cancel()

    return run


#: a worker process factorises one kernel at a time, with all of its threads
_alone = threading.Lock()


def _on_worker(job: _Job, data: dict[str, Any], kernel: Kernel) -> dict[str, Any]:
    """:func:`_score` on a Dask worker, with the threads and the memory that are its own."""
    import scipy.linalg  # noqa: F401  its BLAS is limited only once it is loaded
    from distributed import get_worker
    from threadpoolctl import threadpool_limits

    worker = get_worker()
    n_threads = int(worker.state.nthreads)
    memory = worker.memory_manager.memory_limit
    if job.max_memory is None and memory:
        job = replace(job, max_memory=int(0.8 * memory))
    with _alone, ExitStack() as limits:
        limits_by_any_thread()
        limits.enter_context(threadpool_limits(limits=n_threads, user_api="blas"))
        backend = get_backend(job.backend, n_threads=n_threads)
        return _score(replace(job, backend=backend), data, kernel)


def _on_cluster(client: Any) -> Any:
    """As :func:`_here`, on a Dask cluster and in any order."""
    from distributed import CancelledError, as_completed

    def run(
        job: _Job, data: dict[str, Any], kernels: list[Kernel]
    ) -> Iterator[tuple[int, dict[str, Any] | Exception]]:
        waiting, lost_rounds = list(range(len(kernels))), 0
        while waiting:
            # on every worker: the data outlive all but the last
            (shared,) = client.scatter([data], broadcast=True, hash=False)
            futures = {
                client.submit(_on_worker, job, shared, kernels[i], pure=False): i for i in waiting
            }
            try:
                lost = {}
                for future in as_completed(list(futures)):
                    i = futures[future]
                    try:
                        outcome: Any = future.result()
                    except CancelledError as error:  # its data died with the last worker
                        lost[i] = error
                        continue
                    except Exception as error:
                        outcome = error
                    future.release()
                    yield i, outcome
            finally:
                client.cancel([future for future in futures if not future.done()])
            lost_rounds = lost_rounds + 1 if len(lost) == len(waiting) else 0
            if lost_rounds == _LOST_ROUNDS:
                yield next(iter(lost.items()))
                return
            waiting = list(lost)

    return run


def _failure(
    failures: dict[int, Exception], kernels: list[Kernel], groups: list[Any], store: Any
) -> Exception:
    """The first failure, with the name of its kernel."""
    first = min(failures)
    error = failures[first]
    message = f"{kernels[first]!r}: {error or type(error).__name__}"
    if len(failures) > 1:
        message += f" (and {len(failures) - 1} more kernels failed: "
        message += ", ".join(repr(kernels[i]) for i in sorted(failures)[1:]) + ")"
    if store is not None:
        finished = sum(group is not None for group in groups)
        message += (
            f". The other {finished} of {len(kernels)} kernels are kept: "
            f"SweepResult.load({str(store)!r})"
        )
    known = (ValueError, TypeError, np.linalg.LinAlgError, MemoryError)
    kind = type(error) if type(error) in known else RuntimeError
    failure = kind(message)
    failure.__cause__ = error
    return failure


def _bar(total: int, finished: int, progress: bool) -> Any:
    """A progress bar over kernels; silent where standard error is no terminal."""
    if not progress:
        return _Silent()
    from tqdm import tqdm

    return tqdm(total=total, initial=finished, desc="sweep", unit="kernel", disable=None)


class _Silent:
    """In place of a progress bar."""

    def __enter__(self) -> _Silent:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self) -> None:
        """Nothing."""


# ---------------------------------------------------------------- arguments
def _need(*modules: str) -> None:
    """ImportError that names the extra."""
    for name in modules:
        try:
            import_module(name)
        except ImportError as error:
            raise ImportError(
                f"sweeps need {name}; install the extra: pip install 'selfdistill_fast[sweep]'"
            ) from error


def _group_names(count: int) -> list[str]:
    return [f"kernel-{i:04d}" for i in range(count)]


def _check_kernels(kernels: Any, store: Any) -> list[Kernel]:
    """A list of different kernels, that a store can describe where there is one."""
    if not isinstance(kernels, Iterable) or isinstance(kernels, (str, Kernel)):
        kernels = [kernels]
    found = [as_kernel(kernel) for kernel in kernels]
    if not found:
        raise ValueError("kernels is empty: give at least one")
    _refuse_repeats("kernels", [repr(kernel) for kernel in found])
    if store is not None and any(isinstance(kernel, Custom) for kernel in found):
        raise ValueError(
            "a kernel given as a function cannot be kept in a store: nothing says whether it is "
            "the same function the next time. Use a built-in kernel, 'precomputed', or no store"
        )
    return found


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
            "starts from the same seed, in whatever order they are computed"
        )
    if not 0 <= random_state < 2**32:
        raise ValueError(f"random_state must be between 0 and 2**32 - 1, got {random_state}")
    return int(random_state)


def _check_client(client: Any) -> None:
    if getattr(client, "asynchronous", None) is not False or not hasattr(client, "scatter"):
        raise TypeError(
            "client must be a dask.distributed.Client that is not asynchronous, got "
            f"{type(client).__name__}"
        )


def _check_data(
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
        raise ValueError("kernel 'precomputed' means that X is K: give it alone")
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
            raise ValueError("sample_weight_val weighs X_val and y_val, which are missing")
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


def _describe(
    be: Any, data: dict[str, Any], kernels: list[Kernel], job: _Job, labels: list[str]
) -> dict[str, Any]:
    """What the results depend on, as JSON values: the manifest of a store."""

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
        "alphas": labels,
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
