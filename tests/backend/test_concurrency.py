"""Many threads and forked children: the same bits, and nothing hangs."""

from __future__ import annotations

import multiprocessing
import queue
import signal
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from processes import run_python

from selfdistill_fast import RBF, distill, gram, leave_one_out, spectrum
from selfdistill_fast._backend import threads

rng = np.random.default_rng(11)
X, Y, X_NEW = rng.standard_normal((150, 5)), rng.standard_normal(150), rng.standard_normal((400, 5))


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


# ------------------------------------------------------------ helpers that cannot be had
LATE = textwrap.dedent("""
    import atexit, sys, threading, time
    import numpy as np
    from selfdistill_fast import RBF, distill, gram, leave_one_out, spectrum
    X = np.random.default_rng(0).normal(size=(700, 5))
    def job():
        s = spectrum(X, X[:, 0], RBF(0.2))
        path = distill(s, 0.1, "optimal", 3)
        return gram(X, None, RBF(0.2), n_threads=2), path.predict(X), leave_one_out(s, 0.1, 0.5, 3)
    expected = job()
    def check(where):
        same = all(np.allclose(a, b, rtol=1e-10, atol=1e-12)
                   for a, b in zip(job(), expected, strict=True))
        same &= np.array_equal(gram(X, None, RBF(0.2), n_threads=2), expected[0])
        print(where, "same" if same else "different", flush=True)
""")


def test_in_an_atexit_handler():
    result = run_python(LATE + 'atexit.register(check, "atexit")\n')
    assert (result.returncode, result.stdout) == (0, "atexit same\n"), result.stderr


def test_first_call_in_an_atexit_handler():
    code = """
        import atexit
        import numpy as np
        from selfdistill_fast import RBF, gram
        X = np.random.default_rng(0).normal(size=(1500, 5))
        atexit.register(lambda: print(gram(X, None, RBF(0.2), n_threads=2).shape))
    """
    result = run_python(code)
    assert (result.returncode, result.stdout) == (0, "(1500, 1500)\n"), result.stderr


def test_in_a_thread_that_outlives_the_main_one():
    late = """
        def late():
            while threading.main_thread().is_alive():
                time.sleep(0.01)
            time.sleep(0.3)  # executors are shut down now
            check("late thread")
        threading.Thread(target=late).start()
    """
    result = run_python(LATE + textwrap.dedent(late))
    assert (result.returncode, result.stdout) == (0, "late thread same\n"), result.stderr


def test_calls_while_the_main_thread_ends():
    """Helpers disappear at any moment of a call, not between two."""
    late = """
        def late():
            ended = 0
            while ended < 20:
                ended += not threading.main_thread().is_alive()
                assert np.array_equal(gram(X, None, RBF(0.2), n_threads=2), expected[0])
            sys.stdout.write("same\\n")
        for _ in range(3):
            threading.Thread(target=late).start()
        time.sleep(0.2)
    """
    result = run_python(LATE + textwrap.dedent(late))
    assert (result.returncode, result.stdout) == (0, "same\n" * 3), result.stderr


class NoThread(threading.Thread):
    """A thread that the system refuses, from the second one on."""

    started_ones = 0

    def start(self):
        if NoThread.started_ones >= self.allowed:
            raise RuntimeError("can't start new thread")
        NoThread.started_ones += 1
        super().start()


@pytest.mark.parametrize("allowed", [0, 1])
def test_the_system_gives_no_further_thread(monkeypatch, allowed):
    """All blocks are done once, and none after ``run`` has returned."""
    monkeypatch.setattr(threads, "_helpers", 0)
    monkeypatch.setattr(threads, "_jobs", queue.SimpleQueue())
    monkeypatch.setattr(NoThread, "allowed", allowed, raising=False)
    monkeypatch.setattr(NoThread, "started_ones", 0)
    monkeypatch.setattr(threading, "Thread", NoThread)
    over = False
    done = []

    def block(lo, hi):
        time.sleep(0.002)
        assert not over
        done.extend(range(lo, hi))

    for _ in range(5):
        done.clear()
        over = False
        threads.run(block, 40, 1e6, n_threads=4)
        over = True
        assert sorted(done) == list(range(40))
    time.sleep(0.05)
    assert len(done) == 40


def test_threads_that_ask_for_more_and_more_helpers_at_once():

    def fill(n_threads):
        found = np.zeros(64)

        def block(lo, hi):
            found[lo:hi] += 1

        threads.run(block, 64, 1e5, n_threads=n_threads)
        return (found == 1).all()

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(fill, [2, 3, 4, 5, 6, 7, 8, 9] * 20))


def test_an_error_of_a_helper_is_raised_once_nothing_runs():
    running = []
    ended = []

    def block(lo, hi):
        running.append(lo)
        time.sleep(0.002)
        ended.append(lo)
        if threading.current_thread() is not threading.main_thread():
            raise OSError(f"of a helper in {lo}")

    with pytest.raises(OSError, match="of a helper"):
        threads.run(block, 400, 1e6, n_threads=3)
    assert sorted(running) == sorted(ended)
    assert len(ended) < 400


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs setitimer")
def test_interrupts_at_any_moment_neither_hang_nor_leave_a_block_running():
    code = """
        import signal, threading, time
        from selfdistill_fast._backend import threads
        main = threading.main_thread()
        in_a_block = set()  # helpers
        def block(lo, hi):
            helper = threading.current_thread() is not main
            if helper:
                in_a_block.add(threading.get_ident())
            time.sleep(5e-5)
            if helper:
                in_a_block.discard(threading.get_ident())
        def interrupt(*args):
            raise KeyboardInterrupt
        signal.signal(signal.SIGALRM, interrupt)
        caught = 0
        start = time.monotonic()
        while time.monotonic() < start + 4:
            try:
                signal.setitimer(signal.ITIMER_REAL, 1e-4 + 1e-3 * (caught % 7) / 7)
                threads.run(block, 400, 60000.0, 3)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                caught += 1
            assert not in_a_block
        signal.setitimer(signal.ITIMER_REAL, 0)
        print("caught", caught > 100)
    """
    result = run_python(code)
    assert (result.returncode, result.stdout) == (0, "caught True\n"), result.stderr
