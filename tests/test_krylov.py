"""Krylov and tridiagonal spectra: agreement, and a certificate that is never violated."""

from __future__ import annotations

import pickle
import tracemalloc
import warnings
from concurrent.futures import ThreadPoolExecutor

import mpmath as mp
import numpy as np
import pytest
import tolerance
from hypothesis import given
from hypothesis import strategies as st
from tolerance import host

from selfdistill_fast import (
    RBF,
    Laplacian,
    SelfDistilledKernelRidge,
    constrained_path,
    distill,
    leave_fold_out,
    leave_one_out,
    spectrum,
    sweep,
)
from selfdistill_fast._chain.selection import gcv_alphas, score_grid
from selfdistill_fast._solvers.krylov import KrylovSpectrum, krylov_bytes
from selfdistill_fast._solvers.krylov.operator import KernelProduct
from selfdistill_fast._solvers.tridiagonal import TridiagonalSpectrum

LAMS = np.array([10.0, 0.3, 0.01])


def problem(rng, n=150, p=None, d=3):
    X = rng.normal(size=(n, d))
    Y = np.sin(2.0 * X.sum(1)) + 0.3 * rng.normal(size=n)
    if p is not None:
        Y = np.stack([Y * (j + 1) + np.cos(j * X[:, 0]) for j in range(p)], 1)
    return X, Y, rng.normal(size=(40, d))


def weights(rng, n):
    w = rng.uniform(0.2, 3.0, size=n)
    w[:: n // 7] = 0.0
    return w


CONFIGURATIONS = {
    "plain": {},
    "intercept": {"fit_intercept": True},
    "weights": {"sample_weight": True},
    "both": {"fit_intercept": True, "sample_weight": True},
}


@pytest.mark.parametrize("solver", ["krylov", "tridiagonal"])
@pytest.mark.parametrize("targets", [None, 1, 5])
@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_equals_eigh(backend, rng, solver, targets, configuration):
    X, Y, Xt = problem(rng, p=targets)
    options = dict(CONFIGURATIONS[configuration])
    if "sample_weight" in options:
        options["sample_weight"] = weights(rng, len(X))
    exact = spectrum(X, Y, RBF(0.4), solver="eigh", **options)
    other = spectrum(X, Y, RBF(0.4), solver=solver, lam=LAMS, backend=backend, **options)
    allowed = 1e-11 if solver == "tridiagonal" else tolerance.krylov()
    for lam in LAMS:
        for alpha in (0.0, 0.3, [0.1, 1.7, -0.4, 0.9]):
            expected = distill(exact, lam, alpha, 5)
            actual = distill(other, lam, alpha, 5)
            size = max(1.0, np.abs(expected.step_weights).sum(1).max()) * np.abs(Y).max()
            error = np.abs(actual.predict(Xt, "all") - expected.predict(Xt, "all")).max()
            assert error <= allowed * size
            if np.ndim(alpha) == 0:
                gap = actual.predict(Xt, np.inf) - expected.predict(Xt, np.inf)
                assert np.abs(gap).max() <= allowed * size
    steps = other.pure_steps(LAMS, 3)
    by_basis = host(other.project(Xt) @ steps + other.y_mean)
    native = other.backend.asarray(Xt)
    assert np.allclose(
        by_basis, host(other.evaluate(native, steps)), rtol=0, atol=tolerance.floor()
    )


@pytest.mark.parametrize("solver", ["krylov", "tridiagonal"])
def test_a_ridge_for_each_step(backend, rng, solver):
    X, Y, Xt = problem(rng, p=2)
    schedule = [0.5, 0.05, 2.0, 0.1]
    exact = distill(spectrum(X, Y, RBF(0.4)), None, 0.4, 4, lam_steps=schedule)
    other = spectrum(X, Y, RBF(0.4), solver=solver, lam=schedule, backend=backend)
    path = distill(other, None, 0.4, 4, lam_steps=schedule)
    assert np.allclose(path.predict(Xt, "all"), exact.predict(Xt, "all"), rtol=0, atol=1e-7)


@pytest.mark.parametrize("solver", ["krylov", "tridiagonal"])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 17])
def test_few_rows(backend, rng, solver, n):
    X, Y, Xt = problem(rng, n=n)
    for options in ({}, {"fit_intercept": True}):
        exact = spectrum(X, Y, RBF(0.4), **options)
        other = spectrum(X, Y, RBF(0.4), solver=solver, lam=LAMS, backend=backend, **options)
        a = exact.evaluate(Xt, exact.pure_steps(LAMS, 3))
        b = host(other.evaluate(other.backend.asarray(Xt), other.pure_steps(LAMS, 3)))
        assert np.allclose(a, b, rtol=0, atol=tolerance.floor())


