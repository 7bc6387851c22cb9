"""A self-test of this installation: every backend's main calls against plain NumPy.

The expected results come from refits: ỹ of each step by ``numpy.linalg.solve``, and leave-one-out
by refitting without each row. Each backend runs in its own process, so that a library that is
killed by a signal is reported like any other fault.
"""

from __future__ import annotations

import functools
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

import numpy as np

__all__ = ["Check", "backends_here", "self_check"]

#: rows: more than a block of our Cholesky factorisation, several tiles of the C loops
N, D, P, STEPS, LAM, ALPHA = 600, 5, 2, 3, 0.5, 0.4
#: seconds after which a backend is taken to hang
TIMEOUT = 120


@dataclass(frozen=True)
class Check:
    """One call on one backend: its duration, and its fault or None."""

    backend: str
    call: str
    seconds: float
    fault: str | None = None


def backends_here() -> list[str]:
    """The backends to check: with the GPU if there are a driver and CuPy."""
    from selfdistill_fast._backend import cuda_libraries

    names = ["reference", "cpu"]
    if cuda_libraries.driver_version() is not None and cuda_libraries.cupy_packages():
        names.append("gpu")
    return names


def self_check(backends: Sequence[str] | None = None) -> Iterator[Check]:
    """Check the main calls of each backend; takes a second or two per backend.

    Parameters
    ----------
    backends : sequence of str, optional
        By default those of :func:`backends_here`.

    Yields
    ------
    Check
        Once its backend has finished. ``fault`` is None, or says what was wrong: a result beyond
        its tolerance, an error, a crash, or no answer.

    Examples
    --------
    >>> from selfdistill_fast._check import self_check
    >>> {check.fault for check in self_check(["reference"])}
    {None}
    """
    for name in backends_here() if backends is None else backends:
        yield from _in_a_process(name)


def _in_a_process(backend: str) -> Iterator[Check]:
    """The checks of a backend; the process prints each check's name and result, then "done"."""
    # -P: modules in the working directory must not shadow the installed package
    command = [sys.executable, "-P", "-m", "selfdistill_fast._check", backend]
    call, start, finished = "start", time.perf_counter(), False
    try:
        done = subprocess.run(command, capture_output=True, timeout=TIMEOUT, check=False)
        printed, errors, status = done.stdout, done.stderr, done.returncode
    except subprocess.TimeoutExpired as late:
        printed, errors, status = late.stdout or b"", b"", None
    for line in printed.decode(errors="replace").splitlines():
        said = json.loads(line)
        if "seconds" in said:
            yield Check(backend, **said)
        call = said.get("call", call)
        finished = "done" in said
    if finished and status == 0:
        return
    if status is None:
        fault = f"no result after {TIMEOUT} s"
    elif status < 0:
        fault = f"the process died by {_signal(-status)}"
    else:
        last = errors.decode(errors="replace").strip().splitlines()
        fault = f"the process ended with status {status}: {last[-1] if last else 'no message'}"
    yield Check(backend, call, time.perf_counter() - start, fault)


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


