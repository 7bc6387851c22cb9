"""Fixtures: the backends of this machine, the UCI data, a deterministic hypothesis."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import cuda_build
import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from selfdistill_fast._backend import cuda_loader

settings.register_profile(
    "selfdistill",
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=int(os.environ.get("SELFDISTILL_EXAMPLES", "60")),
    # `backend` is a name, the same for every example
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.differing_executors],
)
settings.load_profile("selfdistill")


def _missing(backend: str) -> str | None:
    """Why this backend cannot run here, or None."""
    if backend == "gpu" and not cuda_loader.devices() and cuda_build.compiler() is None:
        return "no CUDA device, and no C++ compiler to run its kernels on the host"
    return None


@contextlib.contextmanager
def standing_in(count=1):
    """A stand-in for CuPy, with ``count`` devices whose kernels run on the host."""
    import cupy_stand_in

    cupy = cupy_stand_in.make(count)
    before, cuda_loader.load = cuda_loader.load, lambda: cupy
    try:
        yield cupy
    finally:
        cuda_loader.load = before


@pytest.fixture
def stand_in():
    """The stand-in for CuPy, also where there is a device."""
    if cuda_build.compiler() is None:
        pytest.skip("no C++ compiler to run the CUDA kernels on the host")
    with standing_in() as cupy:
        yield cupy


@pytest.fixture(scope="session", params=["reference", "cpu", "gpu"])
def backend(request):
    """The name of each backend in turn; without a device "gpu" is on a stand-in for CuPy."""
    reason = _missing(request.param)
    if reason:
        pytest.skip(f"{request.param}: {reason}")
    return request.param


@pytest.fixture(autouse=True)
def _device_for_backend(request):
    """The stand-in, for the tests over "gpu" and no others."""
    needed = "backend" in request.fixturenames and request.getfixturevalue("backend") == "gpu"
    if needed and not cuda_loader.devices():
        with standing_in():
            yield
    else:
        yield


@pytest.fixture
def rng(request):
    """A generator seeded by the test's own name: adding a test changes no other."""
    return np.random.default_rng(list(request.node.name.encode()))


def _data_root() -> Path | None:
    given = os.environ.get("SELFDISTILL_DATA")
    root = Path(given) if given else Path(__file__).resolve().parents[2] / "shared" / "data"
    return root if (root / "uci").is_dir() else None


@pytest.fixture(scope="session")
def uci():
    """uci(name) -> X_train, y_train, X_test, y_test of split 0, standardised by the first two."""
    root = _data_root()
    if root is None:
        pytest.skip("no UCI data: set SELFDISTILL_DATA to the folder that holds uci/")

    def load(name, *, max_rows=None):
        folder = root / "uci" / name
        data = np.loadtxt(folder / "data.csv.gz", delimiter=",")
        test = np.loadtxt(folder / "test_mask.csv.gz", delimiter=",")[:, 0] == 1
        if max_rows is not None:
            rows = np.random.default_rng(0).permutation(len(data))[:max_rows]
            data, test = data[rows], test[rows]
        mean, deviation = data[~test].mean(0), data[~test].std(0)
        data = (data - mean) / np.where(deviation == 0, 1, deviation)
        X, y = data[:, :-1], data[:, -1]
        return X[~test], y[~test], X[test], y[test]

    return load
