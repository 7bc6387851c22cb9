"""The border of the compiled core: signatures, odd arrays, sanitizers, other compilers' modules."""

from __future__ import annotations

import inspect
import shutil
import subprocess
import sys
import sysconfig
import textwrap
from pathlib import Path

import c_build
import cases
import numpy as np
import pytest
import tolerance
from cases import points
from processes import run_python

from selfdistill_fast import _core
from selfdistill_fast._backend import BACKENDS, Backend, get_backend
from selfdistill_fast._backend.cpu import Cpu
from selfdistill_fast._backend.reference import Reference
from selfdistill_fast.kernels import (
    RBF,
    Laplacian,
    Polynomial,
)

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = Reference()
KERNELS = [*cases.KERNELS, Polynomial(8, 0.4, -0.3)]
UNIT = [k for k in KERNELS if k.unit_diagonal]
SIZES = (0, *cases.SIZES)


# ------------------------------------------------------------------- the caller
@pytest.mark.parametrize("cls", BACKENDS.values())
def test_backends_have_the_signatures_of_the_abstract_one(cls):
    for name, verb in inspect.getmembers(Backend, inspect.isfunction):
        if not name.startswith("_"):
            assert inspect.signature(getattr(cls, name)) == inspect.signature(verb), name
    ours, theirs = (inspect.signature(c.__init__).parameters for c in (cls, Backend))
    assert list(ours.values())[: len(theirs)] == list(theirs.values())
    assert all(p.default is None for p in list(ours.values())[len(theirs) :])  # Gpu's device
    own = {name for name in dir(cls) if not name.startswith("_")} - {"name", "xp"}
    assert own <= set(dir(Backend)), "a backend has a verb that the abstract one lacks"


def test_get_backend():
    assert type(get_backend()) is type(get_backend("auto")) is type(get_backend("cpu")) is Cpu
    assert type(get_backend("reference")) is Reference
    backend = Cpu()
    assert get_backend(backend) is backend
    assert get_backend(backend, n_threads=3).n_threads == 3
    assert backend.n_threads is None
    with pytest.raises(ValueError, match="known names: auto, reference, cpu"):
        get_backend("gpux")
    with pytest.raises(TypeError, match="name or a backend object"):
        get_backend(3)
    for bad in (0, -1):
        with pytest.raises(ValueError, match="at least 1"):
            get_backend(n_threads=bad)
    for bad in (2.0, True, "2"):
        with pytest.raises(TypeError, match="positive integer"):
            get_backend(n_threads=bad)


def test_out_is_used_and_checked(rng):
    X, Z = points(rng, 30, 4), points(rng, 20, 4)
    expected = Cpu().gram(X, Z, RBF(1.0))
    for out in (
        np.empty((30, 20)),
        np.empty(1000)[3:603].reshape(30, 20),
        np.empty((30, 40))[:, ::2],  # not contiguous: filled by way of a copy
        np.empty((30, 20), order="F"),
        np.empty((30, 20), np.float32),
        np.frombuffer(bytearray(30 * 20 * 8 + 1), np.uint8)[1:].view(np.float64).reshape(30, 20),
    ):
        assert Cpu().gram(X, Z, RBF(1.0), out=out) is out
        np.testing.assert_allclose(out, expected, rtol=1e-6)
    with pytest.raises(ValueError, match="shape"):
        Cpu().gram(X, Z, RBF(1.0), out=np.empty((20, 30)))
    W = rng.normal(size=(20, 3))
    out = np.empty((30, 3))
    assert Cpu().gram_matmul(X, Z, W, RBF(1.0), out=out) is out
    np.testing.assert_array_equal(out, Cpu().gram_matmul(X, Z, W, RBF(1.0)))
    with pytest.raises(ValueError, match="out must be"):
        Cpu().gram_matmul(X, Z, W, RBF(1.0), out=np.empty((30, 2)))


