"""Many threads and forked children: the same bits, and nothing hangs."""

from __future__ import annotations

import multiprocessing
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from selfdistill_fast import RBF, distill, gram, leave_one_out, spectrum

rng = np.random.default_rng(11)
X, Y, X_NEW = rng.standard_normal((300, 5)), rng.standard_normal(300), rng.standard_normal((400, 5))


def fit_and_predict(backend):
    s = spectrum(X, Y, RBF(0.2), backend=backend)
    path = distill(s, 0.1, "optimal", 3)
    return np.concatenate([path.predict(X_NEW, step="all").ravel(),
                           leave_one_out(s, 0.1, 0.5, 3).ravel()])  # fmt: skip


def test_predict_from_eight_threads_gives_the_same_bits(backend):
    path = distill(spectrum(X, Y, RBF(0.2), backend=backend), 0.1, "optimal", 3)
    expected = path.predict(X_NEW, step="all")
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: path.predict(X_NEW, step="all"), range(64)))
    assert all(np.array_equal(result, expected) for result in results)


def test_gram_from_eight_threads_gives_the_same_bits(backend):
    expected = gram(X, X_NEW, RBF(0.2), backend=backend)
    with ThreadPoolExecutor(8) as pool:
        results = list(
            pool.map(lambda _: gram(X, X_NEW, RBF(0.2), backend=backend, n_threads=2), range(32))
        )
    assert all(np.array_equal(result, expected) for result in results)


def test_fits_from_four_threads(backend):
    expected = fit_and_predict(backend)
    with ThreadPoolExecutor(4) as pool:
        for result in pool.map(lambda _: fit_and_predict(backend), range(8)):
            np.testing.assert_allclose(result, expected, rtol=1e-10, atol=1e-12)


def _child(connection, backend):
    connection.send(fit_and_predict(backend))
    connection.close()


@pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods() or sys.platform == "darwin",
    reason="this system does not fork safely",
)
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_can_fit(backend):
    """The parent's worker threads do not exist in the child; it must not wait for them."""
    expected = fit_and_predict(backend)
    context = multiprocessing.get_context("fork")
    for _ in range(2):
        receive, send = context.Pipe(duplex=False)
        child = context.Process(target=_child, args=(send, backend))
        child.start()
        try:
            assert receive.poll(120), "the forked child hangs"
            np.testing.assert_allclose(receive.recv(), expected, rtol=1e-10, atol=1e-12)
        finally:
            child.join(10)
            if child.is_alive():
                child.kill()
        assert child.exitcode == 0
    np.testing.assert_array_equal(fit_and_predict(backend), expected)  # and the parent still can