@pytest.mark.parametrize("solver", ["krylov", "tridiagonal"])
def test_matrices_and_functions_for_kernels(rng, solver):
    X, Y, _ = problem(rng)
    K = np.exp(-0.4 * np.square(X[:, None] - X).sum(2))
    before = K.copy()
    expected = distill(spectrum(X, Y, RBF(0.4)), 0.1, 0.3, 3).dual_coef("all")

    def function(A, B):
        return np.exp(-0.4 * np.square(A[:, None] - B).sum(2))

    for data, kernel in ((K, "precomputed"), (X, function)):
        w = weights(rng, len(X)) if kernel == "precomputed" else None
        other = spectrum(data, Y, kernel, solver=solver, lam=0.1, sample_weight=w)
        reference = expected
        if w is not None:
            weighted = spectrum(X, Y, RBF(0.4), sample_weight=w)
            reference = distill(weighted, 0.1, 0.3, 3).dual_coef("all")
        assert np.allclose(distill(other, 0.1, 0.3, 3).dual_coef("all"), reference, atol=1e-6)
    assert (before == K).all()


@pytest.mark.parametrize("storage", ["float32", "none"])
@pytest.mark.parametrize("weighted", [False, True])
def test_storage_of_the_matrix(backend, rng, storage, weighted):
    X, Y, Xt = problem(rng, p=2)
    w = weights(rng, len(X)) if weighted else None
    tol = 1e-3 if storage == "float32" else 1e-8
    exact = spectrum(X, Y, RBF(0.4), sample_weight=w)
    other = spectrum(
        X, Y, RBF(0.4), solver="krylov", lam=0.1, storage=storage, tol=tol, sample_weight=w,
        backend=backend,
    )  # fmt: skip
    assert other.storage == storage
    a, b = (
        exact.evaluate(Xt, exact.pure_steps(0.1, 4)),
        host(other.evaluate(other.backend.asarray(Xt), other.pure_steps(0.1, 4))),
    )
    assert np.abs(a - b).max() <= tol * np.abs(Y).max()
    assert (np.abs(a - b).max(1) <= other.certificate_[:4] + 1e-13).all()


def test_storage_follows_the_budget(rng):
    n = 1200
    X, Y, Xt = problem(rng, n=n)
    common = {"solver": "krylov", "lam": 1.0, "max_rank": 100}
    full = spectrum(X, Y, RBF(0.4), **common)
    assert full.storage == "float64"
    tight = spectrum(X, Y, RBF(0.4), **common, max_memory=6 << 20)
    assert tight.storage == "none"
    loose = spectrum(X, Y, RBF(0.4), **common, max_memory=8 << 20, tol=1e-2)
    assert loose.storage == "float32"
    with pytest.raises(MemoryError, match="max_rank"):
        spectrum(X, Y, RBF(0.4), **common, max_memory=1 << 20)
    expected = full.evaluate(Xt, full.pure_steps(1.0, 2))
    assert np.allclose(
        tight.evaluate(Xt, tight.pure_steps(1.0, 2)), expected, rtol=0, atol=tolerance.krylov()
    )


@pytest.mark.parametrize("solver", ["krylov", "tridiagonal"])
def test_float32(backend, rng, solver):
    X, Y, Xt = problem(rng)
    exact = distill(spectrum(X, Y, RBF(0.4)), 1.0, 0.3, 3).predict(Xt, "all")
    X32, Y32 = X.astype(np.float32), Y.astype(np.float32)
    other = spectrum(X32, Y32, RBF(0.4), solver=solver, lam=1.0, backend=backend)
    path = distill(other, 1.0, 0.3, 3)
    actual = path.predict(Xt.astype(np.float32), "all")
    assert actual.dtype == np.float32
    assert path.dual_coef().dtype == np.float32
    assert np.abs(actual - exact).max() <= 1e-3


