"""Where a computation runs, what kind its results are, and what happens when a GPU cannot be used.

On a stand-in for CuPy (cupy_stand_in.py), so without a device; the solvers themselves run over
the ``backend`` fixture everywhere else.
"""

from __future__ import annotations

import importlib
import pickle
import re
import sys
import types
import warnings

import numpy as np
import pytest
from tolerance import assert_close, host

import selfdistill_fast
from selfdistill_fast import (
    NTK,
    RBF,
    DistillationPath,
    Laplacian,
    SelfDistilledKernelRidge,
    SelfDistilledKernelRidgeClassifier,
    SelfDistilledKernelRidgeClassifierCV,
    SelfDistilledKernelRidgeCV,
    distill,
    gram,
    gram_matmul,
    gram_sweep,
    leave_fold_out,
    leave_one_out,
    limit_shrinkage,
    plan,
    shrinkage_path,
    spectrum,
)
from selfdistill_fast._backend import (
    Cpu,
    Gpu,
    GpuUnavailable,
    cuda_device,
    cuda_kernels,
    cuda_loader,
    get_backend,
    offload,
)
from selfdistill_fast._solvers import planning, rates


@pytest.fixture(autouse=True)
def unwarned(monkeypatch):
    monkeypatch.setattr(offload, "_warned", set())


@pytest.fixture
def problem(rng):
    X = rng.normal(size=(40, 3))
    return X, np.sin(X[:, 0]) + 0.3 * rng.normal(size=40), rng.normal(size=(7, 3))


# ------------------------------------------------------------------ results of the caller's kind


def test_arrays_say_where(stand_in, problem):
    X, _, _ = problem
    on_device = stand_in.asarray(X)
    assert get_backend(None, {"X": X}).name == "cpu"
    assert get_backend(None, {"X": on_device}).name == "gpu"
    assert get_backend("auto", {"X": on_device}).name == "gpu"
    assert get_backend("gpu", {"X": X}).name == "gpu"
    K = gram(on_device, kernel=RBF(0.3))
    assert isinstance(K, stand_in.ndarray)
    assert_close(K, gram(X, kernel=RBF(0.3)), 1e-14)
    assert isinstance(gram(X, kernel=RBF(0.3), backend="gpu"), np.ndarray)
    assert isinstance(gram_matmul(on_device, None, on_device, RBF(0.3)), stand_in.ndarray)
    for K in gram_sweep(on_device, None, [RBF(0.3), RBF(1.0)]):
        assert isinstance(K, stand_in.ndarray)
    first, second = gram_sweep(X, None, [RBF(0.3), RBF(1.0)], backend="gpu")
    assert first is second  # one buffer, on the host too
    d = stand_in.asarray(np.array([1.0, 3.0]))
    assert isinstance(shrinkage_path(d, 1.0, 0.5, 2), stand_in.ndarray)
    assert isinstance(limit_shrinkage(d, 1.0, 0.5), stand_in.ndarray)


@pytest.mark.parametrize("solver", ["eigh", "cholesky", "tridiagonal", "krylov", "nystrom"])
def test_a_whole_chain_stays_where_it_began(stand_in, problem, solver):
    X, y, X_new = problem
    xp = stand_in
    options = {"n_landmarks": 20, "random_state": 0} if solver == "nystrom" else {}
    ours = spectrum(X, y, RBF(0.3), solver=solver, lam=0.1, **options)
    theirs = spectrum(xp.asarray(X), xp.asarray(y), RBF(0.3), solver=solver, lam=0.1, **options)
    assert isinstance(theirs.target, xp.ndarray)
    expected, path = distill(ours, 0.1, 0.4, 3), distill(theirs, 0.1, 0.4, 3)
    for array, other in (
        (path.predict(xp.asarray(X_new), "all"), expected.predict(X_new, "all")),
        (path.dual_coef("all"), expected.dual_coef("all")),
    ):
        assert isinstance(array, xp.ndarray)
        assert_close(array, other, 1e-8)
    assert isinstance(path.predict(X_new), np.ndarray)  # the caller's kind is that of his X
    assert isinstance(path.alphas, np.ndarray)
    if ours.max_loo_steps >= 3:
        held_out = leave_one_out(theirs, 0.1, 0.4, 3)
        assert isinstance(held_out, xp.ndarray)
        assert_close(held_out, leave_one_out(ours, 0.1, 0.4, 3), 1e-9)
        folds = leave_fold_out(theirs, 0.1, 0.4, 2, 5)
        assert_close(folds, leave_fold_out(ours, 0.1, 0.4, 2, 5), 1e-9)
        for alpha in ("optimal", "joint"):
            chosen = distill(theirs, 0.1, alpha, 3)
            assert_close(chosen.weights, distill(ours, 0.1, alpha, 3).weights, 1e-5)


