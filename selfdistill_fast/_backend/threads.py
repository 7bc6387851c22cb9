"""The only file that handles threads: runs a loop of the C core over a range of units.

The range is divided into blocks whose size depends on the cost of a unit, not on the number of
threads, and the loops give the same bits for any division. The calling thread works as well; the
helpers are the package's own threads, started for the first range that is large enough. The
caller alone processes a range below the grain, or one for which no helper is available: in an
``atexit`` handler, in a thread that outlives the main one, or at the limit of threads. The helpers
never call BLAS, so thread pools do not nest.

Ctrl-C (or any exception) stops the range: no further block starts, and the running ones, a few
milliseconds each, are awaited, so that nothing writes to a buffer after ``run`` has returned. An
interrupt may arrive between acquiring a lock and entering its ``with`` block, and leave it locked:
inside the methods of Condition, Semaphore and Future, and from CPython 3.14 on anywhere. Hence
locks are RLocks, which the interrupted thread can acquire again and then release.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import numbers
import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

from selfdistill_fast._backend import host

__all__ = [
    "Work",
    "check_n_threads",
    "limits_by_any_thread",
    "n_threads_now",
    "one_blas_thread",
    "run",
]

#: the work for a range [lo, hi), done at once or one step at a time
Work: TypeAlias = Callable[[int, int], Iterable[object] | None]

#: least and most nanoseconds of work in a block: long compared with the cost of dispatching it
#: (some microseconds), short for Ctrl-C and for waiting for the last block
BLOCK_NS = (50_000, 2_000_000)
#: number of blocks in a range, unless they would be too short
BLOCKS = 32
#: below this much work the helpers cost more than they gain
GRAIN_NS = 150_000

_available_cpus = functools.cache(host.available_cpus)

_lock = threading.RLock()
_jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
#: helpers that wait for jobs; daemon threads, which run until the interpreter ends
_helpers = 0


def check_n_threads(n_threads: object) -> int | None:
    """``n_threads`` as a positive int or None; TypeError or ValueError otherwise."""
    if n_threads is None:
        return None
    if isinstance(n_threads, bool) or not isinstance(n_threads, numbers.Integral):
        raise TypeError(f"n_threads must be a positive integer or None, got {n_threads!r}")
    if n_threads < 1:
        raise ValueError(
            f"n_threads must be at least 1, got {n_threads}; "
            "None means all that this process may use"
        )
    return int(n_threads)


def n_threads_now(n_threads: int | None = None) -> int:
    """Number of threads: as requested, else from OMP_NUM_THREADS, affinity and cgroup quota."""
    if n_threads is not None:
        return n_threads
    available = _available_cpus()
    try:
        # a list gives the threads of each nesting level; ours is the outermost
        requested = int(os.environ.get("OMP_NUM_THREADS", "").split(",")[0])
    except ValueError:
        return available
    return min(requested, available) if requested > 0 else available


def _ask_for_help(job: Callable[[], None], count: int) -> None:
    """Let ``count`` helpers call ``job``, or as many as are available."""
    global _helpers
    with _lock:
        try:
            while _helpers < count:
                serve = functools.partial(_serve, _jobs)
                threading.Thread(target=serve, name="selfdistill_fast", daemon=True).start()
                _helpers += 1
        except RuntimeError:  # the interpreter is ending, or the system refuses another thread
            pass
        for _ in range(min(count, _helpers)):
            _jobs.put(job)


def _serve(jobs: queue.SimpleQueue[Callable[[], None]]) -> None:
    while True:
        job = jobs.get()
        job()
        del job  # it holds the buffers of its range


def _nothing(lo: int, hi: int) -> None:
    """Of a range that is over."""


def _unlock(lock: threading.RLock) -> None:
    """Release locks that an interrupt left this thread holding, outside ``with lock``."""
    with contextlib.suppress(RuntimeError):
        while True:
            lock.release()


def _begin_anew() -> None:
    """Forget the helpers: in a forked child the parent's threads do not exist."""
    global _lock, _jobs, _helpers, _limit_lock, _limit_users, _limits
    _lock, _jobs, _helpers = threading.RLock(), queue.SimpleQueue(), 0
    _limit_lock, _limit_users, _limits = threading.Lock(), 0, None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)


