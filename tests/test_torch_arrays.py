"""Tensors of torch wherever arrays enter: the numbers they hold, or an error that says what to do.

On a CUDA device they are test_gpu.py's.
"""

from __future__ import annotations

import importlib.util
import warnings

import numpy as np
import pytest
from processes import run_python

torch = pytest.importorskip("torch", reason="torch is not installed")

from selfdistill_fast import (  # noqa: E402
    RBF,
    SelfDistilledKernelRidge,
    SelfDistilledKernelRidgeCV,
    distill,
    gram,
    gram_matmul,
    joint_weights,
    leave_fold_out,
    leave_one_out,
    optimal_alpha,
    shrinkage_path,
    spectrum,
)
from selfdistill_fast.alpha import greedy_alphas  # noqa: E402
from selfdistill_fast.diagnostics import convergence_rate, shrinkage_ratios  # noqa: E402

N = 12
rng = np.random.default_rng(4)
# three decimals of a binary fraction: exact in bfloat16
X = rng.integers(-15, 16, size=(N, 2)) / 8.0
Y = rng.integers(-15, 16, size=N) / 8.0
W = rng.integers(1, 8, size=N) / 4.0
FIRST, SECOND = 0.5 * Y, 0.25 * Y[::-1].copy()
KERNEL = RBF(0.5)


def fitted(x=X, y=Y, **options):
    return spectrum(x, y, KERNEL, **options)


def path():
    return distill(fitted(), 0.5, 0.5, 2)


#: where arrays enter -> (name in messages, function of a converter, from NumPy to a tensor)
ENTRIES = {
    "gram X": ("X", lambda t: gram(t(X), kernel=KERNEL)),
    "gram Z": ("Z", lambda t: gram(X, t(X), KERNEL)),
    "gram_matmul W": ("W", lambda t: gram_matmul(X, None, t(W[:, None]), KERNEL)),
    "spectrum X": ("X", lambda t: fitted(t(X)).d),
    "spectrum Y": ("Y", lambda t: fitted(y=t(Y)).z),
    "nystrom X": ("X", lambda t: fitted(t(X), solver="nystrom", n_landmarks=5, random_state=0).d),
    "sample_weight": ("sample_weight", lambda t: fitted(sample_weight=t(W)).d),
    "predict": ("X", lambda t: path().predict(t(X))),
    "X_val": ("X_val", lambda t: distill(fitted(), 0.5, "optimal", 2, X_val=t(X), y_val=W).alphas),
    "y_val": ("y_val", lambda t: distill(fitted(), 0.5, "optimal", 2, X_val=X, y_val=t(W)).alphas),
    "lam": ("lam", lambda t: leave_one_out(fitted(), t(W[:2]), 0.5, 2)),
    "alpha": ("alpha", lambda t: leave_one_out(fitted(), 0.5, t(W[:1]), 2)),
    "folds": ("folds", lambda t: leave_fold_out(fitted(), 0.5, 0.5, 2, t(np.arange(N) % 3.0))),
    "d": ("d", lambda t: shrinkage_path(t(W), 0.5, 0.5, 2)),
    "ratios d": ("d", lambda t: shrinkage_ratios(t(W), 0.5, 0.5, 2)),
    "rate d": ("d", lambda t: convergence_rate(t(W), 0.5, 0.5)),
    "optimal_alpha y": ("y", lambda t: optimal_alpha(t(Y), t(FIRST), t(SECOND))),
    "optimal_alpha weight": (
        "sample_weight",
        lambda t: optimal_alpha(Y, FIRST, SECOND, sample_weight=t(W)),
    ),
    "joint_weights F": ("F", lambda t: joint_weights(Y, t(np.stack([FIRST, SECOND])))),
    "greedy_alphas F": ("F", lambda t: greedy_alphas(Y, t(np.stack([FIRST, SECOND])))),
    "fit X": ("X", lambda t: SelfDistilledKernelRidge().fit(t(X), Y).dual_coef_),
    "fit y": ("y", lambda t: SelfDistilledKernelRidge().fit(X, t(Y)).dual_coef_),
    "fit weight": ("sample_weight", lambda t: SelfDistilledKernelRidge().fit(X, Y, t(W)).loo_mse_),
    "fit X_val": (
        "X_val",
        lambda t: SelfDistilledKernelRidge().fit(X, Y, X_val=t(X), y_val=W).alphas_,
    ),
    "fit of CV": ("X", lambda t: SelfDistilledKernelRidgeCV().fit(t(X), t(Y)).best_score_),
    "estimator predict": ("X", lambda t: SelfDistilledKernelRidge().fit(X, Y).predict(t(X))),
    "score X": ("X", lambda t: SelfDistilledKernelRidge().fit(X, Y).score(t(X), Y)),
    "score y": ("y", lambda t: SelfDistilledKernelRidge().fit(X, Y).score(X, t(Y))),
    "score weight": (
        "sample_weight",
        lambda t: SelfDistilledKernelRidge().fit(X, Y).score(X, Y, t(W)),
    ),
}
entries = pytest.mark.parametrize("entry", ENTRIES)