# ------------------------------------------------------------------ in that process
def _main(backend: str) -> None:
    """Send answers to the current standard output, and anything libraries print to stderr."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)
        _run(backend, answers)


def _run(backend: str, answers: TextIO) -> None:
    def say(**what: Any) -> None:
        print(json.dumps(what), file=answers, flush=True)

    for call, job in _jobs(backend):
        say(call=call)
        start, fault = time.perf_counter(), None
        try:
            job()
        except Exception as error:
            fault = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        say(call=call, seconds=time.perf_counter() - start, fault=fault)
        if call == "load" and fault is not None:
            break
    say(done=True)


def _jobs(backend: str) -> Iterator[tuple[str, Callable[[], None]]]:
    """Names of calls, and functions that raise if the call's result is wrong."""
    import selfdistill_fast as sf
    from selfdistill_fast._backend import get_backend

    yield "load", lambda: get_backend(backend).asarray(np.zeros(1), "zeros")

    rng = np.random.default_rng(0)
    X, X_new = rng.normal(size=(N, D)), rng.normal(size=(N // 2, D))
    Y = np.sin(X @ rng.normal(size=(D, P))) + 0.1 * rng.normal(size=(N, P))
    squares = ((X_new[:, None] - X) ** 2).sum(-1)
    inner = X_new @ X.T
    formulas = {
        sf.RBF(0.1): np.exp(-0.1 * squares),
        sf.Laplacian(0.1): np.exp(-0.1 * np.abs(X_new[:, None] - X).sum(-1)),
        sf.Matern(2.0, nu=1.5): (1 + np.sqrt(3 * squares) / 2) * np.exp(-np.sqrt(3 * squares) / 2),
        sf.Polynomial(3, 0.1, 1.0): (0.1 * inner + 1) ** 3,
    }

    def gram(kernel: Any, K: np.ndarray) -> None:
        for dtype, tol in (("f8", 1e-13), ("f4", 1e-5)):
            result = sf.gram(X_new.astype(dtype), X.astype(dtype), kernel, backend=backend)
            _agree(result, K, tol)
        alone = sf.gram(X, None, kernel, backend=backend, n_threads=1)
        _agree(alone, alone.T, 0.0)
        # our own loops give the same bits for any number of threads
        tol = 1e-13 if backend == "reference" else 0.0
        _agree(sf.gram(X, None, kernel, backend=backend), alone, tol)

    for kernel, K in formulas.items():
        yield f"gram {type(kernel).__name__}", functools.partial(gram, kernel, K)

    rbf = sf.RBF(0.1)
    yield (
        "gram_matmul",
        lambda: _agree(sf.gram_matmul(X_new, X, Y, rbf, backend=backend), formulas[rbf] @ Y, 1e-11),
    )

    def path(kernel: Any, solver: Any, allowed: float, **options: Any) -> None:
        spectrum = sf.spectrum(X, Y, kernel, solver=solver, backend=backend, **options)
        result = sf.distill(spectrum, LAM, ALPHA, STEPS).predict(X_new, step="all")
        K_new = inner if isinstance(kernel, sf.Linear) else formulas[kernel]
        _agree(result, _refits(_plain(X, kernel), Y, K_new), allowed)
        if spectrum.exact and spectrum.max_loo_steps >= STEPS:
            held_out = sf.leave_one_out(spectrum, LAM, ALPHA, STEPS)
            for i in (0, N // 2):
                rest = np.arange(N) != i
                K = _plain(X, kernel)
                expected = _refits(K[np.ix_(rest, rest)], Y[rest], K[i : i + 1, rest])
                _agree(held_out[:, i], expected[:, 0], allowed)

    yield "solver eigh, leave_one_out", lambda: path(rbf, "eigh", 1e-9)
    yield "solver cholesky, leave_one_out", lambda: path(rbf, "cholesky", 1e-9, lam=LAM)
    yield "solver tridiagonal", lambda: path(rbf, "tridiagonal", 1e-9)
    yield (
        "solver krylov",
        lambda: path(rbf, "krylov", 1e-5, lam=LAM, n_steps=STEPS, tol=1e-8),
    )
    # K has rank D: with as many landmarks the model is the exact one
    yield (
        "solver nystrom",
        lambda: path(sf.Linear(), "nystrom", 1e-8, n_landmarks=20, random_state=0),
    )


def _plain(X: np.ndarray, kernel: Any) -> np.ndarray:
    """K(X, X) of the two kernels that are fitted, by their formulas."""
    inner = X @ X.T
    if type(kernel).__name__ == "Linear":
        return inner
    squares = np.diag(inner)
    return np.exp(-kernel.gamma * np.maximum(squares[:, None] + squares - 2 * inner, 0))


def _refits(K: np.ndarray, Y: np.ndarray, K_new: np.ndarray) -> np.ndarray:
    """Predictions of every step, (STEPS, rows of K_new, P), one fit after another."""
    ridge = K + LAM * np.eye(len(K))
    targets, result = Y, []
    for _ in range(STEPS):
        dual = np.linalg.solve(ridge, targets)
        result.append(K_new @ dual)
        targets = ALPHA * Y + (1 - ALPHA) * (K @ dual)
    return np.stack(result)


def _agree(result: Any, expected: np.ndarray, tol: float) -> None:
    result = np.asarray(result, dtype=np.float64)
    if result.shape != expected.shape:
        raise AssertionError(f"shape {result.shape}, expected {expected.shape}")
    off = float(np.max(np.abs(result - expected)) / np.max(np.abs(expected)))
    if math.isnan(off) or off > tol:
        raise AssertionError(f"wrong by {off:.1e} of the largest value; {tol:.0e} is allowed")


if __name__ == "__main__":
    _main(sys.argv[1])