def test_out_that_is_an_input(rng):
    X = points(rng, 20, 20)
    expected = Cpu().gram(X, None, RBF(1.0))
    out = X.copy()
    assert Cpu().gram(out, None, RBF(1.0), out=out) is out
    np.testing.assert_array_equal(out, expected)


def test_out_is_independent_of_alignment_and_streaming(isa, rng, monkeypatch):
    """Rows that begin alike within a cache line, or not; past the caches, or not."""
    for n, m, d in ((203, 203, 5), (208, 208, 20), (30, 416, 3)):
        for dtype in (np.float64, np.float32):
            X, Z = points(rng, n, d, dtype), points(rng, m, d, dtype)
            for other in (Z, None)[: 1 + (n == m)]:
                monkeypatch.setattr("selfdistill_fast._backend.cpu.STREAM_BYTES", 1 << 40)
                expected = Cpu().gram(X, other, RBF(0.5))
                monkeypatch.setattr("selfdistill_fast._backend.cpu.STREAM_BYTES", 0)
                for offset in range(0, 9, 2):
                    memory = np.full(n * m + 40, 7, dtype)
                    out = memory[offset : offset + n * m].reshape(n, m)
                    Cpu().gram(X, other, RBF(0.5), out=out)
                    np.testing.assert_array_equal(out, expected)
                    assert (memory[:offset] == 7).all()
                    assert (memory[offset + n * m :] == 7).all()


def test_inputs_may_be_read_only_strided_or_misaligned(rng):
    X = points(rng, 30, 6)
    expected = Cpu().gram(X, None, RBF(1.0))
    frozen = X.copy()
    frozen.flags.writeable = False
    unaligned = np.frombuffer(bytearray(X.nbytes + 1), np.uint8)[1:].view(np.float64)
    unaligned = unaligned.reshape(X.shape)
    unaligned[...] = X
    for same in (frozen, np.asfortranarray(X), np.repeat(X, 2, axis=0)[::2], unaligned):
        np.testing.assert_array_equal(Cpu().gram(same, None, RBF(1.0)), expected)
        np.testing.assert_array_equal(Cpu().gram(same, X, RBF(1.0)), expected)
        np.testing.assert_allclose(
            Cpu().gram_matmul(same, None, same, RBF(1.0)), expected @ X, atol=1e-13
        )


def test_the_border_refuses():
    X = np.ones((4, 3))
    spec = RBF(1.0).c_spec
    with pytest.raises(TypeError, match="float32 and float64"):
        _core.Gram(X.astype(int), None, spec)
    with pytest.raises(TypeError, match="Z must be a 2-D array of float64"):
        _core.Gram(X, X.astype(np.float32), spec)
    with pytest.raises(TypeError, match="2-D"):
        _core.Gram(X[0], None, spec)
    with pytest.raises(ValueError, match="columns"):
        _core.Gram(X, np.ones((4, 2)), spec)
    with pytest.raises(ValueError, match="unknown kernel"):
        _core.Gram(X, None, ("cubic", 1.0, 0.0, 0))
    with pytest.raises(ValueError, match="contiguous"):
        _core.Gram(X[:, ::2], None, spec)
    with pytest.raises(TypeError):
        _core.Gram(X.astype(">f8"), None, spec)
    frozen = np.ones((4, 4))
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        _core.Gram(X, None, spec, frozen)
    job = _core.Gram(X, None, spec, np.empty((4, 4)))
    with pytest.raises(ValueError, match="range"):
        job.gram(0, 2)
    with pytest.raises(ValueError, match="NULL"):
        job.pairs(0, 1)
    with pytest.raises(ValueError, match="pair quantity"):
        job.set_kernel(Laplacian(1.0).c_spec)
    sums = np.empty((1, 4, 2))
    with pytest.raises(ValueError, match="sums must have shape"):
        _core.inner_products(X, X[:2], sums, 1, 0, 1)
    with pytest.raises(ValueError, match="range"):
        _core.inner_products(X, X[:2], sums, 0, 0, 2)
    with pytest.raises(ValueError, match="h must have shape"):
        _core.project_out(X, sums[0], -1, X[:2], 0, 1)
    with pytest.raises(ValueError, match="read-only"):
        _core.project_out(np.ones((4, 4)), sums[0], 0, frozen[:2], 0, 1)