def quantised(a):
    return torch.quantize_per_tensor(torch.tensor(a).float(), 0.125, 0, torch.qint8)


TAKEN = {
    "plain": torch.tensor,
    "requires_grad": lambda a: torch.tensor(a).requires_grad_(),
    "a result of grad": lambda a: torch.tensor(a).requires_grad_() * 1.0,
    "Parameter": lambda a: torch.nn.Parameter(torch.tensor(a)),
    "bfloat16": lambda a: torch.tensor(a).bfloat16(),
    "bfloat16 with grad": lambda a: torch.tensor(a).bfloat16().requires_grad_(),
    "negative bit": lambda a: torch.complex(0 * torch.tensor(a), -torch.tensor(a)).conj().imag,
    "strided": lambda a: torch.tensor(np.repeat(a, 2, axis=0))[::2],
}
REFUSED = {
    "complex": (lambda a: torch.tensor(a).to(torch.complex128), "real"),
    "conjugate": (lambda a: torch.tensor(a).to(torch.complex128).conj(), "real"),
    "sparse": (lambda a: torch.tensor(a).to_sparse(), r"sparse.*to_dense\(\)"),
    "sparse rows": (
        lambda a: torch.tensor(a.reshape(len(a), -1)).to_sparse_csr(),
        r"sparse.*to_dense\(\)",
    ),
    "mkldnn": (lambda a: torch.tensor(a).float().to_mkldnn(), r"to_dense\(\)"),
    "quantised": (quantised, r"quantised.*dequantize\(\)"),
    "meta": (lambda a: torch.tensor(a).to("meta"), "meta device"),
    "nested": (lambda a: torch.nested.nested_tensor([torch.tensor(a)] * 2), "nested"),
}


@entries
@pytest.mark.parametrize("kind", TAKEN)
@pytest.mark.filterwarnings("ignore:the best:UserWarning")
def test_taken(entry, kind):
    """The same bits as NumPy arrays of the same numbers, without a warning."""
    call, convert = ENTRIES[entry][1], TAKEN[kind]

    def numbers(a):
        single = "bfloat16" in kind
        return np.asarray(a, dtype=np.float32) if single else a

    expected = call(numbers)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "the best")
        found = call(convert)
    assert type(found) is type(expected)
    np.testing.assert_array_equal(found, expected)
    assert np.asarray(found).dtype == np.asarray(expected).dtype


@entries
@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.filterwarnings("ignore")
def test_refused(entry, kind):
    """With the name of the argument, and what to do."""
    name, call = ENTRIES[entry]
    convert, message = REFUSED[kind]
    with pytest.raises(TypeError, match=rf"^{name}\b.*{message}"):
        call(convert)


