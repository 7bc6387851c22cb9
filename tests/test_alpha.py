"""The best ground-truth weights: eq. (16), Algorithm 1, the joint optimum, weights and α's."""

from __future__ import annotations

import math
import warnings

import numpy as np
import oracle
import pytest
import tolerance
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.testing import assert_allclose
from tolerance import assert_close

from selfdistill_fast import (
    RBF,
    Matern,
    alphas_to_weights,
    distill,
    joint_weights,
    leave_one_out,
    optimal_alpha,
    spectrum,
    weights_to_alphas,
)
from selfdistill_fast.alpha import cell_losses, grid_losses, step_weights

# the joint optimum says when its last steps gain little; here that is no news
pytestmark = pytest.mark.filterwarnings("ignore:joint weights:RuntimeWarning")

LAM, T = 0.05, 4
values = st.floats(-100, 100, allow_subnormal=False)


def draw(rng, n=20, p=2, m=15):
    X, X_val = rng.uniform(0, 3, (n, 2)), rng.uniform(0, 3, (m, 2))

    def f(X):
        return np.sin(2 * X[:, :1]) * [[1.0, 0.5][:p]] + X[:, 1:] * [[0.3, -1.0][:p]]

    return X, (f(X) + 0.5 * rng.standard_normal((n, p))), X_val, f(X_val)


# ------------------------------------------------------------------ eq. (16)


@given(data=st.data())
def test_alpha_is_the_vertex_of_the_error(data):
    """What is left of y is orthogonal to ỹ¹ − ỹ⁰; any other α costs (α − α*)²‖ỹ¹ − ỹ⁰‖² more."""
    shape = data.draw(st.sampled_from([(1,), (5,), (3, 2), (7, 1)]), label="shape")
    y, first, student = (data.draw(hnp.arrays(float, shape, elements=values)) for _ in range(3))
    gap = student - first
    assume(np.linalg.norm(gap) > 1e-3)
    alpha = optimal_alpha(y, first, student)
    residual = y - (alpha * first + (1 - alpha) * student)
    size = np.linalg.norm(gap) * (np.linalg.norm(y) + np.linalg.norm(first) + 1)
    size *= 1 + np.linalg.norm(y - first) / np.linalg.norm(gap)
    assert abs(np.vdot(residual, gap)) <= 1e-13 * size
    other = data.draw(st.floats(-3, 3), label="other")
    excess = np.sum((y - (other * first + (1 - other) * student)) ** 2) - np.sum(residual**2)
    expected = (other - alpha) ** 2 * np.sum(gap**2)
    assert abs(excess - expected) <= 1e-12 * (np.sum(y**2) + size) * (1 + abs(other)) ** 2


def test_alpha_equals_equation_16_and_the_numerical_minimiser(rng):
    y, first, student = rng.standard_normal((3, 30))
    gap = student - first
    expected = 1 - gap @ (y - first) / (gap @ gap)
    assert_close(optimal_alpha(y, first, student), expected, tolerance.FORMULA)
    numeric = oracle.vertex(lambda a: np.sum((y - (a * first + (1 - a) * student)) ** 2))
    assert_close(optimal_alpha(y, first, student), numeric, 1e-12)


def test_alpha_is_one_for_a_perfect_first_step_and_zero_for_a_perfect_student(rng):
    first, student = rng.standard_normal((2, 12))
    assert optimal_alpha(first, first, student) == 1.0
    assert_close(optimal_alpha(student, first, student), 0.0, tolerance.FORMULA, 1.0)


def test_several_targets_share_one_alpha_unless_asked(rng):
    y, first, student = rng.standard_normal((3, 12, 4))
    shared = optimal_alpha(y, first, student)
    assert np.ndim(shared) == 0
    assert_close(
        shared, optimal_alpha(y.ravel(), first.ravel(), student.ravel()), tolerance.FORMULA
    )
    own = optimal_alpha(y, first, student, per_target=True)
    each = [optimal_alpha(y[:, j], first[:, j], student[:, j]) for j in range(4)]
    assert_close(own, np.array(each), tolerance.FORMULA)


