"""What each solver would take: bytes, flops, passes over K, seconds; and which to use.

The counts are leading terms in the number of rows n, for K of order n:

    eigh         9 n³ flops, K and V in full                    every λ, leave-one-out
    cholesky     n³/3 flops (4 n³ with leave-one-out), one n²    one λ, leave-one-out
    tridiagonal  4/3 n³ flops, K and its reflectors              every λ
    krylov       2 n² r flops in r/4 passes over half of K       every λ >= λ_min
    nystrom      n m² flops in one pass over rows                an approximation

Seconds follow from rates of this machine: of a matrix product, a Cholesky factor, an
eigendecomposition, a tridiagonal reduction, the kernel, and reading memory, measured once per
process in less than a second. The rank r of a Krylov space depends on the data; it is assumed
to be 22 (n/λ)^¼ for eight digits, and in proportion for others: a fit to smooth kernels of a
few columns, in blocks of four vectors.
"""

from __future__ import annotations

import math
import numbers
import time
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from selfdistill_fast.backend import get_backend, try_gpu
from selfdistill_fast.kernels import RBF, Kernel, as_kernel
from selfdistill_fast.spectrum.base import check_lam, check_n_steps
from selfdistill_fast.spectrum.cholesky import MAX_LOO_STEPS
from selfdistill_fast.spectrum.krylov import MAX_RANK, WIDTH, check_tol, krylov_bytes
from selfdistill_fast.spectrum.nystrom import nystrom_bytes

__all__ = ["Cost", "Plan", "choose", "memory_budget", "plan"]

#: rows up to which the choice is made with NOMINAL rates, and never for a tolerance: nothing
#: there takes long
SMALL = 2000
#: seconds on the CPU below which a problem stays there: a device takes as long to wake up
WORTH_MOVING = 0.5
#: a Krylov run, whose length is only guessed, must promise to be this much cheaper
PROMISE = 0.7


@dataclass(frozen=True)
class Rates:
    """Seconds for one unit of each kind of work."""

    gemm: float  #: per flop of a matrix product
    cholesky: float  #: per flop of a factor, counted as n³/3
    eigh: float  #: per flop, counted as 9 n³
    tridiagonal: float  #: per flop, counted as 4/3 n³
    byte: float  #: per byte read from memory
    pair: float  #: per entry of K, whatever the columns
    column: float  #: per entry of K and column of X


#: of one core of a server of the 2020s, in double; only ratios matter
NOMINAL = Rates(3e-11, 4e-11, 9e-11, 1.2e-10, 5e-11, 1e-9, 6e-11)


@dataclass(frozen=True)
class Cost:
    """What one solver would take.

    Attributes
    ----------
    solver : str
    bytes : int
        Peak memory, the rows' own copy included.
    flops : float
    passes : int
        Times that K (nystrom: the rows) is gone through.
    seconds : float
    exact, leave_one_out, fits : bool
        To its tolerance; whether it has leave-one-out; whether the memory suffices.
    excluded : str
        Why it is not to be used, or "".
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
        What ``solver="auto"`` takes; None where nothing exact fits.
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
        """The cost of one solver; KeyError where there is none of that name."""
        for cost in self.costs:
            if cost.solver == solver:
                return cost
        raise KeyError(solver)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Plan:
        """What :meth:`to_dict` described."""
        return cls(**{**values, "costs": tuple(Cost(**cost) for cost in values["costs"])})

    def __str__(self) -> str:
        lines = [f"{'solver':<12}{'memory':>11}{'flops':>10}{'passes':>8}{'time':>10}  remark"]
        for cost in self.costs:
            mark = f"<- {self.reason}" if cost.solver == self.solver else cost.excluded
            mark = "; ".join(text for text in (mark, cost.note) if text)
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
    lam: Any = None,
    leave_one_out: bool = False,
    dtype: Any = "float64",
    backend: Any = None,
    max_memory: float | None = None,
    kernel: Any = RBF(1.0),  # noqa: B008 - kernels are immutable
    n_steps: int = MAX_LOO_STEPS,
    tol: float | None = None,
    n_landmarks: int = 1000,
) -> Plan:
    """What each solver would take for n rows of d columns and p targets, and the choice.

    Parameters
    ----------
    n, d, p : int
        Rows, columns and targets.
    lam : float or sequence, optional
        The ridges: a scalar for one, a sequence for a grid. None: any, not known yet.
    leave_one_out : bool
        Whether leave-one-out will be asked for.
    dtype : {"float64", "float32"}
    backend : optional
        As in :func:`~selfdistill_fast.gram`; with "auto" the reason says why the GPU or the CPU.
    max_memory : int, optional
        Bytes; default 80 % of what is available.
    kernel : Kernel
    n_steps : int
        Steps that will be asked for.
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
    where = ""
    n, d, p = (check_n_steps(v, name) for v, name in ((n, "n"), (d, "d"), (p, "p")))
    n_landmarks, kernel = check_n_steps(n_landmarks, "n_landmarks"), as_kernel(kernel)
    dtype = np.dtype(dtype)
    if dtype not in (np.float32, np.float64):
        raise ValueError(f"dtype must be float32 or float64, got {dtype}")
    lam = None if lam is None else check_lam(lam, batch=True)
    if isinstance(backend, str) and backend == "auto":
        gpu, where = where_it_pays(
            be, n, d, p, dtype, kernel, solver="auto", lam=lam, leave_one_out=bool(leave_one_out),
            max_memory=max_memory,
        )  # fmt: skip
        be = gpu or be
    budget = memory_budget(be, max_memory)
    chosen = choose(
        be,
        n,
        d,
        p,
        dtype,
        kernel,
        lam=lam,
        leave_one_out=bool(leave_one_out),
        budget=budget,
        n_steps=n_steps,
        tol=tol,
        n_landmarks=n_landmarks,
        rates=_calibrated(be, dtype),
    )
    return replace(chosen, reason=f"{chosen.reason}; {where}") if where else chosen