def test_a_smaller_ridge_and_more_steps_continue_the_run(rng):
    X, Y, Xt = problem(rng, n=400)
    exact = spectrum(X, Y, Laplacian(0.5))
    s = spectrum(X, Y, Laplacian(0.5), solver="krylov", lam=100.0, n_steps=1)
    before, early = s.k, s.pure_steps(100.0, 1)
    kept = s.in_rows(early)
    for lam, steps in ((1.0, 1), (0.05, 4)):
        a = exact.evaluate(Xt, exact.pure_steps(lam, steps))
        b = s.evaluate(Xt, s.pure_steps(lam, steps))
        assert np.abs(a - b).max() <= tolerance.krylov() * np.abs(Y).max()
    assert s.k > before
    assert (s.lam_min, s.n_steps) == (0.05, 4)
    assert (s.in_rows(early) == kept).all()  # coordinates from before stay what they were
    once = spectrum(X, Y, Laplacian(0.5), solver="krylov", lam=0.05, n_steps=4)
    assert s.k <= once.k + 2  # nothing was begun anew
    rank = s.k
    s.pure_steps(np.array([50.0, 0.05]), 3)
    assert s.k == rank


def test_it_can_be_pickled_and_continued(rng):
    X, Y, Xt = problem(rng)
    s = pickle.loads(pickle.dumps(spectrum(X, Y, RBF(0.4), solver="krylov", lam=1.0)))
    exact = spectrum(X, Y, RBF(0.4))
    a, b = exact.evaluate(Xt, exact.pure_steps(0.01, 2)), s.evaluate(Xt, s.pure_steps(0.01, 2))
    assert np.abs(a - b).max() <= tolerance.krylov() * np.abs(Y).max()


def test_a_run_that_ends_early_says_for_which_ridges_it_is_good(rng):
    X, Y, Xt = problem(rng, n=300)
    with pytest.warns(RuntimeWarning, match=r"max_rank=40 was reached.*lam >= ") as caught:
        s = spectrum(X, Y, RBF(0.4), solver="krylov", lam=1e-3, max_rank=40)
    assert s.k == 40
    bound = float(str(caught[0].message).split("lam >= ")[1].split(",")[0])
    exact = spectrum(X, Y, RBF(0.4))
    scale = np.abs(Y).max()
    for lam, good in ((bound, True), (1e-3, False)):
        a, b = exact.evaluate(Xt, exact.pure_steps(lam, 6)), s.evaluate(Xt, s.pure_steps(lam, 6))
        error = np.abs(a - b).max((1, 2))
        assert (error <= s.certificate(lam, 6)[:, 0]).all()
        assert (s.certificate(lam, 6)[-1, 0] <= 1.05 * tolerance.krylov() * scale) == good


def chain_of(K, y, lam, n_steps):
    """Dual coefficients and training predictions of the pure steps, in 40 digits."""
    with mp.workdps(40):
        A, t, steps = mp.matrix(K.tolist()), mp.matrix(y.tolist()), []
        inverse = (A + mp.mpf(float(lam)) * mp.eye(len(K))) ** -1
        for _ in range(n_steps):
            c = inverse * t
            t = A * c
            steps.append((c, t))
        return A, steps