def test_estimators_take_device_arrays(stand_in, problem):
    X, y, X_new = problem
    X_, y_, X_new_ = (stand_in.asarray(a) for a in problem)
    model = SelfDistilledKernelRidge("rbf", gamma=0.3, lam=0.1, n_steps=3)
    expected = model.fit(X, y)
    scores, predictions = expected.loo_mse_, expected.predict(X_new)
    model = SelfDistilledKernelRidge("rbf", gamma=0.3, lam=0.1, n_steps=3).fit(X_, y_)
    assert_close(model.loo_mse_, scores, 1e-10)
    assert isinstance(model.predict(X_new_), stand_in.ndarray)
    assert isinstance(model.dual_coef_, stand_in.ndarray)
    assert_close(model.predict(X_new_), predictions, 1e-8)
    assert model.n_features_in_ == 3
    with pytest.raises(ValueError, match="features"):
        model.predict(stand_in.asarray(X_new[:, :2]))
    weights = stand_in.asarray(np.linspace(0.5, 2, 40))
    model.fit(X_, y_, weights, X_val=X_new_, y_val=X_new_[:, 0])
    cv = {"lams": [0.01, 0.1, 1.0], "gammas": [0.1, 0.3, 1.0], "max_steps": 2, "cv": 4}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        a = SelfDistilledKernelRidgeCV(**cv).fit(X, y)
        b = SelfDistilledKernelRidgeCV(**cv).fit(X_, y_)
    assert_close(b.cv_results_["mse"], a.cv_results_["mse"], 1e-8)
    assert isinstance(b.predict(X_new_), stand_in.ndarray)


def test_other_libraries_get_their_own_kind(stand_in, monkeypatch, problem):
    """By DLPack both ways: a namespace with from_dlpack, an array that names its device."""
    X, _, _ = problem

    class Tensor:
        __module__ = "torch"  # the top package is what counts
        layout, is_nested, is_quantized = "torch.strided", False, False
        device = types.SimpleNamespace(type="cuda", index=0)

        def __init__(self, array):
            self.array = array
            self.shape, self.dtype = array.shape, f"torch.{array.dtype}"

        def detach(self):
            return self

        resolve_neg = detach

        def is_complex(self):
            return False

        def is_floating_point(self):
            return True

        def __dlpack__(self, **options):
            return stand_in.asnumpy(self.array).__dlpack__(**options)

        def __dlpack_device__(self):
            return 2, 0

    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(from_dlpack=Tensor))
    K = gram(Tensor(stand_in.asarray(X)), kernel=RBF(0.3))
    assert isinstance(K, Tensor)
    assert_close(K.array, gram(X, kernel=RBF(0.3)), 1e-14)


def test_mixed_devices_name_the_argument(stand_in, problem):
    X, y, _ = problem
    on_device = stand_in.asarray(X)
    with pytest.raises(TypeError, match=r"^Y is on the host, but X is on GPU 0.*one device"):
        spectrum(on_device, y, RBF(1.0))
    with pytest.raises(TypeError, match=r"^Z is on GPU 0, but X is on the host"):
        gram(X, on_device, RBF(1.0))
    with pytest.raises(TypeError, match=r"^W is on the host"):
        gram_matmul(on_device, None, X, RBF(1.0))
    with pytest.raises(TypeError, match=r"^X is on GPU 0, but Cpu"):
        gram(on_device, kernel=RBF(1.0), backend="cpu")
    s = spectrum(X, y, RBF(1.0))
    with pytest.raises(TypeError, match="y_val is on"):
        distill(s, 0.1, "optimal", 2, X_val=X, y_val=stand_in.asarray(y))
    with pytest.raises(TypeError, match="GPU 0, but backend='cpu'"):
        distill(s, 0.1, 0.5, 2).predict(on_device)