def where_it_pays(
    cpu: Any,
    n: int,
    d: int,
    p: int,
    dtype: Any,
    kernel: Kernel,
    *,
    solver: str,
    lam: Any,
    leave_one_out: bool | None,
    max_memory: Any,
) -> tuple[Any, str]:
    """A GPU where a problem on the host is to be moved there, else None; and why.

    The seconds of the solver that each would use, of moving the rows and the targets there and
    duals back, and the memory of both are compared.
    """
    gpu = try_gpu(cpu.n_threads)
    if gpu is None:
        return None, "on the CPU: there is no GPU that can be used"
    if not kernel.pair:
        return None, "on the CPU: the kernel is a matrix, or the caller's own function, on the host"
    costs = []
    for be in (cpu, gpu):
        rates = NOMINAL if be is cpu and n <= SMALL else None
        budget = memory_budget(be, None if max_memory is None or be is gpu else max_memory)
        plan_ = choose(
            be, n, d, p, dtype, kernel, lam=lam, leave_one_out=leave_one_out, budget=budget,
            rates=rates or _calibrated(be, np.dtype(dtype)),
        )  # fmt: skip
        name = plan_.solver if solver == "auto" else solver
        cost = None if name is None else plan_[name]
        costs.append(cost if cost is not None and cost.fits else None)
        if be is cpu and cost is not None and cost.fits and cost.seconds < WORTH_MOVING:
            return None, f"on the CPU: {_duration(cost.seconds)} are not worth moving"
    there, back = (n * d + n * p) * np.dtype(dtype).itemsize, 16 * n * p * np.dtype(dtype).itemsize
    moving = gpu.transfer_seconds(there + back)
    here, away = costs
    if away is None:
        return None, f"on the CPU: it does not fit the {_size(gpu.available_memory())} of the GPU"
    total = _duration(away.seconds + moving)
    if here is None:
        return gpu, f"on the GPU, {total} with {away.solver!r}: it does not fit the host's memory"
    reason = (
        f"{total} on the GPU ({_duration(moving)} of it moving data), {_duration(here.seconds)}"
    )
    if away.seconds + moving < PROMISE * here.seconds:
        return gpu, f"on the GPU: {reason} on the CPU"
    return None, f"on the CPU: {reason} here"


