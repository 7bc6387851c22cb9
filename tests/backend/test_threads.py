"""Threads, forks and Ctrl-C: the same bits for any number of threads, and no call that hangs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import cases
import numpy as np
import pytest
from cases import points
from processes import run_python

from selfdistill_fast._backend import get_backend, threads
from selfdistill_fast._backend.reference import Reference
from selfdistill_fast.kernels import (
    NTK,
    RBF,
    Laplacian,
    Polynomial,
)

REFERENCE = Reference()
KERNELS = [*cases.KERNELS, Polynomial(8, 0.4, -0.3)]
UNIT = [k for k in KERNELS if k.unit_diagonal]
SIZES = (0, *cases.SIZES)


@pytest.mark.parametrize("kernel", [RBF(0.5), Laplacian(0.5), NTK(2)], ids=repr)
@pytest.mark.parametrize("d", [5, 40])
def test_same_bits_for_any_number_of_threads(kernel, d, rng, monkeypatch):
    monkeypatch.setattr(threads, "GRAIN_NS", 0)
    monkeypatch.setattr(threads, "BLOCK_NS", (20_000, 20_000))
    X, Z, W = points(rng, 900, d), points(rng, 500, d), rng.normal(size=(900, 3))
    results = []
    for n_threads in (1, 2, 3, 8):
        cpu = get_backend(n_threads=n_threads)
        results.append(
            (
                cpu.gram(X, None, kernel),
                cpu.gram(X, Z, kernel),
                cpu.gram_matmul(X, None, W, kernel),
                cpu.gram_matmul(X, Z, W[:500], kernel),
                cpu.shrinkage_path(X[:, 0] ** 2, np.geomspace(1e-3, 1, 7), np.full(9, 0.3)),
                cpu.project_out([X.T.copy()], left := W.T.copy()),
                left,
            )
        )
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_calls_from_eight_threads_at_once(rng, monkeypatch):
    monkeypatch.setattr(threads, "GRAIN_NS", 0)
    monkeypatch.setattr(threads, "BLOCK_NS", (50_000, 50_000))
    X, W = points(rng, 700, 6), rng.normal(size=(700, 2))
    cpu = get_backend(n_threads=4)
    K, KW = cpu.gram(X, None, RBF(1.0)), cpu.gram_matmul(X, None, W, RBF(1.0))
    barrier = threading.Barrier(8)

    def work(_):
        barrier.wait()
        return [
            (cpu.gram(X, None, RBF(1.0)), cpu.gram_matmul(X, None, W, RBF(1.0))) for _ in range(3)
        ]

    with ThreadPoolExecutor(8) as pool:
        for results in pool.map(work, range(8)):
            for a, b in results:
                np.testing.assert_array_equal(a, K)
                np.testing.assert_array_equal(b, KW)


def test_run_covers_the_range_once_and_passes_on_errors():
    for n_threads in (1, 3):
        for count in (0, 1, 7, 1000):
            seen = np.zeros(count, int)

            def mark(lo, hi, seen=seen):
                seen[lo:hi] += 1

            threads.run(mark, count, 1e6, n_threads)
            assert (seen == 1).all()

        def fail(lo, hi):
            time.sleep(0.001)
            if lo <= 20 < hi:
                raise ZeroDivisionError("here")

        with pytest.raises(ZeroDivisionError, match="here"):
            threads.run(fail, 500, 1e6, n_threads)


def test_no_block_runs_after_an_error():
    running = []

    def slow(lo, hi):
        running.append(lo)
        time.sleep(0.05)
        running.remove(lo)

    def first_fails(lo, hi):
        if lo == 0:
            time.sleep(0.01)
            raise ValueError("first block")
        slow(lo, hi)

    with pytest.raises(ValueError, match="first block"):
        threads.run(first_fails, 100, 1e9, 4)
    assert not running


def test_n_threads_honours_the_environment(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    available = threads.n_threads_now()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert threads.n_threads_now() == 1
    assert threads.n_threads_now(5) == 5
    for unusable in ("0", "many", ""):
        monkeypatch.setenv("OMP_NUM_THREADS", unusable)
        assert threads.n_threads_now() == available
    monkeypatch.setenv("OMP_NUM_THREADS", "1,4")
    assert threads.n_threads_now() == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_forked_child_computes():
    result = run_python(
        """
        import os, warnings
        import numpy as np
        from selfdistill_fast._backend import get_backend, threads
        from selfdistill_fast.kernels import RBF
        warnings.simplefilter("ignore", DeprecationWarning)  # fork with threads: the point
        X = np.random.default_rng(0).normal(size=(1500, 5))
        cpu = get_backend(n_threads=3)
        K = cpu.gram(X, None, RBF(1.0))
        assert threads._helpers == 2
        pid = os.fork()
        if pid == 0:
            ok = threads._helpers == 0 and (cpu.gram(X, None, RBF(1.0)) == K).all()
            os._exit(0 if ok else 1)
        assert os.waitpid(pid, 0)[1] == 0
        assert (cpu.gram(X, None, RBF(1.0)) == K).all()
        """
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.skipif(os.name != "posix", reason="needs SIGINT")
def test_ctrl_c_stops_our_loops():
    """A product that would take minutes is interrupted, and the next call works."""
    code = """
        import signal, sys
        import numpy as np
        from selfdistill_fast._backend import get_backend
        from selfdistill_fast.kernels import RBF
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored
        rng = np.random.default_rng(0)
        X, W = rng.normal(size=(400_000, 90)), np.ones((400_000, 1))
        cpu = get_backend(n_threads=2)
        print("started", flush=True)
        try:
            cpu.gram_matmul(X, None, W, RBF(1.0))
        except KeyboardInterrupt:
            K = cpu.gram(X[:500], None, RBF(1.0))
            print("interrupted", (np.diag(K) == 1).all(), flush=True)
        """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, encoding="utf-8"
    ) as process:
        try:
            assert process.stdout.readline().strip() == "started"
            time.sleep(1.5)
            process.send_signal(signal.SIGINT)
            output, _ = process.communicate(timeout=30)
        finally:
            process.kill()
    assert output.strip() == "interrupted True"
