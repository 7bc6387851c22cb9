"""What each solver would cost (bytes, flops, passes over K, seconds), and which one to use.

Each solver computes its own cost (leading terms in the number of rows n) from rates of this
machine, see rates.py. This module compares the costs.
"""

from __future__ import annotations

import math
import numbers
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from selfdistill_fast._backend import get_backend, try_gpu
from selfdistill_fast._html import table
from selfdistill_fast._names import KernelLike, Numbers
from selfdistill_fast._solvers.base import Spectrum
from selfdistill_fast._solvers.cholesky import MAX_LOO_STEPS
from selfdistill_fast._solvers.problem import Problem, Rates
from selfdistill_fast._solvers.rates import NOMINAL, calibrated
from selfdistill_fast._solvers.solvers import SOLVERS
from selfdistill_fast._validation import check_lam, check_n_steps, check_tol
from selfdistill_fast.kernels import RBF, as_kernel

__all__ = ["Cost", "Plan", "choose", "memory_budget", "plan"]

#: up to this many rows the choice uses NOMINAL rates and never a solver with a tolerance, since
#: every solver is fast there
SMALL = 2000
#: seconds on the CPU below which a problem stays there: starting a device takes as long
WORTH_MOVING = 0.5
#: a solver whose cost is only an estimate must be cheaper by this factor
PROMISE = 0.7


@dataclass(frozen=True)
class Cost:
    """What one solver would cost.

    Attributes
    ----------
    solver : str
    bytes : int
        Peak memory, including the stored copy of the rows.
    flops : float
    passes : int
        Number of passes over K (nystrom: over the rows).
    seconds : float
    exact, leave_one_out, fits : bool
        Whether it is exact to its tolerance; whether it has leave-one-out; whether it fits in
        memory.
    excluded : str
        Why "auto" does not choose it, or "".
    note : str
    """

    solver: str
    bytes: int
    flops: float
    passes: int
    seconds: float
    exact: bool
    leave_one_out: bool
    fits: bool
    excluded: str
    note: str = ""


@dataclass(frozen=True)
class Plan:
    """The costs of all solvers, and the choice; printed as a table.

    Attributes
    ----------
    costs : tuple of Cost
    solver : str or None
        What ``solver="auto"`` uses; None if no exact solver fits.
    reason : str
    max_memory : int
        The budget in bytes.
    """

    costs: tuple[Cost, ...]
    solver: str | None
    reason: str
    max_memory: int
    problem: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, solver: str) -> Cost:
        """The cost of one solver; KeyError if there is none of that name."""
        for cost in self.costs:
            if cost.solver == solver:
                return cost
        raise KeyError(solver)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Plan:
        """The plan that :meth:`to_dict` described."""
        return cls(**{**values, "costs": tuple(Cost(**cost) for cost in values["costs"])})

    def _repr_html_(self) -> str:
        rows = [
            (c.solver, _size(c.bytes), f"{c.flops:.1e}", c.passes, _duration(c.seconds),
             self._remark(c))
            for c in self.costs
        ]  # fmt: skip
        chosen = [c.solver for c in self.costs].index(self.solver) if self.solver else None
        head = ("solver", "memory", "flops", "passes", "time", "remark")
        return table(f"Plan: {self.solver or self.reason}", head, rows, bold=chosen)

    def _remark(self, cost: Cost) -> str:
        texts = (self.reason if cost.solver == self.solver else cost.excluded, cost.note)
        return "; ".join(text for text in texts if text)

    def __str__(self) -> str:
        lines = [f"{'solver':<12}{'memory':>11}{'flops':>10}{'passes':>8}{'time':>10}  remark"]
        for cost in self.costs:
            mark = ("<- " if cost.solver == self.solver else "") + self._remark(cost)
            lines.append(
                f"{cost.solver:<12}{_size(cost.bytes):>11}{cost.flops:>10.1e}{cost.passes:>8}"
                f"{_duration(cost.seconds):>10}  {mark}"
            )
        if self.solver is None:
            lines.append(self.reason)
        return "\n".join(lines)