def test_kernel_table_is_that_of_the_python_kernels():
    assert {k.c_spec[0] for k in KERNELS} == set(_core.KERNEL_IDS)


def test_isa_is_chosen_by_the_environment():
    code = "from selfdistill_fast import _core; print(_core.isa())"
    for name in _core.isa_available():
        assert run_python(code, SDF_ISA=name).stdout.strip() == name
    assert run_python(code, SDF_ISA="").stdout.strip() == _core.isa_available()[-1]
    result = run_python(code, SDF_ISA="sse9")
    assert result.returncode != 0
    assert "ImportError" in result.stderr
    assert "SDF_ISA" in result.stderr
    assert "'sse9' is not available" in result.stderr
    assert "generic" in result.stderr


def test_import_is_light():
    result = run_python(
        """
        import sys, threading
        import selfdistill_fast._backend
        heavy = {"sklearn", "torch", "cupy", "matplotlib", "pandas"} & set(sys.modules)
        assert not heavy, heavy
        assert threading.active_count() == 1
        """
    )
    assert result.returncode == 0, result.stderr


# ------------------------------------------------------------------ C and Cython
COMPILER = c_build.compiler()


@pytest.mark.skipif(COMPILER is None, reason="no C compiler")
def test_c_level_under_sanitizers(tmp_path):
    """tests/c/test_sdf.c: every loop against long double, under ASan and UBSan."""
    sanitize = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
    probe = tmp_path / "probe.c"
    probe.write_text("int main(void) { return 0; }\n", encoding="utf-8")
    built = subprocess.run(
        [COMPILER, *sanitize, str(probe), "-o", str(tmp_path / "probe")], capture_output=True
    )
    if built.returncode or subprocess.run([tmp_path / "probe"]).returncode:
        pytest.skip("the compiler has no address or undefined behaviour sanitizer")

    try:
        program = c_build.build(tmp_path, list(_core.isa_available()), COMPILER, sanitize)
    except subprocess.CalledProcessError as error:
        pytest.fail(error.stderr)
    result = subprocess.run([program], capture_output=True, encoding="utf-8", timeout=110)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert "all passed" in result.stdout


