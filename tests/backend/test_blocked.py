"""Factorisations by blocks: exact at every cut, and nothing large reaches LAPACK or syrk."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import selfdistill_fast
from selfdistill_fast._backend import blocked
from selfdistill_fast._backend.cpu import Cpu
from selfdistill_fast._backend.reference import Reference
from selfdistill_fast.kernels import Linear

PACKAGE = Path(selfdistill_fast.__file__).parent
SIZES = (0, 1, 2, 6, 7, 8, 13, 14, 15, 50)
both_dtypes = pytest.mark.parametrize("dtype", [np.float64, np.float32])


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of 7 rows, so that small matrices have many."""
    monkeypatch.setattr(blocked, "BLOCK_ROWS", 7)
    monkeypatch.setattr(blocked, "SYRK_ROWS", 7)


def definite(rng, n, dtype):
    A = rng.standard_normal((n, n + 3))
    return (A @ A.T / max(n, 1) + np.eye(n)).astype(dtype)


@both_dtypes
@pytest.mark.parametrize("n", SIZES)
def test_factor_and_inverse_at_every_cut(small_blocks, rng, n, dtype):
    K = definite(rng, n, dtype)
    given = K.copy()
    given[np.triu_indices(n, 1)] = np.nan  # only the lower triangle is read
    L = blocked.cholesky(given)
    rounding = 8 * max(n, 1) * np.finfo(dtype).eps
    assert L is given
    assert L.dtype == dtype
    assert (np.triu(L, 1) == 0).all()
    assert (np.diagonal(L) > 0).all()
    exact = L.astype(np.longdouble)
    assert np.abs(exact @ exact.T - K).max(initial=0.0) <= rounding * np.abs(K).max(initial=0.0)
    M = blocked.cholesky_inverse(L.copy())
    assert (M == M.T).all()
    product = M.astype(np.longdouble) @ (exact @ exact.T)
    assert np.abs(product - np.eye(n)).max(initial=0.0) <= 4 * rounding


@pytest.mark.parametrize("minor", [1, 7, 8, 20])
def test_the_first_minor_that_is_not_positive_is_named(small_blocks, rng, minor):
    K = definite(rng, 20, np.float64)
    K[minor - 1, minor - 1] = -1.0
    with pytest.raises(np.linalg.LinAlgError, match=rf"order {minor} is not positive"):
        blocked.cholesky(K)


def test_a_singular_factor_has_no_inverse(rng):
    L = np.tril(rng.standard_normal((9, 9)))
    L[4, 4] = 0.0
    with pytest.raises(np.linalg.LinAlgError, match="entry 5"):
        blocked.cholesky_inverse(L)


@both_dtypes
@pytest.mark.parametrize("k", SIZES)
@pytest.mark.parametrize("transposed", [False, True])
def test_inner_product(small_blocks, rng, k, dtype, transposed):
    P = rng.standard_normal((k, 11) if transposed else (11, k)).astype(dtype)
    P = P.T if transposed else P
    product = blocked.inner_product(P)
    exact = P.T.astype(np.longdouble) @ P.astype(np.longdouble)
    assert product.dtype == dtype
    assert (product == product.T).all()
    limit = 32 * np.finfo(dtype).eps * np.abs(exact).max(initial=0.0)
    assert np.abs(product - exact).max(initial=0.0) <= limit