def test_bad_input_on_a_device(stand_in):
    xp = stand_in
    bad = np.ones((4, 2))
    bad[2, 1] = np.nan
    with pytest.raises(ValueError, match=r"X contains NaN or infinity \(first at index \(2, 1\)\)"):
        gram(xp.asarray(bad))
    with pytest.raises(ValueError, match="2 dimension"):
        gram(xp.asarray(np.ones(3)))
    with pytest.raises(TypeError, match="real numbers"):
        gram(xp.asarray(np.ones((2, 2), complex)))
    assert gram(xp.asarray(np.ones((2, 2), np.int32))).dtype == np.float64
    assert gram(xp.asarray(np.ones((2, 2), np.float16))).dtype == np.float32


def test_models_move(stand_in, problem, tmp_path):
    X, y, X_new = problem
    path = distill(spectrum(X, y, RBF(0.3), backend="gpu"), 0.1, 0.4, 3)
    assert isinstance(path.dual_coef(), np.ndarray)
    path.save(tmp_path / "model.npz")
    expected = path.predict(X_new)
    for backend in ("cpu", "gpu"):
        loaded = DistillationPath.load(tmp_path / "model.npz", backend=backend)
        assert_close(loaded.predict(X_new), expected, 1e-13)
    s = spectrum(X, y, RBF(0.3), backend="gpu")
    assert pickle.loads(pickle.dumps(s.backend)).device == 0


def test_several_devices(problem):
    from conftest import standing_in

    X, y, X_new = problem
    with standing_in(2) as xp:
        assert cuda_loader.devices() == [0, 1]
        second = Gpu(device=1)
        assert repr(second) == "Gpu(device=1)"
        assert second.with_threads(2).device == 1
        s = spectrum(X, y, RBF(0.3), backend=second)
        assert s.V.device.id == 1  # while device 0 is the current one
        path = distill(s, 0.1, "optimal", 3)
        assert_close(path.predict(X_new), distill(spectrum(X, y, RBF(0.3)), 0.1, "optimal", 3)
                     .predict(X_new), 1e-8)  # fmt: skip
        leave_one_out(s, 0.1, 0.5, 2)
        with xp.cuda.Device(1):
            there = xp.asarray(X)
        assert get_backend(None, {"X": there}).device == 1
        with pytest.raises(TypeError, match="X is on GPU 1, but Gpu"):
            gram(there, backend=Gpu(device=0))
        with pytest.raises(TypeError, match="Z is on GPU 0, but X is on GPU 1"):
            gram(there, xp.asarray(X))
        with pytest.raises(GpuUnavailable, match="no GPU 7: CUDA reports 2"):
            Gpu(device=7)


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_blocks_are_streamed_ahead(stand_in, rng, count):
    """Copies are seen only by who waits for them, and pinned memory is not written too early."""
    blocks = [(rng.normal(size=(4 - i % 2, 3)), None, np.arange(i + 1.0)) for i in range(count)]
    for backend in (Gpu(), Cpu()):
        seen = [
            tuple(None if a is None else host(a).copy() for a in block)
            for block in backend.stream(iter(blocks))
        ]
        assert len(seen) == count
        for block, expected in zip(seen, blocks, strict=True):
            for a, b in zip(block, expected, strict=True):
                assert (a is None and b is None) or np.array_equal(a, b)


def test_rows_of_a_file_are_streamed_to_the_device(stand_in, monkeypatch, problem, tmp_path):
    X, y, X_new = problem
    np.save(tmp_path / "X.npy", X)
    stored = np.load(tmp_path / "X.npy", mmap_mode="r")
    sent = []
    real = Gpu.stream

    def counted(self, blocks):
        for block in real(self, blocks):
            sent.append(block[0].shape)
            yield block

    monkeypatch.setattr(Gpu, "stream", counted)
    module = importlib.import_module("selfdistill_fast._solvers.sources.stored")
    monkeypatch.setattr(module, "_RANGE", 16)
    options = {"solver": "nystrom", "n_landmarks": 15, "random_state": 0}
    ours = spectrum(stored, y, RBF(0.3), backend="gpu", **options)
    assert sent[:3] == [(16, 3), (16, 3), (8, 3)]
    expected = distill(spectrum(X, y, RBF(0.3), **options), 0.1, 0.4, 3).predict(X_new)
    assert_close(distill(ours, 0.1, 0.4, 3).predict(X_new), expected, 1e-9)