@pytest.mark.parametrize("per_target", [False, True])
def test_sample_weight_is_repetition(rng, per_target):
    y, first, student = rng.standard_normal((3, 12, 2))
    weight = rng.integers(0, 4, 12)
    rows = np.repeat(np.arange(12), weight)
    weighted = optimal_alpha(y, first, student, sample_weight=weight, per_target=per_target)
    repeated = optimal_alpha(y[rows], first[rows], student[rows], per_target=per_target)
    assert_close(weighted, repeated, 1e-13)
    doubled = optimal_alpha(y, first, student, sample_weight=2.0 * weight, per_target=per_target)
    assert_close(doubled, weighted, tolerance.FORMULA)


def test_float32_is_accumulated_in_double(rng):
    """A million terms of the same sign lose four digits in single precision."""
    n = 1_000_000
    first = rng.standard_normal(n).astype(np.float32) + np.float32(100)
    student = first + np.float32(0.01) * rng.standard_normal(n).astype(np.float32)
    y = (first + np.float32(0.3) * (student - first) + np.float32(0.001)).astype(np.float32)
    expected = optimal_alpha(*(a.astype(np.float64) for a in (y, first, student)))
    assert_close(optimal_alpha(y, first, student), expected, 1e-12)


def test_coincident_predictions_give_one_and_a_warning(rng):
    y, first = rng.standard_normal((2, 9))
    with pytest.warns(RuntimeWarning):
        assert optimal_alpha(y, first, first.copy()) == 1.0


def test_coincident_predictions_of_one_target(rng):
    y, first, student = rng.standard_normal((3, 9, 2))
    student[:, 1] = first[:, 1]
    with pytest.warns(RuntimeWarning):
        own = optimal_alpha(y, first, student, per_target=True)
    assert own[1] == 1.0
    assert_close(own[0], optimal_alpha(y[:, 0], first[:, 0], student[:, 0]), tolerance.FORMULA)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # together the two targets do differ
        optimal_alpha(y, first, student)


def test_no_positive_weight_is_no_evidence(rng):
    y, first, student = rng.standard_normal((3, 5))
    with pytest.raises(ValueError, match="weight"):
        optimal_alpha(y, first, student, sample_weight=-np.ones(5))
    student[2] = first[2]
    weight = np.array([0.0, 0.0, 1.0, 0.0, 0.0])  # the only row with coincident predictions
    with pytest.warns(RuntimeWarning):
        alpha = optimal_alpha(y, first, student, sample_weight=weight)
    assert alpha == 1.0


def test_shapes_that_differ_are_an_error(rng):
    y = rng.standard_normal(9)
    with pytest.raises(ValueError, match="shape"):
        optimal_alpha(y, y[:8], y)
    with pytest.raises(ValueError, match="shape"):
        optimal_alpha(y[:, None], y, 2 * y)


def test_torch_tensors_give_the_same(rng):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    y, first, student = rng.standard_normal((3, 9, 2))
    for dtype, rtol in ((np.float64, tolerance.FORMULA), (np.float32, 1e-12)):
        arrays = [a.astype(dtype) for a in (y, first, student)]
        expected = optimal_alpha(*arrays)
        assert_close(float(optimal_alpha(*map(torch.tensor, arrays))), expected, rtol)


# ------------------------------------------------------------------ Algorithm 1


def students(K, K_val, Y):
    """alphas -> validation predictions of the last step, by refits."""
    return lambda alphas: oracle.predict(oracle.chain(K, Y, LAM, alphas), K_val)[-1]


def loo_students(K, Y, lam=LAM, weight=None, intercept=False):
    return lambda alphas: oracle.leave_one_out(K, Y, lam, alphas, weight, intercept)[-1]


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_greedy_alphas_equal_algorithm_1(backend, rng, clip, weighted):
    X, Y, X_val, Y_val = draw(rng)
    weight = rng.uniform(0.1, 3.0, len(X_val)) if weighted else None
    K, K_val = oracle.kernel_matrix(RBF(0.5), X), oracle.kernel_matrix(RBF(0.5), X_val, X)
    student = students(K, K_val, Y)
    expected = oracle.algorithm_1(student([np.nan]), student, Y_val, T, clip=clip, weight=weight)
    s = spectrum(X, Y, RBF(0.5), backend=backend)
    path = distill(
        s, LAM, "optimal", T, X_val=X_val, y_val=Y_val, sample_weight_val=weight, clip=clip
    )
    assert np.isnan(path.alphas[0])
    assert_close(path.alphas[1:], expected[1:], 1e-8)
    refits = oracle.predict(oracle.chain(K, Y, LAM, path.alphas), K_val)
    assert_close(path.predict(X_val, step="all"), refits, tolerance.floor())