@pytest.mark.parametrize("layout", ["C", "F", "part"])
def test_any_layout_may_be_factorised(rng, layout):
    K = definite(rng, 30, np.float64)
    given = {"C": K.copy(), "F": np.asfortranarray(K), "part": np.pad(K, 2)[2:-2, 2:-2]}[layout]
    for be in (Cpu(), Reference()):
        L = be.cholesky(given.copy(order="K"))
        np.testing.assert_allclose(L @ L.T, K, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(be.cholesky_inverse(L) @ K, np.eye(30), atol=1e-10)


# -------------------------------------------------------- nothing large gets through
class Spy(np.ndarray):
    """Remembers the orders of products of a matrix with its own transpose, NumPy's syrk."""

    orders: list[int] = []  # noqa: RUF012

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        plain = [np.asarray(a) for a in inputs]
        if ufunc is np.matmul:
            left, right = plain
            same = left.ctypes.data == right.ctypes.data and left.strides == right.strides[::-1]
            if same and left.shape == right.shape[::-1]:
                Spy.orders.append(len(left))
        return getattr(ufunc, method)(*plain, **kwargs)


def test_no_large_matrix_reaches_syrk(small_blocks, rng):
    Spy.orders.clear()
    blocked.inner_product(rng.standard_normal((5, 7)).view(Spy))
    assert Spy.orders == [7]  # the spy sees it
    blocked.inner_product(rng.standard_normal((5, 40)).view(Spy))
    assert max(Spy.orders) == 7


def test_no_large_matrix_reaches_a_factorisation(small_blocks, rng, monkeypatch):
    orders = {"potrf": [], "lauum": []}
    routine = blocked._routine

    def watched(dtype, name):
        call = routine(dtype, name)

        def recorded(*values):
            if name in orders:
                orders[name].append(values[1])
            return call(*values)

        return recorded

    monkeypatch.setattr(blocked, "_routine", watched)
    be = Cpu()
    be.cholesky_inverse(be.cholesky(definite(rng, 50, np.float64)))
    assert sum(orders["potrf"]) == sum(orders["lauum"]) == 50
    assert max(orders["potrf"] + orders["lauum"]) == 7


def test_the_reference_kernel_matrix_of_many_rows_is_not_a_syrk(small_blocks, rng):
    X = rng.standard_normal((20, 3))
    np.testing.assert_allclose(Reference().gram(X, None, Linear()), X @ X.T, atol=1e-13)
    K = definite(rng, 20, np.float64)
    np.testing.assert_allclose(Reference().cholesky(K), np.linalg.cholesky(K), atol=1e-13)


#: products of a matrix with its own transpose, each of an order that is small by construction
SMALL_PRODUCTS = {
    "blocked.py": 2,
    "landmarks.py": 1,
    "rates.py": 1,
    "cuda_algebra.py": 1,
    "_check.py": 1,
}


def syntax(node_type):
    """(file name, node) of every node of a type in the package."""
    for file in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, node_type):
                yield file.name, node


def turned(node):
    """(A, True) for A.T, else (A, False)."""
    is_turned = isinstance(node, ast.Attribute) and node.attr == "T"
    return (ast.dump(node.value), True) if is_turned else (ast.dump(node), False)


def test_the_sources_have_no_other_product_that_numpy_makes_a_syrk_of():
    """``P @ P.T`` and ``P.T @ P`` of the host go through Backend.inner_product."""
    factors = [
        (name, node.left, node.right)
        for name, node in syntax(ast.BinOp)
        if isinstance(node.op, ast.MatMult)
    ]
    factors += [
        (name, *node.args[:2])
        for name, node in syntax(ast.Call)
        if getattr(node.func, "attr", "") in ("dot", "matmul", "inner", "tensordot")
        and len(node.args) >= 2
    ]
    found = {}
    for name, left, right in factors:
        (a, a_turned), (b, b_turned) = turned(left), turned(right)
        if a == b and a_turned != b_turned:
            found[name] = found.get(name, 0) + 1
    assert found == SMALL_PRODUCTS