@st.composite
def spectra(draw):
    """K with a drawn spectrum, y with drawn components, λ, steps, tolerance, rank."""
    seed = draw(st.integers(0, 2**31))
    rng = np.random.default_rng(seed)
    n = draw(st.integers(1, 16))
    kind = draw(st.sampled_from(["spread", "triple", "decay", "clusters", "low rank", "one"]))
    d = {
        "spread": lambda: np.exp(rng.uniform(-14, 5, n)),
        "triple": lambda: np.repeat(np.exp(rng.uniform(-8, 4, n)), 3)[:n],
        "decay": lambda: np.exp(-np.arange(n) * rng.uniform(0.1, 2.0)),
        "clusters": lambda: (
            np.where(rng.uniform(size=n) < 0.5, 1.0, 1e-3) * (1.0 + 1e-8 * rng.uniform(size=n))
        ),
        "low rank": lambda: np.r_[np.exp(rng.uniform(0, 5, n // 2)), np.zeros(n - n // 2)],
        "one": lambda: np.ones(n),
    }[kind]() * 10.0 ** draw(st.integers(-3, 3))
    U = np.linalg.qr(rng.normal(size=(n, n)))[0]
    K = (U * d) @ U.T
    components = rng.normal(size=n)
    which = draw(st.sampled_from(["all", "not leading", "few", "zero"]))
    if which == "not leading":
        components[np.argsort(d)[-(n // 2) :]] = 0.0
    elif which == "few":
        components[rng.permutation(n)[: n - 2]] = 0.0
    elif which == "zero":
        components[:] = 0.0
    rank = draw(st.one_of(st.none(), st.integers(1, 16)))
    lam, tol = 10.0 ** draw(st.floats(-5, 2)), 10.0 ** draw(st.floats(-9, -2))
    return 0.5 * (K + K.T), U @ components, lam, draw(st.integers(1, 4)), tol, rank


@given(spectra())
def test_the_certificate_holds_and_is_not_far_off(case):
    K, y, lam, n_steps, tol, rank = case
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of runs that max_rank ends
        s = spectrum(
            K, y, "precomputed", solver="krylov", lam=lam, n_steps=n_steps, tol=tol, max_rank=rank
        )
        certificate = s.certificate(lam, n_steps)[:, 0]
    steps = s.pure_steps(lam, n_steps)
    duals, predictions = s.in_rows(steps)[..., 0], s.evaluate(K, steps)[..., 0]
    A, exact = chain_of(K, y, lam, n_steps)
    feature = np.sqrt(np.diag(K).max())
    largest = 0.0  # error so far: the certificate adds up what the steps lose, without signs
    with mp.workdps(40):
        for tau, (c, f) in enumerate(exact):
            e = mp.matrix(duals[tau].tolist()) - c
            norm = float(mp.sqrt(abs((e.T * A * e)[0]))) * feature
            gap = max(
                abs(float(mp.mpf(float(v)) - x)) for v, x in zip(predictions[tau], f, strict=True)
            )
            assert max(norm * (1 - 1e-9), gap) <= certificate[tau]
            largest = max(largest, norm, gap)
            # what any method loses by rounding, and this one may be lucky not to lose
            attainable = np.finfo(float).eps * np.abs(K).sum(0).max() / lam * np.abs(y).max()
            if certificate[tau] > 1e-12 * np.abs(y).max():
                assert certificate[tau] <= 1000.0 * max(largest, attainable)
    if rank is None:
        assert certificate[-1] <= max(tol * np.abs(y).max(), 1e-10 / lam * np.abs(K).max())


def test_leave_one_out_is_refused_with_the_ways_out(rng):
    X, Y, Xt = problem(rng, n=60)
    for solver in ("krylov", "tridiagonal"):
        s = spectrum(X, Y, RBF(0.4), solver=solver, lam=0.1)
        for ask in (
            lambda s=s: leave_one_out(s, 0.1, 0.5, 2),
            lambda s=s: leave_fold_out(s, 0.1, 0.5, 2, 3),
            lambda s=s: distill(s, 0.1, "optimal", 2),
            lambda s=s: gcv_alphas(s, 0.1, 2),
            lambda s=s: score_grid(s, [0.1], "optimal", 2),
        ):
            with pytest.raises(ValueError, match=rf"'{solver}'.*eigh.*cholesky.*nystrom.*X_val"):
                ask()
        with pytest.raises(ValueError, match="eigh"):
            constrained_path(s, 0.1)
        path = distill(s, 0.1, "optimal", 3, X_val=Xt, y_val=np.sin(Xt.sum(1)))
        exact = distill(
            spectrum(X, Y, RBF(0.4)), 0.1, "optimal", 3, X_val=Xt, y_val=np.sin(Xt.sum(1))
        )
        assert np.allclose(path.alphas[1:], exact.alphas[1:], rtol=1e-5)


def test_estimator_with_each_solver(rng):
    X, Y, Xt = problem(rng, n=80)
    expected = SelfDistilledKernelRidge(lam=0.1, alpha=0.3, n_steps=3, solver="eigh").fit(X, Y)
    for solver in ("krylov", "tridiagonal"):
        model = SelfDistilledKernelRidge(lam=0.1, alpha=0.3, n_steps=3, solver=solver).fit(X, Y)
        assert np.allclose(model.predict(Xt), expected.predict(Xt), rtol=0, atol=1e-7)
        assert np.isnan(model.loo_mse_).all()


def test_options_are_checked(rng):
    X, Y, _ = problem(rng, n=20)
    for options, message in (
        ({"tol": 2.0}, "tol must be"),
        ({"tol": True}, "tol must be"),
        ({"max_rank": 0}, "max_rank"),
        ({"storage": "half"}, "known: auto, float64, float32, none"),
        ({"lam_min": [1.0, 2.0]}, "scalar"),
    ):
        with pytest.raises(ValueError, match=message):
            spectrum(X, Y, RBF(0.4), solver="krylov", lam=1.0, **options)
    with pytest.raises(ValueError, match="needs lam_min"):
        spectrum(X, Y, RBF(0.4), solver="krylov")
    with pytest.raises(TypeError, match="no option max_rank"):
        spectrum(X, Y, RBF(0.4), solver="eigh", max_rank=3)


def test_more_targets_than_vectors(rng):
    X, Y, Xt = problem(rng, p=7)
    with pytest.raises(ValueError, match="max_rank=5 is less than the 7 independent targets"):
        spectrum(X, Y, RBF(0.4), solver="krylov", lam=1.0, max_rank=5)
    same = np.repeat(Y[:, :1], 7, 1)  # one direction, found as such
    s = spectrum(X, same, RBF(0.4), solver="krylov", lam=1.0)
    alone = spectrum(X, Y[:, 0], RBF(0.4), solver="krylov", lam=1.0)
    assert s.k == alone.k
    F = s.evaluate(Xt, s.pure_steps(1.0, 2))
    assert np.allclose(
        F, alone.evaluate(Xt, alone.pure_steps(1.0, 2)), rtol=0, atol=tolerance.krylov()
    )


def test_an_indefinite_matrix_is_noticed(rng):
    K = np.diag([3.0, 2.0, -1.0])
    y = np.ones(3)
    with pytest.raises(np.linalg.LinAlgError, match="positive semi-definite"):
        spectrum(K, y, "precomputed", solver="krylov", lam=2.0)
    s = spectrum(K, y, "precomputed", solver="tridiagonal")
    with pytest.raises(np.linalg.LinAlgError, match=r"lam=0\.5"):
        s.pure_steps(0.5, 2)


def test_the_limit_of_alphas_that_need_eigenvalues(rng):
    X, Y, _ = problem(rng, n=30)
    s = spectrum(X, Y, RBF(0.4), solver="tridiagonal")
    with pytest.raises(ValueError, match="use solver='eigh'"):
        s.limit(0.1, 2.5)
    assert (s.limit(0.1, 0.0) == 0).all()


@pytest.mark.parametrize(
    "name", ["airfoil", "concrete", "energy", "housing", "yacht", "skillcraft"]
)
def test_agrees_with_eigh_to_its_certificate(uci, name):
    X, y, Xt, _ = uci(name, max_rows=1500)
    kernel = RBF(0.5 / X.shape[1])
    lams = np.array([1e-2, 1.0])
    exact = spectrum(X, y, kernel)
    s = spectrum(X, y, kernel, solver="krylov", lam=lams)
    bound = s.certificate(lams, 4)
    a, b = exact.evaluate(Xt, exact.pure_steps(lams, 4)), s.evaluate(Xt, s.pure_steps(lams, 4))
    # the oracle has an error of its own: eps · d_max/λ
    rounding = 1e-15 * exact.scale / lams[:, None] * np.abs(y).max()
    assert (np.abs(a - b).max((2, 3)) <= bound[..., 0] + rounding).all()
    assert (bound[..., 0] <= tolerance.krylov() * np.abs(y).max()).all()


def test_the_certificate_knows_how_the_matrix_is_kept(backend, rng):
    X, Y, _ = problem(rng, p=2)
    K = np.exp(-0.4 * np.square(X[:, None] - X).sum(2))
    exact = spectrum(X, Y, RBF(0.4))
    expected = exact.evaluate(X, exact.pure_steps(0.01, 4))
    for data, kernel in ((X, RBF(0.4)), (K, "precomputed")):
        with pytest.warns(RuntimeWarning, match="rounding of K to float32"):
            s = spectrum(
                data, Y, kernel, solver="krylov", lam=0.01, storage="float32", backend=backend
            )
        actual = host(s.evaluate(s.backend.asarray(data), s.pure_steps(0.01, 4)))
        error = np.abs(actual - expected).max(1)
        assert (error <= s.certificate_[:4]).all()
        assert error.max() > 1e-9  # so that float64 storage would not do


def test_the_certificate_follows_the_run(rng):
    X = np.repeat(rng.normal(size=(8, 2)), 5, 0)  # a Krylov space of eight vectors is complete
    Y = rng.normal(size=40)
    s = spectrum(X, Y, RBF(0.3), solver="krylov", lam=1.0, n_steps=2)
    with pytest.warns(RuntimeWarning, match="below rounding"):
        s.pure_steps(1e-13, 3)
    with pytest.warns(RuntimeWarning, match="below rounding"):
        fresh = spectrum(X, Y, RBF(0.3), solver="krylov", lam=1e-13, n_steps=3)
    assert np.allclose(s.certificate_, fresh.certificate_, rtol=0.5)
    assert s.certificate_.shape == (3, 1)


@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1e160, 1e200])
def test_units_of_y_do_not_matter(backend, rng, scale):
    X, Y, Xt = problem(rng)
    one, other = (
        spectrum(X, Y * c, RBF(0.4), solver="krylov", lam=0.1, backend=backend)
        for c in (1.0, scale)
    )
    assert one.k == other.k
    expected = distill(one, 0.1, 0.3, 3).predict(Xt, "all")
    actual = distill(other, 0.1, 0.3, 3).predict(Xt, "all") / scale
    assert np.allclose(actual, expected, rtol=1e-9, atol=1e-9)
    assert np.allclose(other.certificate_ / scale, one.certificate_, rtol=0.1)


def test_targets_of_different_sizes_are_each_to_tolerance(rng):
    X, Y, Xt = problem(rng, p=4)
    Y[:, 1], Y[:, 2], Y[:, 3] = 0.1, 1e-14 * Y[:, 2], 1e12 * Y[:, 3]
    for options in ({}, {"fit_intercept": True}):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            s = spectrum(X, Y, RBF(0.4), solver="krylov", lam=0.1, **options)
        exact = spectrum(X, Y, RBF(0.4), **options)
        a, b = (e.evaluate(Xt, e.pure_steps(0.1, 4)) for e in (exact, s))
        assert (np.abs(a - b).max((0, 1)) <= tolerance.krylov() * np.abs(Y).max(0)).all()


@pytest.mark.parametrize("lam", [1e-300, 1e160, 1e300])
@pytest.mark.filterwarnings("ignore:solver='krylov' stopped:RuntimeWarning")
def test_ridges_out_of_all_proportion(rng, lam):
    X, Y, _ = problem(rng, n=40)
    s = spectrum(X, Y, RBF(0.4), solver="krylov", lam=lam)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bound = s.certificate(lam, 3)
    assert np.isfinite(bound).all()
    if lam > 1.0:  # (K + λ)⁻¹ y = y/λ
        dual = s.dual(s.pure_steps(lam, 1))[0, :, 0]
        assert np.allclose(dual * lam, Y, rtol=1e-9, atol=1e-9)


def test_one_warning_for_a_path_and_its_limit(rng):
    X, Y, _ = problem(rng)
    s = spectrum(X, Y, RBF(0.4), solver="krylov", lam=100.0, max_rank=25)
    for lam, alpha in ((1.0, 0.5), (0.1, 1.5)):
        with pytest.warns(RuntimeWarning, match="stopped after") as caught:
            distill(s, lam, alpha, 3)
        assert len(caught) == 1


def test_nothing_but_an_intercept(backend):
    X, y = np.ones((1, 2)), np.ones(1)
    s = spectrum(X, y, RBF(1.0), solver="krylov", lam=0.1, fit_intercept=True, backend=backend)
    assert s.project(X).shape == (1, 0)
    assert s.V.shape == (1, 0)


def test_an_indefinite_matrix_is_named_at_a_small_ridge(rng):
    A = rng.normal(size=(60, 60))
    with pytest.raises(np.linalg.LinAlgError, match="smallest eigenvalue is -"):
        spectrum(A + A.T, rng.normal(size=60), "precomputed", solver="krylov", lam=0.1)


def test_more_targets_than_vectors_is_an_error(rng):
    X, Y, _ = problem(rng, p=5)
    with pytest.raises(ValueError, match="max_rank=3"):
        spectrum(X, Y, RBF(0.4), solver="krylov", lam=0.1, max_rank=3)


@pytest.mark.parametrize("after", range(4))
def test_an_interrupted_continuation_is_made_up_for(rng, monkeypatch, after):
    X, Y, Xt = problem(rng)
    options = {"solver": "krylov", "lam": 10.0, "storage": "none"}
    s, other = (spectrum(X, Y, RBF(0.4), **options) for _ in range(2))
    product, calls = KernelProduct.product, []

    def interrupted(self, *args, **kwargs):
        calls.append(None)
        if len(calls) > after:
            raise KeyboardInterrupt
        return product(self, *args, **kwargs)

    monkeypatch.setattr(KernelProduct, "product", interrupted)
    with pytest.raises(KeyboardInterrupt):
        s.pure_steps(1e-3, 3)
    monkeypatch.undo()
    expected = other.evaluate(Xt, other.pure_steps(1e-3, 3))
    assert (s.evaluate(Xt, s.pure_steps(1e-3, 3)) == expected).all()
    assert (s.certificate_ == other.certificate_).all()


def test_threads_may_continue_a_run_that_others_use(rng):
    X, Y, Xt = problem(rng, n=100)
    s = spectrum(X, Y, RBF(0.4), solver="krylov", lam=100.0)
    lams = np.geomspace(30.0, 1e-3, 24)

    def fit(lam):
        assert s.V.shape[0] == 100
        return distill(s, lam, 0.3, 3).predict(Xt)

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(fit, lams))
    exact = spectrum(X, Y, RBF(0.4))
    for lam, predictions in zip(lams, found, strict=True):
        assert np.allclose(predictions, distill(exact, lam, 0.3, 3).predict(Xt), atol=1e-7)


@pytest.mark.parametrize("solver", ["krylov", "tridiagonal"])
def test_leave_one_out_is_refused_before_any_work(rng, solver, monkeypatch):
    X, Y, _ = problem(rng)
    kind = {"krylov": KrylovSpectrum, "tridiagonal": TridiagonalSpectrum}[solver]
    monkeypatch.setattr(kind, "__init__", None)  # calling it would be a TypeError
    calls = [
        lambda: spectrum(X, Y, RBF(0.4), solver=solver, lam=0.1, leave_one_out=True),
        lambda: sweep(X, Y, kernels=RBF(0.4), lams=[0.1], n_steps=2, solver=solver, progress=False),
        lambda: SelfDistilledKernelRidge(solver=solver, lam=0.1).fit(X, Y),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="leave-one-out needs diagonals"):
            call()


@pytest.mark.parametrize(("targets", "n_steps"), [(20, 6), (20, 40), (1, 40)])
def test_memory_of_many_targets_and_steps_is_counted(rng, targets, n_steps):
    X, Y, _ = problem(rng, n=400, p=targets)
    Y += rng.normal(size=Y.shape)
    options = {"solver": "krylov", "lam": 1.0, "n_steps": n_steps}
    s = spectrum(X, Y, RBF(0.4), **options)
    tracemalloc.start()
    try:
        spectrum(X, Y, RBF(0.4), **options)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    counted = krylov_bytes(s.backend, 400, 3, targets, s.dtype, s.k, s.storage, n_steps)
    assert peak <= 1.1 * counted