def test_a_sweep_spreads_over_the_devices(monkeypatch, problem):
    pytest.importorskip("xarray")
    from conftest import standing_in
    from selfdistill_fast import sweep

    X, y, _ = problem
    options = {"kernels": [RBF(g) for g in (0.1, 0.3, 1.0, 3.0)], "lams": [0.1, 1.0],
               "alphas": ["optimal", 0.5], "n_steps": 2, "progress": False}  # fmt: skip
    expected = sweep(X, y, **options).dataset.mse_loo.values
    used = set()
    real = Gpu.gram

    def seen(self, *args, **kwargs):
        used.add(self.device)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Gpu, "gram", seen)
    with standing_in(2) as xp:
        spread = sweep(X, y, backend="gpu", **options).dataset.mse_loo.values
        assert used == {0, 1}
        there = sweep(xp.asarray(X), xp.asarray(y), **options).dataset.mse_loo.values
    assert_close(spread, expected, 1e-8)
    assert_close(there, expected, 1e-8)


# ------------------------------------------------------------------ no GPU, and why


class CUDARuntimeError(RuntimeError):
    """As CuPy's."""


def broken_cupy(*, driver, needed=12090, count=None, cusolver=True):
    def fail():
        raise CUDARuntimeError("cudaErrorInsufficientDriver: too old")

    runtime = types.SimpleNamespace(
        CUDARuntimeError=CUDARuntimeError,
        getDeviceCount=fail if count is None else lambda: count,
        driverGetVersion=lambda: driver,
        runtimeGetVersion=lambda: needed,
    )
    cuda = types.SimpleNamespace(runtime=runtime, cublas=object())
    if cusolver:
        cuda.cusolver = object()
    return types.SimpleNamespace(cuda=cuda)


def missing(name):
    raise ModuleNotFoundError(f"No module named {name!r}", name="cupy")


@pytest.mark.parametrize(
    ("cupy", "message"),
    [
        (None, r"needs CuPy, which is not installed; pip install 'selfdistill_fast\[cuda\d*\]'"),
        ({"driver": 0}, "no NVIDIA driver: install one"),
        (
            {"driver": 11040},
            r"driver is too old: it supports CUDA 11\.4, .*12\.9.*Update.*cuda12\]",
        ),
        ({"driver": 12090, "count": 0}, "CUDA reports none"),
        ({"driver": 13000}, "cudaErrorInsufficientDriver"),
        ({"driver": 13000, "count": 1, "cusolver": False}, r"cannot load cusolver.*\[cuda\d*\]"),
    ],
)
def test_why_there_is_no_gpu(monkeypatch, problem, cupy, message):
    X, y, X_new = problem
    module = None if cupy is None else broken_cupy(**cupy)
    real = importlib.import_module
    monkeypatch.setattr(
        importlib, "import_module",
        lambda name: real(name) if name != "cupy" else missing(name) if cupy is None else module,
    )  # fmt: skip
    for call in (
        lambda: spectrum(X, y, RBF(0.3), backend="gpu"),
        lambda: gram(X, backend="gpu"),
        lambda: SelfDistilledKernelRidge(backend="gpu").fit(X, y),
    ):
        with pytest.raises(GpuUnavailable, match=message):
            call()
    assert cuda_loader.devices() == []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        s = spectrum(X, y, RBF(0.3), backend="auto")
        K = gram(X, kernel=RBF(0.3), backend="auto")
        model = SelfDistilledKernelRidge("rbf", gamma=0.3, backend="auto").fit(X, y)
    assert len(caught) == 1  # one warning, however often it is asked for
    assert caught[0].category is RuntimeWarning
    assert re.search(message, str(caught[0].message))
    assert caught[0].filename == __file__
    assert isinstance(s.backend, Cpu)
    np.testing.assert_array_equal(K, gram(X, kernel=RBF(0.3)))
    on_cpu = SelfDistilledKernelRidge("rbf", gamma=0.3, backend="cpu").fit(X, y)
    np.testing.assert_array_equal(model.predict(X_new), on_cpu.predict(X_new))