def test_clipping_happens_inside_the_algorithm(backend, rng):
    """A clipped α changes the teacher of the next step, so clipping afterwards is not the same."""
    X, Y, X_val, _ = draw(rng)
    K, K_val = oracle.kernel_matrix(RBF(0.5), X), oracle.kernel_matrix(RBF(0.5), X_val, X)
    pure = oracle.predict(oracle.pure_chain(K, Y, LAM, 3), K_val)
    Y_val = -0.8 * pure[0] + 1.6 * pure[1] + 0.2 * pure[2]  # the best α of step 2 is near -1
    s = spectrum(X, Y, RBF(0.5), backend=backend)
    free = distill(s, LAM, "optimal", T, X_val=X_val, y_val=Y_val)
    clipped = distill(s, LAM, "optimal", T, X_val=X_val, y_val=Y_val, clip=True)
    assert free.alphas[1] < 0
    assert clipped.alphas[1] == 0.0
    student = students(K, K_val, Y)
    expected = oracle.algorithm_1(student([np.nan]), student, Y_val, T, clip=True)
    assert_close(clipped.alphas[1:], expected[1:], 1e-8, 1.0)
    assert np.abs(clipped.alphas[2:] - np.clip(free.alphas[2:], 0, 1)).max() > 1e-3


@given(data=st.data())
def test_greedy_alphas_cannot_be_improved_one_at_a_time(data, backend):
    """Theorem 4.4: moving α_τ, all before it fixed, never lowers the validation error of step τ."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**16), label="seed"))
    lam = data.draw(st.sampled_from([1e-2, 0.3, 5.0]), label="lam")
    clip = data.draw(st.booleans(), label="clip")
    X, Y, X_val, Y_val = draw(rng, n=8, m=6)
    s = spectrum(X, Y, RBF(0.5), backend=backend)
    path = distill(s, lam, "optimal", T, X_val=X_val, y_val=Y_val, clip=clip)
    for t in range(1, T):
        best = oracle.squared_error(Y_val, path.predict(X_val, step=t + 1))
        move = data.draw(st.floats(0, 1) if clip else st.floats(-3, 3), label="other α")
        alphas = [*path.alphas[1:t], move]
        other = distill(s, lam, alphas, t + 1).predict(X_val)
        assert best <= oracle.squared_error(Y_val, other) * (1 + 1e-9)
        # α = 1 is the first step itself
        assert best <= oracle.squared_error(Y_val, path.predict(X_val, step=1)) * (1 + 1e-9)


@pytest.mark.parametrize("by", ["validation", "leave-one-out"])
def test_greedy_alphas_with_a_ridge_for_each_step(backend, rng, by):
    """ỹ¹ of eq. (16) is then the one-step fit under the ridge of the step itself."""
    X, Y, X_val, Y_val = draw(rng)
    lams, alphas = [0.05, 0.3, 0.02, 1.0], [np.nan]
    K, K_val = oracle.kernel_matrix(RBF(0.5), X), oracle.kernel_matrix(RBF(0.5), X_val, X)

    def last(lams, alphas):
        if by == "leave-one-out":
            return oracle.leave_one_out(K, Y, lams, alphas)[-1]
        return oracle.predict(oracle.chain(K, Y, lams, alphas), K_val)[-1]

    target, val = (Y, {}) if by == "leave-one-out" else (Y_val, {"X_val": X_val, "y_val": Y_val})
    for t in range(1, T):
        student, first = last(lams[: t + 1], [*alphas, 0.0]), last(lams[t : t + 1], [np.nan])
        alphas.append(
            oracle.vertex(
                lambda a, f=first, s=student: oracle.squared_error(target, a * f + (1 - a) * s)
            )
        )
    s = spectrum(X, Y, RBF(0.5), backend=backend)
    path = distill(s, None, "optimal", T, lam_steps=lams, **val)
    assert_close(path.alphas[1:], np.array(alphas[1:]), 1e-8)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("clip", [False, True])
def test_greedy_alphas_by_leave_one_out(backend, rng, weighted, intercept, clip):
    X, Y, _, _ = draw(rng, n=12)
    weight = rng.uniform(0.1, 3.0, len(X)) if weighted else None
    K = oracle.kernel_matrix(Matern(1.0, 1.5), X)
    student = loo_students(K, Y, weight=weight, intercept=intercept)
    expected = oracle.algorithm_1(student([np.nan]), student, Y, T, clip=clip, weight=weight)
    s = spectrum(
        X, Y, Matern(1.0, 1.5), sample_weight=weight, fit_intercept=intercept, backend=backend
    )
    path = distill(s, LAM, "optimal", T, clip=clip)
    assert_close(path.alphas[1:], expected[1:], 1e-8)


def test_rows_of_weight_zero_do_not_choose_alpha(backend, rng):
    X, Y, _, _ = draw(rng, n=14)
    weight = rng.uniform(0.1, 3.0, 14)
    weight[[1, 6]] = 0.0
    Y[[1, 6]] = 1e6
    keep = weight > 0
    s = spectrum(X, Y, RBF(0.5), sample_weight=weight, backend=backend)
    kept = spectrum(X[keep], Y[keep], RBF(0.5), sample_weight=weight[keep], backend=backend)
    for alpha in ("optimal", "joint"):
        with_zeros, without = distill(s, LAM, alpha, T), distill(kept, LAM, alpha, T)
        assert_close(with_zeros.weights, without.weights, 1e-9)


@pytest.mark.parametrize("by", ["validation", "leave-one-out"])
def test_greedy_alphas_per_target(backend, rng, by):
    """As if each target had been fitted alone."""
    X, Y, X_val, Y_val = draw(rng)
    val = {"X_val": X_val, "y_val": Y_val} if by == "validation" else {}
    s = spectrum(X, Y, RBF(0.5), backend=backend)
    path = distill(s, LAM, "optimal", T, per_target=True, **val)
    assert path.alphas.shape == (T, 2)
    assert path.weights.shape == (T, 2)
    assert np.isnan(path.alphas[0]).all()
    for j in range(2):
        val = {"X_val": X_val, "y_val": Y_val[:, j]} if by == "validation" else {}
        one = distill(spectrum(X, Y[:, j], RBF(0.5), backend=backend), LAM, "optimal", T, **val)
        assert_close(path.alphas[1:, j], one.alphas[1:], 1e-8)
        assert_close(path.weights[:, j], oracle.weights_of(path.alphas[:, j]), 1e-12)
        assert_close(path.predict(X_val, step="all")[..., j], one.predict(X_val, step="all"), 1e-9)
        assert_close(path.dual_coef(T)[:, j], one.dual_coef(T), 1e-9)


def test_a_constant_model_has_nothing_to_choose(backend):
    """K = 0: all steps coincide, so α is 1 and a warning says so."""
    X, y = np.zeros((5, 1)), np.arange(5.0)
    s = spectrum(X, y, "linear", backend=backend)
    with pytest.warns(RuntimeWarning):
        path = distill(s, LAM, "optimal", 3)
    np.testing.assert_array_equal(path.alphas[1:], 1.0)


# ------------------------------------------------------------------ the joint optimum


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("n_steps", [1, 2, 3, 5])
def test_joint_weights_equal_the_numerical_optimum(rng, n_steps, clip):
    for p in (None, 3):
        shape = (20,) if p is None else (20, p)
        y, F = rng.standard_normal(shape), rng.standard_normal((n_steps, *shape))
        c = joint_weights(y, F, clip=clip)
        expected = oracle.best_weights(y.reshape(20, -1), F.reshape(n_steps, 20, -1), clip=clip)
        assert c.shape == (n_steps,)
        assert_close(c, expected, 1e-10, 1.0)
        assert abs(c.sum() - 1) <= tolerance.FORMULA * (1 + np.abs(c).sum())


@given(data=st.data())
def test_clipped_joint_weights_satisfy_kkt(data):
    """On the simplex; the gradient is one constant where c_k > 0 and no less elsewhere."""
    n_steps = data.draw(st.integers(1, 5), label="n_steps")
    y = data.draw(hnp.arrays(float, (6,), elements=st.floats(-3, 3, width=16)), label="y")
    F = data.draw(hnp.arrays(float, (n_steps, 6), elements=st.floats(-3, 3, width=16)), label="F")
    c = joint_weights(y, F, clip=True)
    assert (c >= 0).all()
    assert abs(c.sum() - 1) <= tolerance.FORMULA
    gradient = F @ (c @ F - y)
    size = 1 + np.abs(F).max() * (np.abs(F).max() + np.abs(y).max()) * 6
    assert gradient[c > 0].max() <= gradient.min() + 1e-10 * size


@given(data=st.data())
def test_free_joint_weights_are_stationary(data):
    """The residual is orthogonal to every difference F_k − F_1, also when these are dependent."""
    n_steps = data.draw(st.integers(1, 5), label="n_steps")
    elements = st.integers(-4, 4).map(float)
    y = data.draw(hnp.arrays(float, (6,), elements=elements), label="y")
    F = data.draw(hnp.arrays(float, (n_steps, 6), elements=elements), label="F")
    c = joint_weights(y, F)
    residual = y - c @ F
    assert abs(c.sum() - 1) <= 1e-12 * (1 + np.abs(c).sum())
    assert np.abs((F - F[0]) @ residual).max() <= 1e-9 * (1 + np.abs(c).sum())


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("by", ["validation", "weighted validation", "leave-one-out"])
def test_joint_path_reaches_the_least_error(backend, rng, clip, by):
    X, Y, X_val, Y_val = draw(rng)
    K, K_val = oracle.kernel_matrix(RBF(0.5), X), oracle.kernel_matrix(RBF(0.5), X_val, X)
    alphas = oracle.alphas_of(0.0, T)
    weight, options = None, {}
    if by == "leave-one-out":
        F, target = oracle.leave_one_out(K, Y, LAM, alphas), Y
    else:
        F, target = oracle.predict(oracle.chain(K, Y, LAM, alphas), K_val), Y_val
        options = {"X_val": X_val, "y_val": Y_val}
        if by == "weighted validation":
            weight = options["sample_weight_val"] = rng.uniform(0.1, 3.0, len(X_val))
    best = oracle.best_weights(target, F, clip=clip, weight=weight)
    s = spectrum(X, Y, RBF(0.5), backend=backend)
    path = distill(s, LAM, "joint", T, clip=clip, **options)
    mix = np.tensordot(path.weights, F, axes=1)
    least = oracle.squared_error(target, np.tensordot(best, F, axes=1), weight)
    assert_close(oracle.squared_error(target, mix, weight), least, 1e-8)
    pure = oracle.predict(oracle.chain(K, Y, LAM, alphas), K_val)
    expected = np.tensordot(path.weights, pure, axes=1)
    scale = np.abs(path.weights).sum() * np.abs(pure).max()
    assert_close(path.predict(X_val), expected, 1e-11, scale)
    greedy = distill(s, LAM, "optimal", T, clip=clip, **options)
    mix = np.tensordot(greedy.weights, F, axes=1)
    assert least <= oracle.squared_error(target, mix, weight) * (1 + 1e-9)
    if clip:
        assert (path.weights >= 0).all()
        assert ((path.alphas[1:] >= 0) & (path.alphas[1:] <= 1)).all()


def test_joint_recovers_known_weights(backend, rng):
    X, Y, X_val, _ = draw(rng)
    K, K_val = oracle.kernel_matrix(RBF(0.5), X), oracle.kernel_matrix(RBF(0.5), X_val, X)
    pure = oracle.predict(oracle.pure_chain(K, Y, LAM, 3), K_val)
    c = np.array([0.5, 0.8, -0.3])
    s = spectrum(X, Y, RBF(0.5), backend=backend)
    path = distill(s, LAM, "joint", 3, X_val=X_val, y_val=np.tensordot(c, pure, axes=1))
    assert_close(path.weights, c, 1e-8)
    # and the α's that belong to them lead there step by step
    assert_close(oracle.weights_of(path.alphas), c, 1e-8)
    assert_close(path.predict(X_val), np.tensordot(c, pure, axes=1), 1e-9)
    assert_close(distill(s, LAM, path.alphas, 3).predict(X_val), path.predict(X_val), 1e-9)


def test_joint_per_target(backend, rng):
    X, Y, X_val, Y_val = draw(rng)
    s = spectrum(X, Y, RBF(0.5), backend=backend)
    path = distill(s, LAM, "joint", 3, X_val=X_val, y_val=Y_val, per_target=True, clip=True)
    assert path.weights.shape == (3, 2)
    for j in range(2):
        one = distill(
            spectrum(X, Y[:, j], RBF(0.5), backend=backend),
            LAM, "joint", 3, X_val=X_val, y_val=Y_val[:, j], clip=True,
        )  # fmt: skip
        assert_close(path.weights[:, j], one.weights, 1e-8, 1.0)
        assert_close(path.predict(X_val)[:, j], one.predict(X_val), 1e-9)


# ------------------------------------------------------------------ weights and α's


@given(st.lists(st.floats(-5, 5), max_size=7))
def test_alphas_to_weights_is_stick_breaking(alphas):
    c = alphas_to_weights(alphas)
    T = len(alphas) + 1
    full = [np.nan, *alphas]
    expected = [  # c_k = α_{T−k+1} Π_{j > T−k+1} (1 − α_j), and the last has no α
        (full[T - k] if k < T else 1.0) * np.prod([1 - a for a in full[T - k + 1 :]])
        for k in range(1, T + 1)
    ]
    scale = max(1.0, np.abs(expected).max())
    assert_close(c, np.array(expected), tolerance.FORMULA, scale)
    assert_close(c, oracle.weights_of(full), tolerance.FORMULA, scale)
    assert_close(c.sum(), 1.0, 1e-13, np.abs(c).sum())


@given(st.lists(st.floats(0, 1), max_size=7))
def test_alphas_in_the_unit_interval_give_the_simplex(alphas):
    c = alphas_to_weights(alphas)
    assert (c >= 0).all()
    assert abs(c.sum() - 1) <= tolerance.FORMULA


# α's away from 1: there the stick is used up and the α's before it leave no trace
proper = st.floats(-4, 4).filter(lambda a: abs(1 - a) > 0.01)


@given(st.lists(proper, max_size=6))
def test_weights_to_alphas_inverts(alphas):
    c = alphas_to_weights(alphas)
    back = weights_to_alphas(c)
    assert len(back) == len(c) == len(alphas) + 1
    assert np.isnan(back[0])
    for i, (actual, alpha) in enumerate(zip(back[:0:-1], alphas[::-1], strict=True)):
        # α = c_i over what is left of the stick, which the rounding of c itself blurs
        condition = np.abs(c[i:]).sum() / abs(math.prod(1 - a for a in alphas[::-1][:i]))
        assert abs(actual - alpha) <= 4 * len(c) * 2.0**-52 * (1 + abs(alpha)) * condition


@given(st.lists(st.floats(0, 1), min_size=1, max_size=7).filter(lambda w: sum(w) > 0.01))
def test_every_simplex_point_has_alphas(raw):
    c = np.array(raw) / np.sum(raw)
    alphas = weights_to_alphas(c)
    rest = np.asarray(alphas[1:])
    assert ((rest >= 0) & (rest <= 1)).all()
    assert_close(alphas_to_weights(rest), c, 1e-13, 1.0)
    assert_close(alphas_to_weights(alphas), c, 1e-13, 1.0)  # with its leading nan as well


def test_weights_without_alphas_are_an_error():
    with pytest.raises(ValueError, match=r"α|alpha"):
        weights_to_alphas(np.array([1.0, 1.0, -1.0]))  # the stick is used up by c_1
    with pytest.raises(ValueError, match="sum"):
        weights_to_alphas(np.array([0.5, 0.2]))
    np.testing.assert_array_equal(alphas_to_weights(weights_to_alphas([1.0, 0.0, 0.0])), [1, 0, 0])


def test_a_joint_path_without_alphas_has_only_its_last_step(backend):
    """y_val = F_1 + F_2 − F_3 exactly: c = (1, 1, −1) uses the stick up at once."""
    K = np.diag([1.0, 1.0, 3.0, 3.0, 7.0, 7.0])
    a = np.diag(K) / (np.diag(K) + 1.0)
    s = spectrum(K, np.ones(6), "precomputed", backend=backend)
    path = distill(s, 1.0, "joint", 3, X_val=K, y_val=a + a**2 - a**3)
    assert_close(path.weights, np.array([1.0, 1.0, -1.0]), 1e-10)
    assert_close(path.predict(K), a + a**2 - a**3, 1e-12)
    if np.isnan(path.alphas).all():
        with pytest.raises(ValueError, match="step"):
            path.predict(K, step=2)
        with pytest.raises(ValueError, match="step"):
            path.predict(K, step="all")
    else:  # rounding has left a stick of 1e-13: the α's exist, huge, and lead to the same c
        assert np.abs(path.alphas[1:]).max() > 1e6


# ------------------------------------------------------------------ weights and criterion agree


def test_optimal_alpha_of_leave_one_out_predictions_is_the_greedy_alpha(backend, rng):
    """One step by hand from the public pieces."""
    X, Y, _, _ = draw(rng)
    s = spectrum(X, Y, RBF(0.5), backend=backend)
    G = leave_one_out(s, LAM, 0.0, 2)
    by_hand = optimal_alpha(Y, G[0], G[1])
    assert_close(distill(s, LAM, "optimal", 2).alphas[1], by_hand, 1e-12)


@pytest.mark.parametrize("shape", [(30,), (30, 3), (2, 1)])
@pytest.mark.parametrize("weighted", [False, True])
def test_grid_losses_are_those_of_every_cell(shape, weighted, rng):
    T, lams = 4, 3
    y, F = rng.normal(size=shape), rng.normal(size=(lams, T, *shape))
    w = rng.uniform(0.1, 2.0, size=shape[0]) if weighted else None
    C = np.stack([step_weights([np.nan, a, 0.3, -0.2]) for a in np.linspace(-1, 2, 7)])
    losses = grid_losses(y, F, C, sample_weight=w)
    each = grid_losses(y, F, C, sample_weight=w, per_target=True)
    assert losses.shape == (lams, 7, T)
    for cell in np.ndindex(*losses.shape):
        square = np.square(y - np.tensordot(C[cell[1:]], F[cell[0]], 1)).reshape(shape[0], -1)
        expected = np.average(square, axis=0, weights=w)
        np.testing.assert_allclose(each[cell], expected, rtol=1e-12)
        np.testing.assert_allclose(losses[cell], expected.mean(), rtol=1e-12)


def test_grid_losses_keep_the_digits_of_a_small_loss(rng):
    """Large weights cancel down to a residual of 1e-6; through RᵀR nothing would be left."""
    a, small = rng.normal(size=200), 1e-6 * rng.normal(size=200)
    c = np.array([300.0, -299.0])
    R = np.stack([a, (300.0 * a - small) / 299.0])
    y = np.zeros(200)
    loss = grid_losses(y, -R[None], c)[0]
    np.testing.assert_allclose(loss, np.mean(small**2), rtol=1e-5)


def test_grid_losses_refuse_what_does_not_fit(rng):
    y, F = rng.normal(size=5), rng.normal(size=(2, 3, 5))
    with pytest.raises(ValueError, match="sum to 1"):
        grid_losses(y, F, np.ones(3))
    with pytest.raises(ValueError, match=r"\(\.\.\., 3\)"):
        grid_losses(y, F, np.ones(2))
    with pytest.raises(ValueError, match="F must have shape"):
        grid_losses(y, F[0], np.ones(3) / 3)
    with pytest.raises(ValueError, match="do not match"):
        grid_losses(y[:4], F, np.ones(3) / 3)


@pytest.mark.parametrize("shape", [(1, 1, 3), (3, 1, 2), (1, 1, 2, 2), (2,)])
def test_weights_of_other_shapes_are_refused(shape):
    C = np.full(shape, 0.5)
    with pytest.raises(ValueError, match="weights must have shape"):
        cell_losses(np.ones(3), np.ones((2, 2, 3)), C)


@pytest.mark.parametrize(("m", "steps", "p", "lams"), [(1, 4, 1, 2), (3, 6, 2, 1), (50, 3, 4, 3)])
@pytest.mark.parametrize("weighted", [False, True])
def test_losses_of_cells_are_those_of_their_predictions(rng, m, steps, p, lams, weighted):
    y, F = rng.normal(size=(m, p)), rng.normal(size=(lams, steps, m, p))
    w = rng.integers(0, 3, m) + (np.arange(m) == 0) if weighted else None
    C = rng.normal(size=(lams, 5, steps, p))
    C[:, :, 0] += 1.0 - C.sum(2)
    cells = np.einsum("lskp,lkmp->lsmp", C, F)
    expected = np.average(np.square(y - cells), axis=2, weights=w)
    assert_allclose(cell_losses(y, F, C, sample_weight=w), expected, rtol=1e-10)
    shared = np.average(np.square(y - np.einsum("sk,lkmp->lsmp", C[0, ..., 0], F)), 2, w)
    assert_allclose(cell_losses(y, F, C[:1, ..., 0], sample_weight=w), shared, rtol=1e-10)