def test_the_sources_call_no_factorisation_that_uses_syrk():
    """Neither LAPACK's by name, nor those of NumPy and SciPy, but in these files."""
    lapack = re.compile("[sd]?(potrf|potri|lauum|pstrf)")
    users = set()
    for name, node in syntax((ast.Attribute, ast.ImportFrom, ast.Constant)):
        if isinstance(node, ast.Attribute):
            of_linalg = ast.unparse(node.value).endswith("linalg")
            used = lapack.fullmatch(node.attr) or (
                of_linalg and node.attr in ("cholesky", "cho_factor")
            )
        elif isinstance(node, ast.ImportFrom):
            names = {alias.name for alias in node.names}
            of_linalg = "linalg" in (node.module or "")
            used = any(map(lapack.fullmatch, names)) or (
                of_linalg and names & {"cholesky", "cho_factor"}
            )
        else:
            used = isinstance(node.value, str) and lapack.fullmatch(node.value)
        if used and name != "cuda_algebra.py":  # cuSOLVER's are other libraries
            users.add((name, ast.unparse(node)))
    assert users == {
        ("blocked.py", "'potrf'"),
        ("blocked.py", "'lauum'"),
        ("reference.py", "np.linalg.cholesky"),  # up to SYRK_ROWS
    }


PROBLEM = """
import resource, sys
import numpy as np
from selfdistill_fast import RBF, SelfDistilledKernelRidge, gram, leave_one_out, spectrum

n = int(sys.argv[2])
rng = np.random.default_rng(0)
X = rng.standard_normal((n, 6))
y = np.sin(X.sum(1)) + 0.1 * rng.standard_normal(n)
peak = lambda: 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
"""

OURS = (
    PROBLEM
    + """
model = SelfDistilledKernelRidge(gamma=0.1).fit(X, y)
dual, alpha = model.dual_coef_, model.alphas_[1]
del model
s = spectrum(X, y, RBF(0.1), lam=1.0)
loo = leave_one_out(s, 1.0, 0.5, 2)
np.savez(sys.argv[1], dual=dual, alpha=alpha, loo=loo, peak=peak() - before,
         planned=next(cost.bytes for cost in s.plan.costs if cost.solver == s.plan.solver))
"""
)

SCIPY = (
    PROBLEM
    + """
from scipy.linalg.lapack import dpotrf, dpotri, dpotrs

K = gram(X, kernel=RBF(0.1))
K[np.diag_indices(n)] += 1.0
U, info = dpotrf(K.T, lower=0, overwrite_a=1)
c1 = dpotrs(U, y)[0]
c2 = dpotrs(U, y - c1)[0]  # A = I - M, lam = 1
M, info = dpotri(U, lower=0, overwrite_c=1)
m1 = np.diagonal(M).copy()
m2 = np.empty(n)  # diag M^2
for i in range(n):
    m2[i] = M[:i + 1, i] @ M[:i + 1, i] + M[i, i + 1:] @ M[i, i + 1:]
a1, a2 = 1.0 - m1, 1.0 - 2.0 * m1 + m2
A1y, A2y = y - c1, y - c1 - c2
delta = -c1 / m1  # what replaces y_i is y_i + delta_i
first = y + delta
pure = (A2y + a2 * delta - a1 * (A1y + a1 * delta)) / m1
np.savez(sys.argv[1], c1=c1, c2=c2, first=first, pure=pure)
"""
)


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
def test_twenty_thousand_rows(tmp_path, threads):
    """A default fit and its leave-one-out, beside SciPy's LAPACK on one thread."""

    def run(program, name, count):
        names = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
        done = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / name), "20000"],
            env={**os.environ, **dict.fromkeys(names, str(count))},
            capture_output=True, encoding="utf-8", check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"status {done.returncode}: {done.stderr}"
        return np.load(tmp_path / name)

    ours, scipy = run(OURS, "ours.npz", threads), run(SCIPY, "scipy.npz", 1)

    def error(a, b):
        return np.abs(a - b).max() / np.abs(b).max()

    alpha = float(ours["alpha"])
    assert error(ours["dual"], alpha * scipy["c1"] + (1.0 - alpha) * scipy["c2"]) <= 1e-10
    assert error(ours["loo"][0], scipy["first"]) <= 1e-10
    assert error(ours["loo"][1], 0.5 * scipy["first"] + 0.5 * scipy["pure"]) <= 1e-10
    assert ours["peak"] <= 1.1 * ours["planned"]