def choose(
    be: Any,
    n: int,
    d: int,
    p: int,
    dtype: Any,
    kernel: Kernel,
    *,
    lam: Any,
    leave_one_out: bool | None,
    budget: int,
    n_steps: int = MAX_LOO_STEPS,
    tol: float | None = None,
    n_landmarks: int = 1000,
    rates: Rates | None = None,
) -> Plan:
    """:func:`plan` for checked sizes, λ and kernel.

    ``leave_one_out`` None: not known. Then only solvers that have it are taken, unless none of
    them fits. Below ``SMALL`` rows the choice is made with nominal rates, so that it is always
    the same and costs nothing.
    """
    n_steps, tol = check_n_steps(n_steps), None if tol is None else check_tol(tol)
    if rates is None:
        rates = NOMINAL if n <= SMALL else _calibrated(be, np.dtype(dtype))
    problem_of = (be, n, d, p, np.dtype(dtype), lam, leave_one_out, n_steps, tol, n_landmarks)
    counted = _costs(*problem_of, rates, budget)
    judged = counted if n > SMALL else _costs(*problem_of, NOMINAL, budget)
    weight = {
        cost["solver"]: cost["seconds"] / (PROMISE if cost["solver"] == "krylov" else 1.0)
        for cost in judged
    }
    costs = []
    for cost in counted:
        fits = cost["bytes"] <= budget
        excluded = cost.pop("excluded")
        if not excluded and cost["solver"] == "cholesky" and not kernel.definite:
            excluded = "cannot see a negative eigenvalue above -lam"
        if not excluded and leave_one_out and not cost["leave_one_out"]:
            excluded = "has no leave-one-out"
        if not excluded and not cost["exact"]:
            excluded = "an approximation: ask for it by name"
        if not fits:
            excluded = f"needs more than the {_size(budget)} allowed"
        costs.append(Cost(**cost, fits=fits, excluded=excluded))
    candidates = [cost for cost in costs if not cost.excluded]
    reason = "the cheapest exact solver that fits"
    if leave_one_out is None:
        able = [cost for cost in candidates if cost.leave_one_out]
        if able or not candidates:
            candidates = able
        else:
            reason = (
                "nothing with leave-one-out fits; this has none, so choose on X_val, y_val, or "
                "use solver='nystrom', an approximation"
            )
    best = min(candidates, key=lambda cost: weight[cost.solver], default=None)
    if best is None:
        smallest = min((c for c in costs if c.solver == "nystrom"), key=lambda c: c.bytes)
        reason = (
            f"no exact solver{' with leave-one-out' if leave_one_out else ''} fits in "
            f"{_size(budget)}; solver='nystrom', an approximation, would take "
            f"{_size(smallest.bytes)}" + (" (fewer landmarks: less)" if not smallest.fits else "")
        )
    problem = {
        "n": n,
        "d": d,
        "p": p,
        "dtype": np.dtype(dtype).name,
        "lam": None if lam is None else np.asarray(lam).tolist(),
        "leave_one_out": leave_one_out,
        "backend": be.name,
    }
    return Plan(tuple(costs), best.solver if best else None, reason, budget, problem)


def krylov_rank(n: int, lam: float, tol: float) -> int:
    """Vectors that a Krylov run is expected to take; see the head of this module."""
    digits = -math.log10(tol) / 8.0
    return max(1, min(n, math.ceil(22.0 * max(n**0.25 / lam**0.25, 1.0) * max(digits, 0.25))))