@pytest.mark.skipif(COMPILER is None, reason="no C compiler")
def test_another_cython_module_calls_the_loops(tmp_path, rng):
    pytest.importorskip("Cython")
    from importlib import resources

    source = tmp_path / "guest.pyx"
    source.write_text(
        textwrap.dedent(
            """
            # cython: language_level=3
            from selfdistill_fast cimport _sdf as sdf
            from selfdistill_fast._core import empty_aligned
            import numpy as np

            cdef double[::1] memory(Py_ssize_t size):
                return empty_aligned((max(size, 1),), np.float64)

            def laplacian(const double[:, ::1] X, double gamma):
                "K(X, X) of the Laplacian kernel, tile by tile."
                cdef const sdf.sdf_loops* loops = sdf.import_api().f64
                cdef sdf.sdf_job job = sdf.sdf_job()
                cdef Py_ssize_t tile
                out = np.empty((X.shape[0], X.shape[0]))
                cdef double[:, ::1] K = out
                cdef sdf.sdf_problem* problem = &job.problem
                problem.kernel, problem.a = sdf.SDF_LAPLACIAN, gamma
                problem.n = problem.m = problem.ld = X.shape[0]
                problem.d = X.shape[1]
                problem.x, problem.out = &X[0, 0], &K[0, 0]
                assert loops.prepare(&job) == sdf.SDF_OK
                shift = memory(problem.d)
                packed = memory(job.plan.packed_size_x)
                norms = memory(job.plan.norms_size_x)
                scratch = memory(job.plan.scratch_size)
                shift[:] = 0
                job.buffers.shift, job.buffers.packed_x = &shift[0], &packed[0]
                job.buffers.norms_x = &norms[0]
                assert loops.pack(&job, 0, job.plan.panels_x) == sdf.SDF_OK
                for tile in range(job.plan.tiles):
                    assert loops.gram(&job, tile, tile + 1, &scratch[0]) == sdf.SDF_OK
                return out

            def path(const double[::1] d, const double[::1] lam, const double[::1] alpha):
                "diag B of every step."
                out = np.empty((lam.shape[0], alpha.shape[0], d.shape[0]))
                cdef double[:, :, ::1] B = out
                cdef Py_ssize_t k = d.shape[0]
                cdef Py_ssize_t units = lam.shape[0] * (-(-k // sdf.SDF_FILTER_BLOCK))
                assert sdf.import_api().f64.shrinkage_path(
                    &d[0], k, &lam[0], lam.shape[0], &alpha[0], alpha.shape[0],
                    &B[0, 0, 0], 0, units) == sdf.SDF_OK
                return out
            """
        ),
        encoding="utf-8",
    )
    package = Path(str(resources.files("selfdistill_fast") / "_sdf.pxd")).parent
    result = subprocess.run(
        [sys.executable, "-m", "cython", "-3", "-I", str(package.parent), str(source)],
        capture_output=True,
        encoding="utf-8",
    )
    assert result.returncode == 0, result.stderr
    module = tmp_path / ("guest" + sysconfig.get_config_var("EXT_SUFFIX"))
    dynamic = (
        ["-bundle", "-undefined", "dynamic_lookup"] if sys.platform == "darwin" else ["-shared"]
    )
    result = subprocess.run(
        [
            COMPILER,
            "-O1",
            "-fPIC",
            *dynamic,
            f"-I{sysconfig.get_path('include')}",
            f"-I{_core.get_include()}",
            str(source.with_suffix(".c")),
            "-o",
            str(module),
        ],
        capture_output=True,
        encoding="utf-8",
    )
    assert result.returncode == 0, result.stderr

    import importlib.util

    spec = importlib.util.spec_from_file_location("guest", module)
    guest = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(guest)
    X, d = points(rng, 250, 4), rng.exponential(size=700)
    np.testing.assert_array_equal(guest.laplacian(X, 0.7), Cpu().gram(X, None, Laplacian(0.7)))
    lam, alpha = np.array([0.1, 2.0]), np.array([np.nan, 0.3, 0.6])
    np.testing.assert_array_equal(guest.path(d, lam, alpha), Cpu().shrinkage_path(d, lam, alpha))


# ------------------------------------------------------------------------------- size
@pytest.mark.slow
def test_more_than_two_to_the_31_entries_in_a_memory_map(tmp_path, rng):
    """float32 50,000 x 50,000 in two blocks of rows; the first alone has 2.2e9 entries."""
    n, first = 50_000, 44_000
    if shutil.disk_usage(tmp_path).free < 1.2 * 4 * n * n:
        pytest.skip("needs 12 GB of disk")
    X, kernel = points(rng, n, 5, np.float32), RBF(0.5)
    path = tmp_path / "gram.f32"
    K = np.memmap(path, np.float32, "w+", shape=(n, n))
    try:
        for rows in (slice(0, first), slice(first, n)):
            Cpu().gram(X[rows], X, kernel, out=K[rows])
        some = np.r_[0, 1, first - 1, first, n - 1, rng.integers(0, n, 40)]
        for i in some:
            expected = REFERENCE.gram(X[i : i + 1], X, kernel)[0]
            np.testing.assert_allclose(K[i], expected, atol=tolerance(kernel, np.float32))
            assert K[i, i] == 1
    finally:
        del K
        path.unlink()
