"""Rows from files, chunks and Dask: the same model as from memory; and what can go wrong."""

from __future__ import annotations

import importlib
import subprocess
import sys
import textwrap
import threading

import numpy as np
import oracle
import pytest
from tolerance import assert_close, host

from selfdistill_fast import RBF, distill, leave_fold_out, leave_one_out, spectrum
from selfdistill_fast._backend import get_backend
from selfdistill_fast._solvers.nystrom import nystrom_bytes
from selfdistill_fast._solvers.sources.stored import StoredRows

KERNEL = RBF(0.4)
OPTIONS = {"solver": "nystrom", "n_landmarks": 15, "random_state": 0, "block": 32}
SOURCES = ["list", "pairs", "function", "class", "memmap", "zarr", "h5py"]


class Chunks:
    """A re-iterable of uneven chunks, one of them empty; counts how often it is read."""

    def __init__(self, X, y=None, edges=(0, 7, 7, 60, 61, 150)):
        self.edges, self.X, self.y, self.passes = edges, X, y, 0

    def __iter__(self):
        self.passes += 1
        for lo, hi in zip(self.edges[:-1], self.edges[1:], strict=True):
            yield self.X[lo:hi] if self.y is None else (self.X[lo:hi], self.y[lo:hi])


def source(kind, X, y, tmp_path):
    """(X, Y) as that kind of source."""
    if kind == "list":
        return list(Chunks(X)), y
    if kind == "pairs":
        return list(Chunks(X, y)), None
    if kind == "function":
        return lambda: iter(Chunks(X)), y
    if kind == "class":
        return Chunks(X, y), None
    if kind == "memmap":
        np.save(tmp_path / "X.npy", X)
        return np.load(tmp_path / "X.npy", mmap_mode="r"), y
    return stored(kind, X, tmp_path, (40, 2)), y


def stored(kind, X, tmp_path, chunks):
    module = pytest.importorskip(kind)
    if kind == "h5py":
        return module.File(tmp_path / "X.h5", "w").create_dataset("X", data=X, chunks=chunks)
    array = module.open_array(
        str(tmp_path / "X.zarr"), mode="w", shape=X.shape, chunks=chunks, dtype=X.dtype
    )
    array[:] = X
    return array