@pytest.mark.parametrize("kind", ["plain", "requires_grad", "bfloat16"])
def test_lists_of_tensors(kind):
    rows = list(TAKEN[kind](X))
    np.testing.assert_allclose(gram(rows, kernel=KERNEL), gram(X, kernel=KERNEL), rtol=1e-6)
    model = SelfDistilledKernelRidge()
    found = model.fit(rows, list(TAKEN[kind](Y))).predict(rows)
    np.testing.assert_allclose(found, model.fit(X, Y).predict(X), rtol=1e-4)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_memory_is_shared_where_it_can_be(backend):
    """A tensor is read in place."""
    from selfdistill_fast._backend import get_backend

    tensor = torch.tensor(X).requires_grad_()
    assert np.shares_memory(get_backend(backend).asarray(tensor, "X"), tensor.detach().numpy())


def test_complex_numbers_of_numpy_are_refused_too():
    """Their imaginary part is not dropped in silence."""
    with pytest.raises(TypeError, match="real"):
        optimal_alpha(Y + 1j, FIRST, SECOND)
    with pytest.raises(TypeError, match="alpha"):
        distill(fitted(), 0.5, np.array([0.5 + 1j]), 2)
    with pytest.raises(TypeError, match="real"):
        joint_weights(Y, np.stack([FIRST, SECOND]) + 1j)


def test_what_numpy_cannot_read_is_named():
    class Unreadable:
        def __array__(self, dtype=None, copy=None):
            raise RuntimeError("not now")

    with pytest.raises(TypeError, match="X cannot be read as an array: not now"):
        gram(Unreadable(), kernel=KERNEL)


def test_array_api_dispatch():
    """scikit-learn's dispatch is switched on: tensors in, tensors of predictions out."""
    if importlib.util.find_spec("sklearn.externals.array_api_compat") is None:
        pytest.importorskip("array_api_compat")  # older scikit-learn has none of its own
    code = """
        import numpy as np, sklearn, torch
        from sklearn.model_selection import GridSearchCV, cross_val_score
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
        from selfdistill_fast import SelfDistilledKernelRidge, SelfDistilledKernelRidgeCV

        rng = np.random.default_rng(0)
        X = rng.normal(size=(40, 2))
        y = np.stack([np.sin(X[:, 0]), X[:, 1]], axis=1)
        w = rng.uniform(0.5, 2, size=40)
        for model in (
            SelfDistilledKernelRidge(n_steps=3, lam=0.1),
            SelfDistilledKernelRidgeCV(lams=[0.01, 0.1, 1.0, 10.0], gammas=[0.1, 0.5, 1, 3]),
        ):
            for targets in (y, y[:, 0]):
                model.fit(X, targets, w)
                expected = model.predict(X), model.predict_path(X), model.score(X, targets, w)
                with sklearn.config_context(array_api_dispatch=True):
                    t = [torch.tensor(a) for a in (X, targets, w)]
                    model.fit(*t, X_val=None)
                    found = model.predict(t[0])
                    assert isinstance(found, torch.Tensor), type(found)
                    assert found.dtype == torch.float64 and found.device.type == "cpu"
                    assert isinstance(model.dual_coef_, np.ndarray)
                    np.testing.assert_array_equal(found.numpy(), expected[0])
                    np.testing.assert_array_equal(model.predict_path(t[0]).numpy(), expected[1])
                    assert abs(model.score(*t) - expected[2]) < 1e-12
                    grads = [a.clone().requires_grad_() for a in t[:2]]
                    assert abs(model.score(*grads) - model.score(X, targets)) < 1e-12
                    assert isinstance(model.predict(X), np.ndarray)  # the kind of X
                    assert isinstance(model.predict(X.tolist()), np.ndarray)
                    assert model.predict(t[0].float()).dtype == torch.float64
                assert isinstance(model.predict(t[0]), np.ndarray)  # dispatch is off
        X, y = torch.tensor(X), torch.tensor(y[:, 0])
        with sklearn.config_context(array_api_dispatch=True):
            pipe = make_pipeline(StandardScaler(), SelfDistilledKernelRidge(lam=0.1))
            for scoring in (None, "r2", "neg_mean_squared_error"):
                assert (cross_val_score(pipe, X, y, scoring=scoring) > -1).all()
        print("done")
    """
    result = run_python(code, SCIPY_ARRAY_API="1")
    assert result.stdout.strip() == "done", result.stderr