def _costs(
    be: Any,
    n: int,
    d: int,
    p: int,
    dtype: Any,
    lam: Any,
    leave_one_out: bool | None,
    n_steps: int,
    tol: float | None,
    n_landmarks: int,
    rates: Rates,
    budget: int,
) -> list[dict[str, Any]]:
    size = dtype.itemsize
    rows = 3 * n * d * size + 16 * n * p  # the copy that is kept, and packed rows
    entry = rates.pair + d * rates.column
    matrix = n * n * entry
    n_lams = 1 if lam is None or not lam.ndim else len(lam)
    columns = n_lams * n_steps * p
    finish = 2.0 * n * n * columns * rates.gemm
    held_out = 2.0 * n * n * n_lams * n_steps * (1 + p) * rates.gemm if leave_one_out else 0.0
    one = lam is not None and not lam.ndim
    n3 = float(n) ** 3
    result = [
        {
            "solver": "eigh",
            "bytes": be.eigh_bytes(n, dtype) + rows,
            "flops": 9.0 * n3,
            "passes": 1,
            "seconds": matrix + 9.0 * n3 * rates.eigh + finish + held_out,
            "exact": True,
            "leave_one_out": True,
            "excluded": "",
        }
    ]
    flops = n3 * (
        4.0 if leave_one_out and n_steps > 2 else 4.0 / 3.0 if leave_one_out else 1.0 / 3.0
    )
    result.append(
        {
            "solver": "cholesky",
            "bytes": be.cholesky_bytes(n, dtype) + rows,
            "flops": flops,
            "passes": 1,
            "seconds": matrix
            + n3 / 3.0 * rates.cholesky
            + (flops - n3 / 3.0) * rates.gemm
            + 4.0 * n * n * n_steps * p * rates.gemm,
            "exact": True,
            "leave_one_out": n_steps <= MAX_LOO_STEPS,
            "excluded": "" if one else "serves one lam",
        }
    )
    result.append(
        {
            "solver": "tridiagonal",
            "bytes": be.tridiagonal_bytes(n, dtype) + rows,
            "flops": 4.0 / 3.0 * n3,
            "passes": 1,
            "seconds": matrix + 4.0 / 3.0 * n3 * rates.tridiagonal + finish,
            "exact": True,
            "leave_one_out": False,
            "excluded": "",
        }
    )
    smallest = 1e-2 if lam is None else float(np.min(lam))
    tol = (1e-3 if size == 4 else 1e-8) if tol is None else tol
    width = max(p, WIDTH)
    rank = min(krylov_rank(n, smallest, tol) * max(1, round((width / WIDTH) ** 0.5)), n)
    # a run may have MAX_RANK vectors where they fit, and needs room for half more than expected
    storage, most = "none", min(n, MAX_RANK)
    for storage in (dtype.name, "none"):
        needed = krylov_bytes(be, n, d, p, dtype, min(n, 3 * rank // 2 + 1), storage, n_steps)
        if needed <= budget:
            needed = max(
                needed, min(krylov_bytes(be, n, d, p, dtype, most, storage, n_steps), budget)
            )
            break
    kept = storage != "none"
    passes = rank / width + 2.0 * n_steps * p / width
    one_pass = be.half_bytes(n, dtype) * rates.byte if kept else 0.5 * n * n * entry
    result.append(
        {
            "solver": "krylov",
            "bytes": needed,
            "flops": 2.0 * n * n * rank + 4.0 * n * rank**2,
            "passes": math.ceil(passes),
            "seconds": (0.5 * matrix if kept else 0.0)
            + passes * (one_pass + 2.0 * n * n * width * rates.gemm)
            + 16.0 * n * rank**2 * rates.byte
            + 2.0 * n * rank * columns * rates.gemm,
            "exact": True,
            "leave_one_out": False,
            "excluded": "needs lam (or lam_min)"
            if lam is None
            else "too few rows to gain by it"
            if n <= SMALL
            else "",
            "note": "" if kept else "K is not stored",
        }
    )
    m = min(n_landmarks, n)
    result.append(
        {
            "solver": "nystrom",
            "bytes": nystrom_bytes(be, n, d, p, m, dtype),
            "flops": 3.0 * n * m * m + 9.0 * float(m) ** 3,  # a third of it for the landmarks
            "passes": 1,
            "seconds": 2.0 * n * m * entry
            + 3.0 * n * m * m * rates.gemm
            + 9.0 * float(m) ** 3 * rates.eigh,
            "exact": False,
            "leave_one_out": True,
            "excluded": "",
        }
    )
    return result


def memory_budget(be: Any, max_memory: Any) -> int:
    """Bytes that a factorisation may take: as asked, else 80 % of what is available."""
    if max_memory is None:
        return int(0.8 * be.available_memory())
    if (
        isinstance(max_memory, bool)
        or not isinstance(max_memory, numbers.Real)
        or not 0 < float(max_memory) < math.inf
    ):
        raise ValueError(f"max_memory must be a positive number of bytes, got {max_memory!r}")
    return int(float(max_memory))


def _calibrated(be: Any, dtype: np.dtype) -> Rates:
    """Rates of this machine, measured when they are first asked for, in under a second."""
    key = (be.name, be.n_threads, dtype.name)
    if key not in _rates:
        _rates[key] = _measured(be, dtype)
    return _rates[key]


_rates: dict[tuple[str, int | None, str], Rates] = {}


def _measured(be: Any, dtype: np.dtype) -> Rates:
    """The best of three of each kind of work, or what the backend knows of its device."""
    known = be.rates(dtype)
    if known is not None:
        return Rates(**known)
    xp = be.xp
    random = np.random.default_rng(0)

    def rate(work: float, function: Any, *prepare: Any) -> float:
        best = math.inf
        for _ in range(3):
            arguments = [make() for make in prepare]
            start = time.perf_counter()
            be.to_numpy(function(*arguments))  # a device is waited for
            best = min(best, time.perf_counter() - start)
        return best / work

    n = 768
    A = xp.asarray(random.normal(size=(n, n)).astype(dtype))
    K = A @ A.T + n * xp.eye(n, dtype=dtype)
    n3 = float(n) ** 3
    gemm = rate(2.0 * n3, lambda: A @ A)
    cholesky = rate(n3 / 3.0, be.cholesky, K.copy)
    eigh = rate(9.0 * n3, lambda K: be.eigh(K)[0], K.copy)
    tridiagonal = rate(4.0 / 3.0 * n3, lambda K: be.tridiagonalise(K)[0], K.copy)
    rows = 1500
    times = []
    for d in (4, 68):
        X = xp.asarray(random.normal(size=(rows, d)).astype(dtype))
        times.append(
            rate(float(rows) ** 2, lambda X: be.gram(X, None, RBF(0.1))[:1], lambda X=X: X)
        )
    column = max(times[1] - times[0], 0.0) / 64.0
    memory = xp.zeros(1 << 23)  # 64 MiB
    byte = rate(2.0 * memory.nbytes, lambda: memory.copy()[:1])
    return Rates(gemm, cholesky, eigh, tridiagonal, byte, max(times[0] - 4 * column, 1e-12), column)


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