def test_out_of_memory_in_the_middle(stand_in, monkeypatch, problem):
    X, y, _ = problem
    worth_moving(monkeypatch)
    calls = []

    def full(self, K):
        calls.append(1)
        raise stand_in.cuda.memory.OutOfMemoryError("Out of memory allocating 9 bytes")

    monkeypatch.setattr(Gpu, "eigh", cuda_device.guarded(full))
    with pytest.raises(MemoryError, match=r"GPU 0 ran out of memory .*allocating 9.*krylov"):
        spectrum(X, y, RBF(0.3), solver="eigh", backend="gpu")
    with pytest.warns(RuntimeWarning, match=r"continues on the CPU: GPU 0 ran out") as caught:
        s = spectrum(X, y, RBF(0.3), solver="eigh", backend="auto")
    assert len(caught) == 1
    assert isinstance(s.backend, Cpu)
    assert len(calls) == 2
    assert_close(s.d, spectrum(X, y, RBF(0.3), solver="eigh").d, 0.0)


@pytest.mark.parametrize("breaks", ["while it computes", "out of memory"])
def test_a_broken_device_does_not_keep_auto_from_the_cpu(stand_in, monkeypatch, problem, breaks):
    """After a sticky error every call fails, also those that give memory back."""
    X, y, _ = problem
    worth_moving(monkeypatch)
    sticky = type("CUDARuntimeError", (RuntimeError,), {"__module__": "cupy_backends.cuda"})
    message = "cudaErrorIllegalAddress: an illegal memory access was encountered"

    def broken(*_, **__):
        raise sticky(message)

    def fail(self, K):
        monkeypatch.setattr(stand_in, "get_default_memory_pool", broken)
        monkeypatch.setattr(stand_in.cuda.runtime, "memGetInfo", broken)
        if breaks == "out of memory":
            raise stand_in.cuda.memory.OutOfMemoryError("Out of memory allocating 9 bytes")
        raise sticky(message)

    monkeypatch.setattr(Gpu, "eigh", cuda_device.guarded(fail))
    words = r"continues on the CPU: .*" + ("illegal" if "while" in breaks else "allocating 9 bytes")
    with pytest.warns(RuntimeWarning, match=words):
        s = spectrum(X, y, RBF(0.3), solver="eigh", backend="auto")
    assert isinstance(s.backend, Cpu)
    assert_close(s.d, spectrum(X, y, RBF(0.3), solver="eigh").d, 0.0)
    # and the next call does not even try
    monkeypatch.setattr(offload, "CORE_FLOPS", 1.0)
    monkeypatch.setattr(offload, "_warned", set())
    rates._rates.clear()
    with pytest.warns(RuntimeWarning, match="computes on the CPU: .*illegal"):
        assert isinstance(spectrum(X, y, RBF(0.3), backend="auto").backend, Cpu)
    assert_close(gram(X, kernel=RBF(0.3), backend="auto"), gram(X, kernel=RBF(0.3)), 0.0)


def test_memory_is_budgeted_before_it_is_allocated(stand_in, monkeypatch, problem):
    X, y, _ = problem
    monkeypatch.setattr(Gpu, "available_memory", lambda self: 40_000)
    with pytest.raises(MemoryError, match="are allowed"):
        spectrum(X, y, RBF(0.3), solver="eigh", backend="gpu")
    with pytest.raises(MemoryError, match=r"K of shape \(40, 400\) needs"):
        gram(X, np.repeat(X, 10, 0), RBF(0.3), backend="gpu")
    assert Gpu().eigh_bytes(40, "float64") > 3 * 40 * 40 * 8  # the workspace is counted


# ------------------------------------------------------------------ "auto"