def draw(rng, n=150, d=3, p=2):
    X = rng.standard_normal((n, d))
    X[5] = X[6]
    return X, rng.standard_normal((n, p)) + 1.0


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("weighted", [False, True], ids=["unweighted", "weighted"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_same_bits_from_everywhere(kind, weighted, dtype, tmp_path, rng):
    X, y = (a.astype(dtype) for a in draw(rng))
    options = dict(OPTIONS, fit_intercept=True)
    if weighted:
        options["sample_weight"] = rng.uniform(0.3, 2.0, len(X))
        options["sample_weight"][[3, 8, 149]] = 0.0
    here = spectrum(X, y, KERNEL, **options)
    there = spectrum(*source(kind, X, y, tmp_path), KERNEL, **options)
    np.testing.assert_array_equal(here.landmarks, there.landmarks)
    assert here.approximation_error == there.approximation_error
    assert there.d.dtype == there.z.dtype == dtype
    Z = rng.standard_normal((9, 3)).astype(dtype)
    for a, b in (
        (here.d, there.d),
        (here.z, there.z),
        (here.project(Z), there.project(Z)),
        (distill(s, 0.1, "optimal", 3).predict(Z, step="all") for s in (here, there)),
        (leave_one_out(s, [0.1, 1.0], 0.3, 3) for s in (here, there)),
        (leave_fold_out(s, 0.1, 0.3, 3, 4) for s in (here, there)),
    ):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("sampling", ["rpcholesky", "uniform", "kmeans"])
def test_chunking_does_not_change_the_landmarks(sampling, rng):
    """Where they are chosen from a subsample, too (more than ten rows for each)."""
    X, y = draw(rng, n=400)
    options = dict(OPTIONS, sampling=sampling, n_landmarks=5)
    basis = [
        spectrum(Chunks(X, y, edges=edges), None, KERNEL, **options).basis
        for edges in ([0, 400], [0, 3, 399, 400], list(range(0, 401, 8)))
    ]
    assert len(basis[0]) == 5
    for other in basis[1:]:
        np.testing.assert_array_equal(basis[0], other)


def test_a_memory_map_is_never_read_whole(tmp_path, monkeypatch, rng):
    X, y = draw(rng)
    np.save(tmp_path / "X.npy", X)
    mapped = np.load(tmp_path / "X.npy", mmap_mode="r")
    largest = 0

    class Watched(np.memmap):
        def __getitem__(self, index):
            nonlocal largest
            part = super().__getitem__(index)
            largest = max(largest, part.shape[0])
            return part

    monkeypatch.setattr(importlib.import_module(StoredRows.__module__), "_RANGE", 40)
    s = spectrum(mapped.view(Watched), y, KERNEL, **OPTIONS)
    leave_one_out(s, 0.1, 0.3, 2)
    assert 0 < largest <= 40


def test_number_of_passes(rng):
    """Count and targets, sample of rows, sums; and one for leave-one-out of a whole grid."""
    X, y = draw(rng)
    chunks = Chunks(X, y)
    s = spectrum(chunks, None, KERNEL, **OPTIONS)
    assert chunks.passes == 3
    distill(s, 0.1, 0.5, 3).predict(X[:3])
    assert chunks.passes == 3
    leave_one_out(s, [0.1, 1.0, 10.0], 0.3, 4)
    assert chunks.passes == 4


# -------------------------------------------------------------------------- what can go wrong
def forty(X, y=None):
    return Chunks(X, y, edges=list(range(0, 401, 10)))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("kind", ["chunks", "zarr", "dask", "y"])
def test_nan_names_the_chunk_and_the_row(kind, bad, tmp_path, rng):
    X, y = draw(rng, n=400)
    options = dict(OPTIONS, n_landmarks=3)  # a small sample: row 173 is not in it
    if kind == "y":
        y[173, 1] = bad
        with pytest.raises(ValueError, match=r"y, chunk 17.*NaN or infinity.*\(3, 1\)"):
            spectrum(forty(X, y), None, KERNEL, **options)
        return
    X[173, 1] = bad
    if kind == "chunks":
        X_in = forty(X)
    elif kind == "zarr":
        X_in = stored("zarr", X, tmp_path, (10, 3))
    else:
        X_in = pytest.importorskip("dask.array").from_array(X, chunks=(10, 3))
    with pytest.raises(ValueError, match=r"chunk 17.*row 3 \(row 173 .*NaN or infinity"):
        spectrum(X_in, y, KERNEL, **options)
    every = dict(options, n_landmarks=60)  # the sample has every row
    with pytest.raises(ValueError, match=r"chunk 17.*row 3 \(row 173 .*NaN or infinity"):
        spectrum(X_in, y, KERNEL, **every)


def test_bad_chunks(rng):
    X, y = draw(rng)
    rest = [X[:50], X[50:100]]
    for last, message in (
        (X[100:, :2], "chunk 2 .from row 100.: columns 2.*first chunk has 3"),
        (X[100:].astype("float32"), "chunk 2.*dtype float32.*float64"),
        (X[100:, 0], "chunk 2.*dimension"),
        ((X[100:], y[100:]), "chunk 2 is a pair"),
        ((X[100:], y[100:], 1), "chunk 2 is a tuple of 3"),
        (np.array([["a"]]), "chunk 2.*real numbers"),
        (X[100:140], "X has 140 rows, but Y has 150"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            spectrum([*rest, last], y, KERNEL, **OPTIONS)
    pairs = [(X[:50], y[:50]), (X[50:], y[50:140])]
    with pytest.raises(ValueError, match="chunk 1: X has 100 rows, but y has 90"):
        spectrum(pairs, None, KERNEL, **OPTIONS)
    with pytest.raises(ValueError, match="same targets"):
        spectrum([(X[:50], y[:50]), (X[50:], y[50:, 0])], None, KERNEL, **OPTIONS)
    with pytest.raises(ValueError, match="Y is given as well"):
        spectrum(Chunks(X, y), y, KERNEL, **OPTIONS)
    with pytest.raises(ValueError, match="Y is missing"):
        spectrum(Chunks(X), None, KERNEL, **OPTIONS)
    for empty in (lambda: iter(()), [X[:0]]):
        with pytest.raises(ValueError, match="empty"):
            spectrum(empty, y[:0], KERNEL, **OPTIONS)


def test_what_can_be_read_only_once_is_refused(rng):
    X, y = draw(rng)
    with pytest.raises(TypeError, match=r"read only once.*pass the function"):
        spectrum((chunk for chunk in [X]), y, KERNEL, **OPTIONS)


@pytest.mark.parametrize("change", [-1, 1])
def test_a_source_that_changes_is_refused(change, rng):
    X, y = draw(rng)
    lengths = iter([150, 150, 150, 150 + change])

    def chunks():
        yield np.vstack([X, X[:1]])[: next(lengths)]

    s = spectrum(chunks, y, KERNEL, **OPTIONS)
    with pytest.raises(ValueError, match="same rows every time"):
        leave_one_out(s, 0.1, 0.3, 2)


@pytest.mark.parametrize("solver", ["auto", "eigh", "cholesky"])
def test_exact_solvers_ask_for_all_rows(solver, tmp_path, rng):
    X, y = draw(rng)
    for X_in in (Chunks(X), pytest.importorskip("dask.array").from_array(X, chunks=50)):
        with pytest.raises(TypeError, match="solver='nystrom'"):
            spectrum(X_in, y, KERNEL, solver=solver, lam=0.1)
    mapped, _ = source("memmap", X, y, tmp_path)  # an array like any other, where it fits
    assert spectrum(mapped, y, KERNEL, solver=solver, lam=0.1).n == 150


# --------------------------------------------------------------------------------------- Dask
@pytest.mark.parametrize("weighted", [False, True], ids=["unweighted", "weighted"])
def test_dask_equals_memory(weighted, rng):
    da = pytest.importorskip("dask.array")
    X, y = draw(rng)
    options = dict(OPTIONS, fit_intercept=True)
    if weighted:
        options["sample_weight"] = rng.uniform(0.3, 2.0, len(X))
        options["sample_weight"][[3, 8]] = 0.0
    here = spectrum(X, y, KERNEL, **options)
    chunks = ((7, 0, 93, 50), (2, 1))  # an empty one; and the columns cut
    there = spectrum(
        da.from_array(X, chunks=chunks), da.from_array(y, chunks=40), KERNEL, **options
    )
    np.testing.assert_array_equal(here.landmarks, there.landmarks)
    assert_close(here.d, there.d, 1e-11)
    for lam_steps in (None, [0.1, 0.3, 0.2]):
        a, b = (leave_one_out(s, 0.1, 0.3, 3, lam_steps=lam_steps) for s in (here, there))
        assert_close(a, b, 1e-11)
    assert_close(*(leave_fold_out(s, 0.1, 0.3, 3, 4) for s in (here, there)), 1e-11)
    Z = rng.standard_normal((20, 3))
    lazy = da.from_array(Z, chunks=((3, 17), (1, 2)))
    path = distill(there, 0.1, "optimal", 3)
    for step in (None, 1, "all"):
        predictions = path.predict(lazy, step=step)
        assert hasattr(predictions, "__dask_graph__")
        expected = path.predict(Z, step=step)
        assert predictions.shape == expected.shape
        assert predictions.dtype == expected.dtype
        assert_close(predictions.compute(), expected, 1e-12)
    assert there.project(lazy).shape == (20, there.k)
    assert_close(there.project(lazy).compute(), there.project(Z), 1e-12)
    with pytest.raises(ValueError, match="3 features"):
        path.predict(lazy[:, :2])
    lazy = da.from_array(np.where(np.arange(60).reshape(20, 3) == 40, np.nan, Z), chunks=(4, 3))
    with pytest.raises(ValueError, match=r"chunk 3 of 5: row 1 \(row 13 .*NaN"):
        path.predict(lazy).compute()


def test_dask_one_target(rng):
    da = pytest.importorskip("dask.array")
    X, y = draw(rng)
    path = distill(spectrum(da.from_array(X, chunks=40), y[:, 0], KERNEL, **OPTIONS), 0.1, 0.3, 3)
    lazy = da.from_array(X, chunks=40)
    for step in (None, "all"):
        predictions = path.predict(lazy, step=step)
        assert predictions.shape == path.predict(X, step=step).shape
        assert_close(predictions.compute(), path.predict(X, step=step), 1e-12)


def test_dask_collections_that_are_no_arrays(rng):
    dask, da = pytest.importorskip("dask"), pytest.importorskip("dask.array")
    X, y = draw(rng)
    with pytest.raises(TypeError, match="not a dask array"):
        spectrum(dask.delayed(X), y, KERNEL, **OPTIONS)
    lazy = da.from_array(X, chunks=50)
    with pytest.raises(ValueError, match="compute_chunk_sizes"):
        spectrum(lazy[lazy[:, 0] > 0], y, KERNEL, **OPTIONS)


def test_one_blas_thread_while_any_task_runs():
    """Tasks of one process overlap: the last one out lifts the limit, not the first."""
    from threadpoolctl import threadpool_info, threadpool_limits

    from selfdistill_fast._backend.threads import one_blas_thread

    def most():
        return max(pool["num_threads"] for pool in threadpool_info())

    with threadpool_limits(2):
        before = most()
        first, second = one_blas_thread(), one_blas_thread()
        with first:
            assert most() == 1
            second.__enter__()
        assert most() == 1
        second.__exit__(None, None, None)
        assert most() == before


def test_the_limit_is_lifted_by_whichever_thread_comes_last():
    from threadpoolctl import threadpool_info, threadpool_limits

    from selfdistill_fast._backend.threads import one_blas_thread

    def most():
        pools = [pool for pool in threadpool_info() if pool["user_api"] == "blas"]
        return max(pool["num_threads"] for pool in pools)

    inside, done = threading.Event(), threading.Event()

    def first_in():
        with one_blas_thread():
            inside.set()
            done.wait(10)

    with threadpool_limits(2):
        before = most()
        for _ in range(2):  # the second time another thread has been in control
            inside.clear()
            done.clear()
            thread = threading.Thread(target=first_in)
            thread.start()
            inside.wait(10)
            with one_blas_thread():
                done.set()
                thread.join()
                assert most() == 1
            assert most() == before


CLUSTER = """
    import os, signal, threading, time, warnings
    import numpy as np
    import dask.array as da
    from dask.distributed import Client, LocalCluster
    from selfdistill_fast import RBF, distill, leave_one_out, spectrum

    def main():
        rng = np.random.default_rng(0)
        X = rng.standard_normal((4000, 4)); y = np.sin(X[:, 0]) + 0.1 * rng.standard_normal(4000)
        options = dict(solver="nystrom", n_landmarks=400, random_state=0, fit_intercept=True)
        here = spectrum(X, y, RBF(0.2), **options)
        with LocalCluster(n_workers=2, threads_per_worker=1, processes=True,
                          dashboard_address=":0") as cluster, Client(cluster) as client:
            def slow(block):  # so that a worker dies in the middle
                time.sleep(0.2)
                return block
            def threads(X, Z):  # of BLAS, while a task runs
                from dask.distributed import get_worker
                from threadpoolctl import threadpool_info
                try:
                    get_worker()
                except ValueError:  # here, for the landmarks
                    return X @ Z.T
                most = max(pool["num_threads"] for pool in threadpool_info())
                assert most == 1, most
                return X @ Z.T
            lazy = da.from_array(X, chunks=(200, 4))
            undisturbed = spectrum(lazy, y, RBF(0.2), **options)
            landing = spectrum(lazy, da.from_array(y, chunks=500), threads, solver="nystrom",
                               n_landmarks=4, random_state=0)
            assert landing.k == 4
            pids = [info["pid"] for info in client.run(lambda: dict(pid=os.getpid())).values()]
            timer = threading.Timer(1.2, os.kill, (pids[0], signal.SIGKILL))
            timer.start()
            disturbed = spectrum(lazy.map_blocks(slow, dtype=float), y, RBF(0.2), **options)
            timer.join()
            alive = [info["pid"] for info in client.run(lambda: dict(pid=os.getpid())).values()]
            assert pids[0] not in alive
            for s in (undisturbed, disturbed):
                np.testing.assert_array_equal(s.landmarks, here.landmarks)
                np.testing.assert_allclose(s.d, here.d, rtol=0, atol=1e-11 * here.d.max())
                a, b = (leave_one_out(t, 0.1, 0.3, 3) for t in (s, here))
                np.testing.assert_allclose(a, b, rtol=0, atol=1e-9)
            np.testing.assert_array_equal(undisturbed.d, disturbed.d)  # to the last bit
            path = distill(disturbed, 0.1, 0.3, 3)
            np.testing.assert_allclose(path.predict(lazy).compute(), path.predict(X), atol=1e-12)
        print("fine")

    if __name__ == "__main__":
        main()
"""


def test_a_killed_worker_changes_nothing(tmp_path):
    pytest.importorskip("distributed")
    script = tmp_path / "cluster.py"
    script.write_text(textwrap.dedent(CLUSTER), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        encoding="utf-8",
        check=False,
        timeout=300,
    )
    assert done.stdout.split() == ["fine"], done.stderr


# ------------------------------------------------------------------------------------ memory
MEMORY = """
    import sys
    import numpy as np
    from selfdistill_fast import RBF, spectrum
    from selfdistill_fast._backend import get_backend
    from selfdistill_fast._solvers.nystrom import nystrom_bytes

    kind, sampling, dtype, n, m, path = sys.argv[1:]
    n, m, d, p = int(n), int(m), 8, 3
    if sampling in ("kmeans", "auto"):
        import sklearn.cluster  # its bytes are said, and taken before the measurement
    X = np.load(path, mmap_mode="r" if kind == "memmap" else None)
    y = np.random.default_rng(1).standard_normal((n, p))
    spectrum(np.array(X[:300]), y[:300], RBF(0.1), solver="nystrom", n_landmarks=200,
             sampling=sampling)  # libraries' own buffers
    def status(name):
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) for line in file if line.startswith(name)) * 1024
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before = status("VmRSS")
    source = [X[i:i + 500] for i in range(0, n, 500)] if kind == "chunks" else X
    spectrum(source, y, RBF(0.1), solver="nystrom", n_landmarks=m, random_state=0,
             sampling=sampling)
    peak = status("VmHWM") - before
    be = get_backend()
    said = nystrom_bytes(be, n, d, p, m, X.dtype, streaming=kind != "array", sampling=sampling)
    if kind == "memmap":
        said += X.nbytes  # pages of the file that the system keeps
    if sampling in ("kmeans", "auto"):
        from selfdistill_fast._solvers.nystrom.memory import _CLUSTERING
        said -= _CLUSTERING
    print(peak, said)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc to measure memory")
@pytest.mark.parametrize(
    ("kind", "sampling", "dtype", "n", "m"),
    [
        ("array", "rpcholesky", "float64", 6000, 1200),
        ("array", "uniform", "float64", 6000, 1500),
        ("array", "rpcholesky", "float32", 6000, 1200),
        ("array", "auto", "float64", 20000, 1200),
        ("array", "rpcholesky", "float64", 20000, 1200),
        ("chunks", "auto", "float64", 20000, 800),
        ("array", "kmeans", "float64", 4000, 600),
        ("chunks", "rpcholesky", "float64", 20000, 500),
        ("memmap", "uniform", "float32", 20000, 1200),
    ],
)
def test_peak_memory_is_what_is_said(kind, sampling, dtype, n, m, tmp_path):
    path = tmp_path / "X.npy"
    np.save(path, np.random.default_rng(0).standard_normal((n, 8)).astype(dtype))
    arguments = [kind, sampling, dtype, str(n), str(m), str(path)]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MEMORY), *arguments],
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    peak, said = (int(word) for word in done.stdout.split())
    assert peak <= 1.1 * said
    assert peak >= 0.5 * said  # nor is it a bound that refuses what would fit


def test_memory_does_not_grow_with_the_rows():
    be = get_backend()
    options = {"streaming": True}
    few, many = (nystrom_bytes(be, n, 50, 1, 1000, "float64", **options) for n in (10**5, 10**6))
    assert many - few < 100 * 10**6  # the targets and keys; the rows are 400 MB


# ------------------------------------------------------------------------------- error estimate
@pytest.mark.parametrize("weighted", [False, True], ids=["unweighted", "weighted"])
def test_approximation_error(backend, weighted, rng):
    """tr(K − K̂)/tr(K), and the bound on the first step that is said to follow from it."""
    X, y = draw(rng)
    w = rng.uniform(0.3, 2.0, len(X)) if weighted else np.ones(len(X))
    s = spectrum(X, y, KERNEL, backend=backend, sample_weight=w if weighted else None, **OPTIONS)
    K = oracle.kernel_matrix(KERNEL, X)
    C = oracle.kernel_matrix(KERNEL, X, host(s.basis))
    K_hat = C @ np.linalg.solve(oracle.kernel_matrix(KERNEL, host(s.basis)), C.T)
    root = np.sqrt(w)
    K, K_hat = (root[:, None] * M * root for M in (K, K_hat))
    expected = np.trace(K - K_hat) / np.trace(K)
    assert 0.01 < expected < 0.9
    assert_close(s.approximation_error, expected, 1e-10)
    t = root[:, None] * y
    for lam in (0.1, 10.0):
        first, model = (np.linalg.solve(M + lam * np.eye(len(X)), M @ t) for M in (K, K_hat))
        bound = s.approximation_error * np.trace(K) / lam * np.linalg.norm(t, 2)
        assert np.linalg.norm(first - model, 2) <= bound
    every = spectrum(X, y, KERNEL, **dict(OPTIONS, n_landmarks=150))
    assert 0.0 <= every.approximation_error < 1e-12


# ------------------------------------------------------------------------------------- numerics
@pytest.mark.parametrize("kind", ["smooth", "flat", "outliers"])
@pytest.mark.parametrize("intercept", [False, True], ids=["no intercept", "intercept"])
def test_digits_for_small_ridges(kind, intercept, rng):
    """Against 50 digits: errors within 100 ε d_max/λ, though K_LL is singular to rounding."""
    from mpmath import mp

    n, m = 60, 25
    if kind == "smooth":
        X = rng.uniform(0, 3, (n, 1))
    elif kind == "flat":
        X = 0.03 * rng.standard_normal((n, 2))
    else:
        X = np.vstack([0.05 * rng.standard_normal((n - 5, 2)), 10 * rng.standard_normal((5, 2))])
    y = np.sin(3 * X[:, 0]) + 0.1 * rng.standard_normal(n)
    s = spectrum(
        X, y, RBF(1.0), solver="nystrom", n_landmarks=m, random_state=0, fit_intercept=intercept
    )

    def kappa(u, v):
        return mp.exp(-mp.fsum((mp.mpf(a) - mp.mpf(b)) ** 2 for a, b in zip(u, v, strict=True)))

    with mp.workdps(50):
        L, rows = s.basis.tolist(), X.tolist()
        C, K_LL = (mp.matrix([[kappa(u, v) for v in L] for u in A]) for A in (rows, L))
        t, mean, share = mp.matrix([mp.mpf(v) for v in y.tolist()]), mp.mpf(0), mp.mpf(0)
        if intercept:
            share, mean = mp.mpf(1) / n, mp.fsum(t) / n
            t -= mean
            for j in range(len(L)):
                C[:, j] -= mp.fsum(C[:, j]) / n
        for lam in (1.0, 1e-3, 1e-6, 1e-9):
            A = C * (C.T * C + mp.mpf(lam) * K_LL) ** -1 * C.T
            fit = A * t
            loo = [t[i] - (t[i] - fit[i]) / (1 - A[i, i] - share) for i in range(n)]
            tolerance = max(1e-10, 100 * np.finfo(float).eps * n / lam)
            actual = distill(s, lam, 0.0, 1).predict(X), leave_one_out(s, lam, 0.0, 1)[0]
            for ours, theirs in zip(actual, (fit, loo), strict=True):
                expected = np.array([float(v + mean) for v in theirs])
                assert np.abs(ours - expected).max() <= tolerance * np.abs(expected).max()
