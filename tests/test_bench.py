"""Benchmarks' processes: a peer that fails is reported, whichever way it ends."""

from __future__ import annotations

import importlib.util
import os
import signal
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[1] / "bench"


def module(name):
    spec = importlib.util.spec_from_file_location(f"bench_{name}", BENCH / f"{name}.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


child = module("child")


def crash():
    os.kill(os.getpid(), signal.SIGSEGV)


def run_out_of_memory(words):
    raise MemoryError(words)


def needs_what_is_missing():
    import a_module_that_nobody_has  # noqa: F401


def leave_without_result():
    os._exit(0)


def exit_with_message():
    raise SystemExit("no data")


def print_garbage(value):
    print('{"result": "garbage')
    os.write(1, b"\xff\x00 more garbage")
    return {"value": value, "from": os.environ.get("SDF_TEST_OF_CHILD")}


@pytest.mark.parametrize(
    ("job", "arguments", "expected"),
    [
        (crash, (), "crashed: SIGSEGV"),
        (run_out_of_memory, ("8 GiB",), "failed: MemoryError: 8 GiB"),
        (needs_what_is_missing, (), "absent"),
        (leave_without_result, (), "failed: no result, exit status 0"),
        (exit_with_message, (), "failed: SystemExit: no data"),
    ],
)
def test_a_peer_that_fails_says_how(job, arguments, expected):
    assert child.outcome(job, *arguments) == expected
    with pytest.raises(child.ChildFailed, match=expected):  # what our own cases use
        child.run(job, *arguments)


def test_what_a_peer_prints_is_not_its_result(capfd):
    found = child.run(print_garbage, 7, env={"SDF_TEST_OF_CHILD": "set"})
    assert found == {"value": 7, "from": "set"}
    assert child.outcome(print_garbage, 7) == {"value": 7, "from": None}


def test_without_data_a_stand_in_of_the_same_size(monkeypatch, tmp_path):
    monkeypatch.setenv("SELFDISTILL_DATA", str(tmp_path))
    data = module("data")
    assert data.kin40k_or_stand_in() == "stand-in for kin40k"
    X, y, X_test, y_test = data.kin40k()
    assert (X.shape, y.shape, X_test.shape, y_test.shape) == (
        (36000, 8), (36000,), (4000, 8), (4000,),
    )  # fmt: skip
    assert abs(X.mean(0)).max() < 1e-12
    assert abs(y.std() - 1) < 1e-12
    with pytest.raises(SystemExit, match="set SELFDISTILL_DATA"):
        data.split("protein", 0)