def worth_moving(monkeypatch, *, factor=1e3):
    """Rates at which the GPU is ``factor`` times as fast as the CPU, and nothing is small."""
    slow = dict.fromkeys(planning.Rates.__dataclass_fields__, 1e-06)
    fast = dict.fromkeys(slow, 1e-06 / factor)
    monkeypatch.setattr(planning, "WORTH_MOVING", 0.0)
    monkeypatch.setattr(planning, "NOMINAL", planning.Rates(**slow))
    monkeypatch.setattr(Gpu, "rates", lambda self, dtype: fast)
    monkeypatch.setattr(cuda_device, "WAKE_UP", 0.0)
    rates._rates.clear()


def test_auto_moves_what_pays_and_says_why(stand_in, monkeypatch, problem):
    X, y, X_new = problem
    worth_moving(monkeypatch)
    s = spectrum(X, y, RBF(0.3), backend="auto")
    assert s.backend.name == "gpu"
    predictions = distill(s, 0.1, 0.5, 2).predict(X_new)
    assert isinstance(predictions, np.ndarray)
    assert_close(predictions, distill(spectrum(X, y, RBF(0.3)), 0.1, 0.5, 2).predict(X_new), 1e-9)
    report = str(plan(1000, 3, backend="auto"))
    assert "on the GPU" in report
    assert "moving data" in report
    worth_moving(monkeypatch, factor=0.5)
    assert spectrum(X, y, RBF(0.3), backend="auto").backend.name == "cpu"
    assert "on the CPU" in plan(1000, 3, backend="auto").reason
    worth_moving(monkeypatch)
    monkeypatch.setattr(Gpu, "available_memory", lambda self: 1000)
    assert spectrum(X, y, RBF(0.3), backend="auto").backend.name == "cpu"
    assert "does not fit" in plan(1000, 3, backend="auto").reason
    rates._rates.clear()


def test_auto_moves_products_that_pay(stand_in, monkeypatch, problem):
    X, _, _ = problem
    W = np.ones((40, 2))
    used = []
    real = Gpu.gram_matmul
    monkeypatch.setattr(
        Gpu, "gram_matmul", lambda self, *a, **k: used.append(1) or real(self, *a, **k)
    )
    expected = gram_matmul(X, None, W, Laplacian(0.3))
    np.testing.assert_array_equal(gram_matmul(X, None, W, Laplacian(0.3), backend="auto"), expected)
    assert not used
    monkeypatch.setattr(offload, "CORE_FLOPS", 1.0)
    moved = gram_matmul(X, None, W, Laplacian(0.3), backend="auto")
    assert used
    assert isinstance(moved, np.ndarray)
    assert_close(moved, expected, 1e-13)


# ------------------------------------------------------------------ the stand-in, and CuPy


def test_the_stand_in_is_strict(stand_in):
    xp, a = stand_in, np.ones(3)
    b = xp.asarray(a)
    for forbidden in (
        lambda: np.asarray(b), lambda: b + a, lambda: a + b, lambda: b.__setitem__(0, a[:1]),
        lambda: b[np.array([0])], lambda: a[b.astype(int)], lambda: xp.maximum(a, b),
        lambda: np.maximum(a, b), lambda: b.__iadd__(a), lambda: a.__iadd__(b),
        lambda: b.max(initial=0.0), lambda: xp.stack([a, a]),
    ):  # fmt: skip
        with pytest.raises((TypeError, IndexError)):
            forbidden()
    assert isinstance(b.sum(), xp.ndarray)
    assert isinstance(b[0], xp.ndarray)
    assert not hasattr(xp.linalg, "LinAlgError")
    assert float(2.0 * b.sum() * np.float64(0.5)) == 3.0