def plan(
    n: int,
    d: int,
    p: int = 1,
    *,
    lam: Numbers | None = None,
    leave_one_out: bool = False,
    dtype: Any = "float64",
    backend: Any = None,
    max_memory: float | None = None,
    kernel: KernelLike = RBF(1.0),  # noqa: B008 - kernels are immutable
    n_steps: int = MAX_LOO_STEPS,
    tol: float | None = None,
    n_landmarks: int = 1000,
) -> Plan:
    """What each solver would cost for n rows of d columns and p targets, and the choice.

    Parameters
    ----------
    n, d, p : int
        Rows, columns and targets.
    lam : float or sequence, optional
        The λ values: a scalar for one, a sequence for a grid. None: not known yet.
    leave_one_out : bool
        Whether leave-one-out will be requested.
    dtype : {"float64", "float32"}
    backend : optional
        As in :func:`~selfdistill_fast.gram`. With "auto", the reason also says why the GPU or
        the CPU was chosen.
    max_memory : int, optional
        Bytes; default: 80 % of the available memory.
    kernel : Kernel
    n_steps : int
        Number of steps that will be requested.
    tol : float, optional
        Tolerance of "krylov".
    n_landmarks : int
        Landmarks of "nystrom".

    Returns
    -------
    Plan
        With ``.solver``, ``.reason``, ``.costs`` and ``plan["eigh"].bytes``, ``.seconds``, …

    Raises
    ------
    TypeError, ValueError
        Sizes that are not positive integers, a bad λ or dtype.

    Examples
    --------
    >>> from selfdistill_fast import plan
    >>> p = plan(20_000, 8, lam=[0.01, 0.1, 1.0], max_memory=2**33)
    >>> p.solver, p["eigh"].fits
    ('krylov', False)
    """
    be = get_backend(backend)
    n, d, p = (check_n_steps(v, name) for v, name in ((n, "n"), (d, "d"), (p, "p")))
    dtype = np.dtype(dtype)
    if dtype not in (np.float32, np.float64):
        raise ValueError(f"dtype must be float32 or float64, got {dtype}")
    problem = Problem(
        be,
        n,
        d,
        p,
        dtype,
        as_kernel(kernel, d),
        lam=None if lam is None else check_lam(lam, batch=True),
        leave_one_out=bool(leave_one_out),
        budget=memory_budget(be, max_memory),
        n_steps=n_steps,
        tol=tol,
        n_landmarks=check_n_steps(n_landmarks, "n_landmarks"),
    )
    where = ""
    if isinstance(backend, str) and backend == "auto":
        gpu, where = where_it_pays(problem, "auto")
        if gpu is not None:
            problem = replace(problem, backend=gpu, budget=memory_budget(gpu, max_memory))
    chosen = choose(problem, rates=calibrated(problem.backend, dtype))
    return replace(chosen, reason=f"{chosen.reason}; {where}") if where else chosen


def where_it_pays(problem: Problem, solver: str) -> tuple[Any, str]:
    """A GPU if a problem on the host should move to it, else None; and the reason.

    Compares the seconds of the solver that each would use, the time to move rows and targets
    to the device and dual coefficients back, and the memory of both.
    """
    cpu, n, dtype = problem.backend, problem.n, problem.dtype
    gpu = try_gpu(cpu.n_threads)
    if gpu is None:
        return None, "on the CPU: there is no usable GPU"
    if not problem.kernel.pair:
        return None, "on the CPU: the kernel is a matrix, or the caller's own function, on the host"
    costs = []
    for there in (problem, replace(problem, backend=gpu, budget=memory_budget(gpu, None))):
        be = there.backend
        rates = NOMINAL if be is cpu and n <= SMALL else calibrated(be, dtype)
        plan_ = choose(there, rates=rates)
        name = plan_.solver if solver == "auto" else solver
        cost = None if name is None else plan_[name]
        costs.append(cost if cost is not None and cost.fits else None)
        if be is cpu and cost is not None and cost.fits and cost.seconds < WORTH_MOVING:
            return None, f"on the CPU: {_duration(cost.seconds)} is not worth moving"
    there_bytes = (n * problem.d + n * problem.p) * dtype.itemsize
    back_bytes = 16 * n * problem.p * dtype.itemsize
    moving = gpu.transfer_seconds(there_bytes + back_bytes)
    here, away = costs
    if away is None:
        return (
            None,
            f"on the CPU: it does not fit in the {_size(gpu.available_memory())} of the GPU",
        )
    total = _duration(away.seconds + moving)
    if here is None:
        return gpu, f"on the GPU, {total} with {away.solver!r}: it does not fit in host memory"
    reason = (
        f"{total} on the GPU ({_duration(moving)} of it moving data), {_duration(here.seconds)}"
    )
    if away.seconds + moving < PROMISE * here.seconds:
        return gpu, f"on the GPU: {reason} on the CPU"
    return None, f"on the CPU: {reason} here"