def run(
    function: Work,
    count: int,
    cost_ns: float,
    n_threads: int | None = None,
) -> None:
    """Call ``function(lo, hi)`` on blocks that cover ``range(count)``, in any order.

    Parameters
    ----------
    function : callable
        Releases the GIL and may run concurrently with itself. A long-running one is a
        generator, so that it can be stopped where it yields.
    count : int
        Number of units.
    cost_ns : float
        Approximate time of one unit on one thread, in nanoseconds.
    n_threads : int, optional
        None: as many as the process may use.

    Raises
    ------
    Any exception of ``function``, or KeyboardInterrupt, once no block is running.
    """
    block_ns = min(max(count * cost_ns / BLOCKS, BLOCK_NS[0]), BLOCK_NS[1])
    block = max(1, round(block_ns / max(cost_ns, 1.0)))
    n_blocks = -(-count // block)
    threads = min(n_threads_now(n_threads), n_blocks)
    if count * cost_ns < GRAIN_NS:
        threads = 1
    lock = threading.RLock()
    numbers_ = itertools.count()
    running = 0  # helpers at work
    ended: queue.SimpleQueue[None] = queue.SimpleQueue()
    closed = stop = False  # no helper may begin; no work may continue
    errors: list[BaseException] = []

    def work() -> None:
        while not stop:
            with lock:
                number = next(numbers_)
            if number >= n_blocks:
                return
            pauses = function(number * block, min((number + 1) * block, count))
            for _ in pauses or ():
                if stop:
                    return

    def help_() -> None:
        nonlocal running, stop
        with lock:
            if closed:  # it was busy elsewhere while there was work here
                return
            running += 1
        try:
            work()
        except BaseException as error:
            errors.append(error)
            stop = True
        finally:
            with lock:
                running -= 1
            ended.put(None)

    try:
        if threads > 1:
            _ask_for_help(help_, threads - 1)
        work()
    except BaseException as error:
        errors.insert(0, error)
        stop = True
    while True:
        try:
            _unlock(lock)
            if errors:
                _unlock(_lock)
            with lock:
                closed = True
                if not running:
                    break
            ended.get(timeout=0.05)  # an interrupt may have lost a message: check again
        except queue.Empty:
            pass
        except KeyboardInterrupt as error:  # however often it is pressed
            errors.append(error)
            stop = True
    function = _nothing  # a helper busy elsewhere may still hold this job: drop its buffers
    try:
        if errors:
            raise errors[0]
    finally:
        errors.clear()  # they refer to this frame, and so to the buffers of ``function``


_limit_lock = threading.Lock()
_limit_users = 0
_limits: object = None


def limits_by_any_thread() -> None:
    """Let this thread set or lift a limit of OpenBLAS that another thread has set.

    From 3.8 on, threadpoolctl silently ignores all threads except the first that set a limit.
    """
    import threadpoolctl

    controller = getattr(threadpoolctl, "OpenBLASController", None)
    if controller is not None and hasattr(controller, "clear_controlling_thread"):
        controller.clear_controlling_thread(force=True)


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """BLAS and OpenMP with one thread while any caller is inside, such as a Dask task.

    The limit applies to the process: the first task sets it, the last one lifts it.
    """
    import threadpoolctl  # scikit-learn needs it as well

    global _limit_users, _limits
    with _limit_lock:
        if _limit_users == 0:
            limits_by_any_thread()
            _limits = threadpoolctl.threadpool_limits(1)
        _limit_users += 1
    try:
        yield
    finally:
        with _limit_lock:
            _limit_users -= 1
            if _limit_users == 0:
                limits_by_any_thread()
                _limits.restore_original_limits()  # type: ignore[attr-defined]
                limits_by_any_thread()  # the next thread may set a limit again
                _limits = None