def test_cupy_has_what_the_stand_in_has(stand_in):
    """Names and keywords, where CuPy is installed; needs no device."""
    cupy = pytest.importorskip("cupy")
    import inspect

    import cupy_stand_in

    for name in [n for n in vars(stand_in) if not n.startswith("_")]:
        assert hasattr(cupy, name), name
    for name, method in vars(cupy_stand_in.Array).items():
        if not name.startswith("_"):
            assert hasattr(cupy.ndarray, name), name
            document = getattr(cupy.ndarray, name).__doc__ or ""
            if inspect.isfunction(method) and "(self" in document.split("\n")[0]:
                for parameter in list(inspect.signature(method).parameters)[1:]:
                    assert parameter in document.split("\n")[0] or parameter in (
                        "args", "axes", "shape",
                    ), f"{name}: {parameter}"  # fmt: skip
    for name in ("Device", "runtime", "device"):
        assert hasattr(cupy.cuda, name)
    for name in vars(stand_in.cuda.runtime):
        assert hasattr(cupy.cuda.runtime, name), name


def test_the_wheel_has_the_sources():
    source = cuda_kernels.cuda_source()
    assert "gram_squares" in source or "gram_##name" in source
    assert "SDF_KERNELS" in source
    root = importlib.resources.files("selfdistill_fast")
    assert (root / "_backend" / "kernels.cu").is_file()
    assert (root / "include" / "formulas.h").is_file()


def test_show_config_reports_the_gpu(stand_in, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", stand_in)
    found = selfdistill_fast.show_config()["gpu"]
    assert "1 device" in found["status"]
    assert found["devices"][0]["name"] == "stand-in"


@pytest.mark.parametrize("kernel", [RBF(0.4), Laplacian(0.3), NTK(2)])
def test_float32_is_within_its_stated_bound(stand_in, problem, kernel):
    X, y, X_new = problem
    single = [stand_in.asarray(a.astype(np.float32)) for a in (X, y, X_new)]
    path = distill(spectrum(single[0], single[1], kernel), 0.5, 0.3, 3)
    predictions = path.predict(single[2], "all")
    assert predictions.dtype == np.float32
    s = spectrum(X, y, kernel)
    exact = distill(s, 0.5, 0.3, 3)
    bound = 100 * 2.0**-23 * float(s.d[-1]) / 0.5 * np.abs(exact.step_weights).sum(1).max()
    assert_close(predictions, exact.predict(X_new, "all"), max(1e-5, bound))
    assert host(predictions).shape == (3, 7)


def test_everything_follows_the_device_of_X(stand_in, problem):
    """y, weights and validation data elsewhere are moved to X, as scikit-learn does."""
    X, y, X_new = problem
    w = np.linspace(0.5, 2.0, len(X))
    held = {"X_val": X_new, "y_val": X_new[:, 0], "sample_weight_val": np.ones(len(X_new))}

    def away(given):
        return {name: stand_in.asarray(array) for name, array in given.items()}

    for make in (
        lambda: SelfDistilledKernelRidge(gamma=0.3, lam=0.1),
        lambda: SelfDistilledKernelRidgeCV(lams=[0.01, 0.1, 1.0], gammas=[0.3]),
    ):
        expected = make().fit(X, y, w, **held).predict(X_new)
        on_host = make().fit(X, stand_in.asarray(y), stand_in.asarray(w), **away(held))
        assert isinstance(on_host.dual_coef_, np.ndarray)
        assert_close(on_host.predict(X_new), expected, 1e-10)
        on_device = make().fit(stand_in.asarray(X), y, w, **held)
        assert isinstance(on_device.dual_coef_, stand_in.ndarray)
        assert_close(on_device.predict(X_new), expected, 1e-8)


def test_classifiers_on_a_device(stand_in, problem):
    X, y, X_new = problem
    labels = np.where(np.ravel(y)[: len(X)] > 0, "yes", "no")
    for model in (
        SelfDistilledKernelRidgeClassifier(gamma=0.3, lam=0.1, class_weight="balanced"),
        SelfDistilledKernelRidgeClassifierCV(lams=[0.01, 0.1, 1.0], gammas=[0.3], cv=3),
    ):
        expected = model.fit(X, labels).decision_function(X_new)
        there = model.fit(stand_in.asarray(X), labels, stand_in.asarray(np.ones(len(X))))
        assert isinstance(there.dual_coef_, stand_in.ndarray)
        actual = there.decision_function(stand_in.asarray(X_new))
        assert isinstance(actual, np.ndarray)
        assert_close(actual, expected, 1e-8)
        assert set(there.predict(stand_in.asarray(X_new))) <= {"yes", "no"}