def choose(problem: Problem, *, rates: Rates | None = None) -> Plan:
    """:func:`plan` for a checked problem.

    If it is not known whether leave-one-out is needed, only solvers that have it are considered,
    unless none of them fits. Below ``SMALL`` rows the choice uses nominal rates, so that it is
    reproducible and costs nothing.
    """
    check_n_steps(problem.n_steps)
    if problem.tol is not None:
        check_tol(problem.tol)
    be, dtype, small = problem.backend, problem.dtype, problem.n <= SMALL
    if rates is None:
        rates = NOMINAL if small else calibrated(be, dtype)
    costs = tuple(_cost(solver, problem, rates) for solver in SOLVERS)
    candidates = [cost for cost in costs if not cost.excluded]
    approximations = [cost for cost in costs if not cost.exact]
    reason = "the cheapest exact solver that fits"
    if problem.leave_one_out is None:
        able = [cost for cost in candidates if cost.leave_one_out]
        if able or not candidates:
            candidates = able
        else:
            names = " or ".join(f"solver={cost.solver!r}" for cost in approximations)
            reason = (
                "no solver with leave-one-out fits; this one has none, so choose on X_val, y_val, "
                f"or use {names}, an approximation"
            )
    weight = {
        solver.name: solver.cost(problem, NOMINAL if small else rates).seconds
        / (PROMISE if solver.guessed else 1.0)
        for solver in SOLVERS
    }
    best = min(candidates, key=lambda cost: weight[cost.solver], default=None)
    if best is None:
        smallest = min(approximations, key=lambda cost: cost.bytes)
        reason = (
            f"no exact solver{' with leave-one-out' if problem.leave_one_out else ''} fits in "
            f"{_size(problem.budget)}; solver={smallest.solver!r}, an approximation, would need "
            f"{_size(smallest.bytes)}" + (" (fewer landmarks: less)" if not smallest.fits else "")
        )
    about = {
        "n": problem.n,
        "d": problem.d,
        "p": problem.p,
        "dtype": dtype.name,
        "lam": None if problem.lam is None else np.asarray(problem.lam).tolist(),
        "leave_one_out": problem.leave_one_out,
        "backend": be.name,
    }
    return Plan(costs, best.solver if best else None, reason, problem.budget, about)


def _cost(solver: type[Spectrum], problem: Problem, rates: Rates) -> Cost:
    """The cost of one solver, and the reason if it must not be chosen."""
    work = solver.cost(problem, rates)
    fits = work.bytes <= problem.budget
    leave_one_out = problem.n_steps <= solver.max_loo_steps
    excluded = solver.serves(problem) or ""
    if not fits:
        excluded = f"needs more than the {_size(problem.budget)} allowed"
    elif not excluded and solver.guessed and problem.n <= SMALL:
        excluded = "too few rows to benefit"
    elif not excluded and problem.leave_one_out and not leave_one_out:
        excluded = "has no leave-one-out"
    elif not excluded and not solver.exact:
        excluded = "an approximation: request it by name"
    return Cost(
        solver.name,
        work.bytes,
        work.flops,
        work.passes,
        work.seconds,
        exact=solver.exact,
        leave_one_out=leave_one_out,
        fits=fits,
        excluded=excluded,
        note=work.note,
    )


def memory_budget(be: Any, max_memory: Any) -> int:
    """Bytes that a factorisation may use: ``max_memory``, else 80 % of the available memory."""
    if max_memory is None:
        return int(0.8 * be.available_memory())
    if (
        isinstance(max_memory, bool)
        or not isinstance(max_memory, numbers.Real)
        or not 0 < float(max_memory) < math.inf
    ):
        raise ValueError(f"max_memory must be a positive number of bytes, got {max_memory!r}")
    return int(float(max_memory))


def _size(number: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.3g} {unit}"
        number /= 1024
    return f"{number:.3g} TiB"


def _duration(seconds: float) -> str:
    if seconds < 1e-6:
        return "< 1 µs"
    for unit, length in (("d", 86400.0), ("h", 3600.0), ("min", 60.0), ("s", 1.0)):
        if seconds >= length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds * 1e3:.3g} ms"
