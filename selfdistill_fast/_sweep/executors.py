"""Execution of a sweep: in this process, on several GPUs, or on a Dask cluster.

An executor is a function of (job, data, kernels) that yields the position and outcome of each
kernel, in any order; an outcome is the scores, or the exception with which the kernel failed.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from selfdistill_fast._backend import Gpu, device_of, devices, get_backend
from selfdistill_fast._backend.threads import limits_by_any_thread
from selfdistill_fast._sweep.grid import Job
from selfdistill_fast._sweep.score import score_kernel
from selfdistill_fast.kernels import Kernel

__all__ = ["Executor", "executor"]

Outcomes = Generator[tuple[int, dict[str, Any] | Exception], None, None]
Executor = Callable[[Job, dict[str, Any], list[Kernel]], Outcomes]
#: rounds in which a cluster may lose every task before the sweep gives up
_LOST_ROUNDS = 3


def executor(be: Any, backend: Any, client: Any, arrays: dict[str, Any]) -> Executor:
    """The cluster if there is a client; all GPUs for arrays on the host; else this process."""
    if client is not None:
        return on_cluster(client)
    if backend == "gpu" and device_of(arrays)[1] is None and len(devices()) > 1:
        return on_devices(be, devices())
    return in_process


def in_process(job: Job, data: dict[str, Any], kernels: list[Kernel]) -> Outcomes:
    """Position and outcome of each kernel, one after another, in this process."""
    for position, kernel in enumerate(kernels):
        try:
            outcome: Any = score_kernel(job, data, kernel)
        except Exception as error:
            outcome = error
        yield position, outcome


def on_devices(be: Any, numbers: list[int]) -> Executor:
    """As :func:`in_process`, with one kernel at a time on each of several GPUs, in any order."""

    def run(job: Job, data: dict[str, Any], kernels: list[Kernel]) -> Outcomes:
        host = {name: None if a is None else be.to_numpy(a) for name, a in data.items()}
        free: queue.SimpleQueue[int] = queue.SimpleQueue()
        for number in numbers:
            free.put(number)

        def score(kernel: Kernel) -> dict[str, Any]:
            number = free.get()
            try:
                gpu = Gpu(device=number)
                with gpu.on():
                    return score_kernel(replace(job, backend=gpu), host, kernel)
            finally:
                free.put(number)

        with ThreadPoolExecutor(len(numbers), thread_name_prefix="selfdistill_fast") as pool:
            futures = {pool.submit(score, kernel): i for i, kernel in enumerate(kernels)}
            try:
                for future in as_completed(futures):
                    error = future.exception()
                    if error is not None and not isinstance(error, Exception):
                        raise error
                    yield futures[future], error or future.result()
            finally:
                for future in futures:
                    future.cancel()

    return run


#: a worker process factorises one kernel at a time, with all of its threads
_alone = threading.Lock()


def _on_worker(job: Job, data: dict[str, Any], kernel: Kernel) -> dict[str, Any]:
    """:func:`score_kernel` on a Dask worker, with the worker's threads and memory."""
    import scipy.linalg  # noqa: F401  its BLAS is limited only once it is loaded
    from distributed import get_worker
    from threadpoolctl import threadpool_limits

    worker = get_worker()
    n_threads = int(worker.state.nthreads)
    memory = worker.memory_manager.memory_limit
    if job.max_memory is None and memory:
        job = replace(job, max_memory=int(0.8 * memory))
    with _alone, ExitStack() as limits:
        limits_by_any_thread()
        limits.enter_context(threadpool_limits(limits=n_threads, user_api="blas"))
        backend = get_backend(job.backend, n_threads=n_threads)
        return score_kernel(replace(job, backend=backend), data, kernel)


def on_cluster(client: Any) -> Executor:
    """As :func:`in_process`, on a Dask cluster and in any order."""
    from distributed import CancelledError, as_completed

    def run(job: Job, data: dict[str, Any], kernels: list[Kernel]) -> Outcomes:
        waiting, lost_rounds = list(range(len(kernels))), 0
        while waiting:
            # on every worker: the data survive as long as one worker does
            (shared,) = client.scatter([data], broadcast=True, hash=False)
            futures = {
                client.submit(_on_worker, job, shared, kernels[i], pure=False): i for i in waiting
            }
            try:
                lost = {}
                for future in as_completed(list(futures)):
                    i = futures[future]
                    try:
                        outcome: Any = future.result()
                    except CancelledError as error:  # its data died with the last worker
                        lost[i] = error
                        continue
                    except Exception as error:
                        outcome = error
                    future.release()
                    yield i, outcome
            finally:
                client.cancel([future for future in futures if not future.done()])
            lost_rounds = lost_rounds + 1 if len(lost) == len(waiting) else 0
            if lost_rounds == _LOST_ROUNDS:
                yield next(iter(lost.items()))
                return
            waiting = list(lost)

    return run
