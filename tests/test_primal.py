"""solver="primal": the exact chain in feature space, and feature maps of the caller."""

from __future__ import annotations

import math
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import tolerance
from sklearn.kernel_approximation import RBFSampler
from sklearn.linear_model import Ridge, RidgeCV

from selfdistill_fast import (
    RBF,
    Features,
    Linear,
    SelfDistilledKernelRidge,
    constrained_path,
    distill,
    gram,
    gram_matmul,
    gram_sweep,
    leave_fold_out,
    leave_one_out,
    load,
    plan,
    spectrum,
    sweep,
)

SHAPES = {"tall": (60, 7), "wide": (30, 45), "rank-deficient": (50, 10)}
RTOL = {"float64": 1e-11, "float32": 2e-4}


def problem(shape, dtype="float64", seed=0, columns=2):
    rng = np.random.default_rng(seed)
    n, d = SHAPES[shape]
    X = rng.standard_normal((n, d)) + 1.0
    if shape == "rank-deficient":
        X[:, d // 2 :] = X[:, : d - d // 2]
    y = X[:, :1] + rng.standard_normal((n, columns))
    return X.astype(dtype), y if columns > 1 else y[:, 0]


def weights(n, kind, seed=1):
    if kind == "none":
        return None
    w = np.random.default_rng(seed).uniform(0.2, 3.0, n)
    w[:6] = 0.0
    return w


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("kind", ["none", "zeros"])
def test_equals_eigh(shape, dtype, intercept, kind):
    X, y = problem(shape, dtype)
    X_new = problem(shape, dtype, seed=5)[0][:5]
    options = {"sample_weight": weights(len(X), kind), "fit_intercept": intercept}
    ours = spectrum(X, y, Linear(), solver="primal", block=17, **options)
    wide = X.astype("float64"), y, Linear()
    reference = spectrum(*wide, solver="eigh", **options)
    lams, lam_steps = np.array([0.5, 8.0]), [0.5, 0.2, 3.0]

    def answers(s):
        path = distill(s, 0.5, 0.4, 3)
        yield "every step", path.predict(X_new, step="all")
        yield "limit", path.predict(X_new, step=math.inf)
        yield "schedule", distill(s, None, 0.4, 3, lam_steps=lam_steps).predict(X_new, step="all")
        yield "optimal α", distill(s, 0.5, "optimal", 3).predict(X_new, step="all")
        yield "leave-one-out", leave_one_out(s, lams, 0.4, 3)
        yield "its schedule", leave_one_out(s, None, 0.4, 3, lam_steps=lam_steps)
        yield "folds", leave_fold_out(s, lams, [0.4, -0.2], 3, 4)
        yield "diagonals", s.diag_powers(0.5, 2)
        yield "coef", path.coef("all")
        yield "intercept", path.intercept("all")
        yield "dual", gram(X_new, ours.basis if s is ours else X, Linear()) @ path.dual_coef()

    for (name, actual), (_, expected) in zip(answers(ours), answers(reference), strict=True):
        tolerance.assert_close(actual, expected, RTOL[dtype], what=name)
        assert actual.dtype == dtype or name == "dual"


@pytest.mark.parametrize("kind", ["none", "zeros"])
@pytest.mark.parametrize("intercept", [False, True])
def test_first_step_is_ridge(kind, intercept):
    X, y = problem("tall")
    w = weights(len(X), kind)
    ridge = Ridge(alpha=0.7, fit_intercept=intercept).fit(X, y, sample_weight=w)
    s = spectrum(X, y, Linear(), solver="primal", fit_intercept=intercept, sample_weight=w)
    path = distill(s, 0.7, 0.5, 2)
    tolerance.assert_close(path.coef(1), ridge.coef_.T, 1e-11)
    if intercept:
        tolerance.assert_close(path.intercept(1), ridge.intercept_, 1e-11)


@pytest.mark.parametrize("intercept", [False, True])
def test_leave_one_out_is_that_of_ridge_cv(intercept):
    X, y = problem("tall")
    lams = np.geomspace(0.01, 100.0, 5)
    cv = RidgeCV(alphas=lams, fit_intercept=intercept, store_cv_results=True).fit(X, y)
    s = spectrum(X, y, Linear(), solver="primal", fit_intercept=intercept)
    squares = (leave_one_out(s, lams, 0.5, 1)[:, 0] - y) ** 2
    tolerance.assert_close(np.moveaxis(squares, 0, -1), cv.cv_results_, 1e-10)
    assert lams[squares.mean((1, 2)).argmin()] == cv.alpha_


def test_auto_takes_it_where_there_are_more_rows_than_features():
    tall, wide = problem("tall"), problem("wide")
    assert spectrum(*tall, Linear()).name == "primal"
    assert spectrum(*wide, Linear()).name != "primal"
    assert plan(10**6, 50, kernel=Linear(), leave_one_out=True).solver == "primal"
    assert "Linear()" in plan(100, 5, kernel=RBF(1.0))["primal"].excluded


def test_other_kernels_are_refused():
    with pytest.raises(ValueError, match=r"kernel Linear\(\), or Features"):
        spectrum(*problem("tall"), RBF(1.0), solver="primal")


@pytest.mark.parametrize(("size", "word"), [(1e-180, "underflows"), (1e180, "overflows")])
def test_squares_out_of_range_are_refused(size, word):
    X, y = problem("tall")
    with pytest.raises(ValueError, match=word):
        spectrum(X * size, y, Linear(), solver="primal")


def test_zero_rows_are_no_underflow():
    X, y = problem("tall")
    s = spectrum(0.0 * X, y, Linear(), solver="primal", fit_intercept=True)
    expected = np.broadcast_to(y.mean(0), (3, 2))
    tolerance.assert_close(distill(s, 1.0, 0.5, 2).predict(X[:3]), expected, 1e-14)


def test_rows_far_from_the_first_block():
    """The sums are centred near the mean, or computed again."""
    X, y = problem("tall", columns=1)
    w = np.ones(len(X))
    X[:10], w[:10] = X[:10] + 1e6, 1e-14
    options = {"sample_weight": w, "fit_intercept": True}
    ours = spectrum(X, y, Linear(), solver="primal", block=10, **options)
    reference = spectrum(X, y, Linear(), solver="eigh", **options)
    actual, expected = (distill(s, 0.5, 0.4, 3).predict(X[10:]) for s in (ours, reference))
    tolerance.assert_close(actual, expected, 1e-10)


def test_saved_model_predicts_the_same(tmp_path):
    X, y = problem("tall")
    path = distill(spectrum(X, y, Linear(), solver="primal", fit_intercept=True), 0.5, 0.4, 3)
    path.save(tmp_path / "model.npz")
    again = load(tmp_path / "model.npz")
    np.testing.assert_array_equal(again.predict(X, step="all"), path.predict(X, step="all"))
    np.testing.assert_array_equal(again.coef(), path.coef())


def test_constrained_path_equals_that_of_eigh():
    X, y = problem("tall", columns=1)
    ours, reference = (spectrum(X, y, Linear(), solver=name) for name in ("primal", "eigh"))
    tol = 1.1 * float(np.square(distill(reference, 1e-3, 0.5, 1).predict(X) - y).mean())
    actual, expected = (constrained_path(s, tol, max_steps=3).path for s in (ours, reference))
    tolerance.assert_close(actual.predict(X[:4]), expected.predict(X[:4]), 1e-8)


# ------------------------------------------------------------------ where the rows are
def sources(X, tmp_path, chunk):
    da, zarr = pytest.importorskip("dask.array"), pytest.importorskip("zarr")
    np.save(tmp_path / "X.npy", X)
    stored = zarr.create_array(
        str(tmp_path / "X.zarr"), shape=X.shape, dtype=X.dtype, chunks=X.shape
    )
    stored[...] = X
    yield "memory map", np.load(tmp_path / "X.npy", mmap_mode="r")
    yield "zarr", stored
    yield "chunks", [X[:20], X[20:21], X[21:]]
    yield "dask", da.from_array(X, chunks=(chunk, X.shape[1]))


@pytest.mark.parametrize("kernel", [Linear(), Features(np.tanh)], ids=["linear", "features"])
@pytest.mark.parametrize("intercept", [False, True])
def test_same_bits_wherever_the_rows_are(kernel, intercept, tmp_path):
    X, y = problem("tall")
    options = {"solver": "primal", "block": 13, "fit_intercept": intercept}
    held = spectrum(X, y, kernel, **options)
    expected = leave_one_out(held, 0.3, 0.5, 3), distill(held, 0.3, 0.5, 3).predict(X)
    for name, rows in sources(X, tmp_path, 13):
        s = spectrum(rows, y, kernel, **options)
        actual = leave_one_out(s, 0.3, 0.5, 3), distill(s, 0.3, 0.5, 3).predict(X)
        for a, b in zip(actual, expected, strict=True):
            np.testing.assert_array_equal(a, b, err_msg=name)


def test_dask_predictions_are_lazy():
    da = pytest.importorskip("dask.array")
    X, y = problem("tall")
    path = distill(spectrum(X, y, Features(np.tanh), solver="primal"), 0.3, 0.5, 2)
    lazy = path.predict(da.from_array(X, chunks=(20, 7)))
    assert isinstance(lazy, da.Array)
    tolerance.assert_close(lazy.compute(), path.predict(X), 1e-12)


def test_chunks_need_a_solver_that_streams():
    X, y = problem("tall")
    with pytest.raises(TypeError, match="solver='primal', which is exact"):
        spectrum([X[:30], X[30:]], y, Linear(), solver="eigh")


# ------------------------------------------------------------------ feature maps
SOLVERS = ["eigh", "cholesky", "tridiagonal", "krylov", "primal", "nystrom", "auto"]


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_serves_a_feature_map(solver):
    X, y = problem("tall")
    sampler = RBFSampler(gamma=0.1, n_components=20, random_state=0).fit(X)
    options = {} if solver in ("eigh", "tridiagonal", "primal", "nystrom", "auto") else {"lam": 0.3}
    if solver == "krylov":
        options["tol"] = 1e-11
    s = spectrum(X, y, Features(sampler), solver=solver, **options)
    reference = spectrum(sampler.transform(X), y, Linear(), solver="eigh")
    actual = distill(s, 0.3, 0.5, 3).predict(X, step="all")
    expected = distill(reference, 0.3, 0.5, 3).predict(sampler.transform(X), step="all")
    tolerance.assert_close(actual, expected, 1e-9)


def test_samples_may_be_anything_that_the_map_takes():
    words = ["a", "bb", "ccc", "dddd", "eeeee"]
    lengths = Features(lambda texts: np.array([[float(len(text))] for text in texts]))
    for solver in ("primal", "eigh"):
        s = spectrum(words, np.arange(1.0, 6.0), lengths, solver=solver)
        path = distill(s, 1e-9, 0.5, 2)
        tolerance.assert_close(path.predict(["x" * 7, ""]), np.array([7.0, 0.0]), 1e-6)


def test_gram_of_a_feature_map():
    X, _ = problem("tall")
    kernel, phi = Features(np.tanh), np.tanh(X)
    tolerance.assert_close(gram(X, X[:3], kernel), phi @ phi[:3].T, 1e-13)
    w = np.ones(len(X))
    tolerance.assert_close(gram_matmul(X, None, w, kernel), phi @ (phi.T @ w), 1e-13)


def test_an_estimator_takes_a_feature_map():
    X, y = problem("tall", columns=1)
    model = SelfDistilledKernelRidge(Features(np.tanh), lam=0.3, n_steps=2).fit(X, y)
    reference = SelfDistilledKernelRidge(Linear(), lam=0.3, n_steps=2).fit(np.tanh(X), y)
    tolerance.assert_close(model.predict(X), reference.predict(np.tanh(X)), 1e-12)
    tolerance.assert_close(np.tanh(X) @ model.coef_, model.predict(X), 1e-12)
    with pytest.raises(AttributeError, match="linear kernel"):
        _ = SelfDistilledKernelRidge().fit(X, y).coef_


@pytest.mark.parametrize(
    ("function", "error", "words"),
    [
        (lambda X: X.sum(1), ValueError, r"array \(n, D\).*shape \(60,\)"),
        (lambda X: X[:5], ValueError, r"shape \(5, 7\)"),
        (lambda X: "text", ValueError, "it returned str"),
        (lambda X: X * np.nan, ValueError, "NaN"),
    ],
)
def test_bad_feature_maps(function, error, words):
    with pytest.raises(error, match=words):
        spectrum(*problem("tall"), Features(function), solver="primal")


def test_what_a_feature_map_cannot_do(tmp_path):
    X, y = problem("tall", columns=1)
    with pytest.raises(TypeError, match="must be callable"):
        Features(3)
    with pytest.raises(ValueError, match="share one distance"):
        gram_sweep(X, None, [Features(np.tanh)])
    with pytest.raises(ValueError, match=r"X=function\(X\) and Linear"):
        sweep(X, y, kernels=[Features(np.tanh)], lams=[1.0], n_steps=2)
    path = distill(spectrum(X, y, Features(np.tanh)), 1.0, 0.5, 2)
    with pytest.raises(TypeError, match="feature map cannot be saved"):
        path.save(tmp_path / "model.npz")
    with pytest.raises(ValueError, match="needs a linear model"):
        distill(spectrum(X, y, RBF(1.0)), 1.0, 0.5, 2).coef()


MEMORY = """
    import sys
    import numpy as np
    from selfdistill_fast import Linear, leave_one_out, spectrum
    from selfdistill_fast._backend import get_backend
    from selfdistill_fast._solvers.primal import _bytes

    kind, dtype, n, d, path = sys.argv[1:]
    n, d, p = int(n), int(d), 2
    X = np.load(path, mmap_mode="r" if kind == "memmap" else None)
    y = np.random.default_rng(1).standard_normal((n, p))
    spectrum(np.array(X[:300]), y[:300], Linear(), solver="primal")  # libraries' own buffers
    def status(name):
        with open("/proc/self/status", encoding="utf-8") as file:
            return next(int(line.split()[1]) for line in file if line.startswith(name)) * 1024
    with open("/proc/self/clear_refs", "w", encoding="utf-8") as file:
        file.write("5")
    before = status("VmRSS")
    spectrum(X, y, Linear(), solver="primal", fit_intercept=True)
    peak = status("VmHWM") - before
    said = _bytes(get_backend(), n, d, p, X.dtype, streaming=kind == "memmap")
    if kind == "memmap":
        said += X.nbytes  # pages of the file that the system keeps
    print(peak, said)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc to measure memory")
@pytest.mark.parametrize("kind", ["array", "memmap"])
@pytest.mark.parametrize(("dtype", "n", "d"), [("float32", 100_000, 128), ("float64", 4000, 1000)])
def test_memory_is_what_it_says(kind, dtype, n, d, tmp_path):
    path = tmp_path / "X.npy"
    np.save(path, np.random.default_rng(0).standard_normal((n, d)).astype(dtype))
    code = textwrap.dedent(MEMORY)
    arguments = [sys.executable, "-c", code, kind, dtype, str(n), str(d), str(path)]
    result = subprocess.run(arguments, capture_output=True, encoding="utf-8", check=True)
    peak, said = map(int, result.stdout.split())
    assert peak <= 1.05 * said
    assert peak >= 0.3 * said


@pytest.mark.parametrize("solver", ["primal", "auto"])
def test_features_far_from_0_keep_their_digits(solver, rng, recwarn):
    """Rounding is that of the centred sums: a column of times in seconds beside others."""
    X = rng.normal(size=(200, 3))
    y = X @ [1.0, 2.0, 3.0] + rng.normal(size=200)
    for shift, scale in ((0.0, 1.0), (1e6, 1.0), (1.7e9, 2.6e6)):
        rows = X.copy()
        rows[:, 0] = shift + scale * X[:, 0]
        s = spectrum(rows, y, Linear(), fit_intercept=True, solver=solver)
        centred = rows - rows.mean(0)
        # beside a feature of 2.6e6 the others are below rounding at λ = 1, and there is a warning
        for lam in (1.0, 100.0) if scale == 1.0 else (100.0,):
            expected = Ridge(lam, solver="svd").fit(centred, y).coef_
            actual = distill(s, lam, 0.5, 1).coef()
            np.testing.assert_allclose(actual, expected, rtol=1e-6)
    assert not [w for w in recwarn if "rounding" in str(w.message)]
