"""Eight threads share spectra and paths, with the GIL or without: the bits of serial calls."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from processes import run_python

from selfdistill_fast import RBF, distill, gram, gram_matmul, leave_one_out, spectrum
from selfdistill_fast._backend.threads import one_blas_thread

THREADS = 8
#: a thread's calls; with a GIL they mostly wait for each other
CALLS = 40 if getattr(sys, "_is_gil_enabled", lambda: True)() else 200
SOLVERS = {
    "eigh": {},
    "cholesky": {"lam": 0.1},
    "tridiagonal": {},
    "krylov": {"lam": [0.1, 1.0], "n_steps": 3},
    "nystrom": {"n_landmarks": 40, "random_state": 0},
}

rng = np.random.default_rng(3)
X, Y, X_NEW = rng.standard_normal((90, 4)), rng.standard_normal((90, 2)), rng.normal(size=(60, 4))


def fit(solver):
    return spectrum(X, Y, RBF(0.2), solver=solver, fit_intercept=True, **SOLVERS[solver])


def jobs(name):
    """Functions of no argument, on a new spectrum and path that they share."""
    if name == "gram":
        many = np.tile(X, (8, 1))
        return [
            lambda: gram(X, X_NEW, RBF(0.2), n_threads=2),
            lambda: gram(many, None, RBF(0.2), n_threads=3),
            lambda: gram_matmul(X_NEW, X, Y, RBF(0.2), n_threads=2),
            lambda: gram_matmul(many, X, Y, RBF(0.2), n_threads=3),
        ]
    shared = fit(name)
    has_leave_one_out = name in ("eigh", "cholesky", "nystrom")
    path = distill(shared, 0.1, "optimal" if has_leave_one_out else 0.3, 3)
    found = [
        lambda: path.predict(X_NEW, step="all"),
        lambda: distill(shared, 0.1, 0.5, 3).predict(X_NEW),
        lambda: distill(shared, 0.1, 0.5, 3).dual_coef(step=2),
        lambda: distill(fit(name), 0.1, 0.5, 3).predict(X_NEW),
    ]
    if has_leave_one_out:
        found.append(lambda: leave_one_out(shared, 0.1, 0.5, 3))
    return found


@pytest.mark.parametrize("name", ["gram", *SOLVERS])
def test_calls_from_eight_threads_give_the_bits_of_serial_ones(name):
    """Each thread in an order of its own; the first calls race for what is made on demand."""
    with one_blas_thread(), ThreadPoolExecutor(THREADS) as pool:
        expected = [job() for job in jobs(name)]
        shared = jobs(name)

        def differing(seed):
            order = np.random.default_rng(seed).integers(len(shared), size=CALLS)
            return [int(i) for i in order if not np.array_equal(shared[i](), expected[i])]

        assert list(pool.map(differing, range(THREADS))) == [[]] * THREADS


@pytest.mark.skipif(sys.platform == "win32", reason="an open file cannot be mapped again")
@pytest.mark.parametrize("order", [1, 20, 64, 65, 66, 200])
def test_reflectors_that_threads_share_are_only_read(order):
    """In memory that cannot be written to: LAPACK's unblocked code would, and crash."""
    code = f"""
        import tempfile
        import numpy as np
        from selfdistill_fast._backend import Cpu
        cpu, rng = Cpu(), np.random.default_rng(0)
        A = rng.normal(size=({order + 1}, {order + 1}))
        d, e, (reflectors, tau) = cpu.tridiagonalise(A @ A.T)
        with tempfile.NamedTemporaryFile() as file:
            file.write(reflectors.tobytes(order="F"))
            file.flush()
            shape = reflectors.shape
            shared = np.memmap(file.name, "f8", "r", shape=shape, order="F")
            for columns in (1, 6, 90):
                B = rng.normal(size=({order + 1}, columns))
                for transpose in (False, True):
                    found = cpu.tridiagonal_rotate((shared, tau), B, transpose=transpose)
                    expected = cpu.tridiagonal_rotate((reflectors, tau), B, transpose=transpose)
                    assert np.array_equal(found, expected)
    """
    result = run_python(code)
    assert result.returncode == 0, result.stderr


@pytest.mark.skipif(not hasattr(sys, "_is_gil_enabled"), reason="this Python always has a GIL")
def test_the_import_does_not_turn_the_gil_on():
    code = """
        import sys
        import numpy, scipy.linalg, sklearn
        before = sys._is_gil_enabled()
        import selfdistill_fast._core
        assert sys._is_gil_enabled() == before, "selfdistill_fast._core turned the GIL on"
    """
    result = run_python(code, PYTHON_GIL=None)  # 0 would keep it off whatever a module says
    assert result.returncode == 0, result.stderr
    assert "selfdistill_fast" not in result.stderr
