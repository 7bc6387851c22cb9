"""The self-test: right where all is well, and a fault, a crash or a hang is never silent."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from typer.testing import CliRunner

import selfdistill_fast
from selfdistill_fast import check
from selfdistill_fast.backend import cuda_libraries, gpu
from selfdistill_fast.cli import app

CALLS = 10


def test_this_installation_is_well():
    found = list(check.self_check({"reference": None, "cpu": None}))
    assert [one for one in found if one.fault is not None] == []
    assert [one.backend for one in found] == ["reference"] * CALLS + ["cpu"] * CALLS
    assert {"gram RBF", "gram_matmul", "solver krylov"} <= {one.call for one in found}


def test_gpu_calls_on_the_stand_in(stand_in, capsys):
    check._main("gpu")
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    ended = [one for one in said if "seconds" in one]
    assert len(ended) == CALLS
    assert [one for one in ended if one["fault"] is not None] == []


def one_entry_wrong(function):
    def wrong(*args, **kwargs):
        found = function(*args, **kwargs)
        found[-1, 0] *= 1 + 1e-4
        return found

    return wrong


def nothing_works(*args, **kwargs):
    raise ZeroDivisionError


@pytest.mark.parametrize(
    ("name", "calls"),
    [("gram", 4), ("gram_matmul", 1), ("leave_one_out", 2), ("distill", 5)],
)
@pytest.mark.parametrize("broken", [one_entry_wrong, lambda function: nothing_works])
def test_a_wrong_result_is_a_fault(monkeypatch, capsys, name, calls, broken):
    if name == "distill" and broken is one_entry_wrong:
        path = selfdistill_fast.DistillationPath
        monkeypatch.setattr(path, "predict", lambda *a, **k: np.zeros((3, 300, 2)))
    else:
        monkeypatch.setattr(selfdistill_fast, name, broken(getattr(selfdistill_fast, name)))
    check._main("reference")
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    faults = [one["fault"] for one in said if one.get("fault")]
    assert len(faults) == calls
    expected = "wrong by" if broken is one_entry_wrong else "ZeroDivisionError"
    assert all(expected in fault for fault in faults)


@pytest.mark.skipif(os.name != "posix", reason="needs a shell script")
@pytest.mark.parametrize(
    ("ending", "call", "fault"),
    [
        ("kill -SEGV $$", "gram", "died by SIGSEGV"),
        ("echo 'ImportError: no such library' >&2; exit 1", "gram", "status 1: ImportError: no"),
        ("exec sleep 20", "gram", "no result after 1 s"),
    ],
)
def test_a_process_that_ends_early_is_a_fault(tmp_path, monkeypatch, ending, call, fault):
    python = tmp_path / "python"
    python.write_text(
        "#!/bin/sh\n"
        """echo '{"call": "load"}'; echo '{"call": "load", "seconds": 0.5, "fault": null}'\n"""
        """echo '{"call": "gram"}'\n""" + ending + "\n"
    )
    python.chmod(0o755)
    monkeypatch.setattr(check.sys, "executable", str(python))
    monkeypatch.setattr(check, "TIMEOUT", 1 if "sleep" in ending else 100)
    first, second = check.self_check({"cpu": None})
    assert (first.call, first.seconds, first.fault) == ("load", 0.5, None)
    assert second.call == call
    assert fault in second.fault


def test_a_gpu_that_cannot_be_used_is_a_fault_only_with_a_driver(monkeypatch):
    monkeypatch.setattr(cuda_libraries, "driver_version", lambda: None)
    assert "gpu" not in check.backends_here()
    monkeypatch.setattr(cuda_libraries, "driver_version", lambda: (13, 0))
    monkeypatch.setattr(cuda_libraries, "cupy_packages", dict)
    assert "gpu" not in check.backends_here()  # nobody wants one here
    monkeypatch.setattr(cuda_libraries, "cupy_packages", lambda: {"cupy-cuda13x": 13})

    def unusable(*args):
        raise gpu.GpuUnavailable("CuPy cannot load cublas")

    monkeypatch.setattr(gpu, "Gpu", unusable)
    here = check.backends_here()
    assert here["gpu"] == "CuPy cannot load cublas"
    (one,) = check.self_check({"gpu": here["gpu"]})
    assert (one.call, one.fault) == ("load", "CuPy cannot load cublas")


@pytest.mark.parametrize(
    ("reason", "status", "words"),
    [(None, 0, "1 checks passed"), ("made up", 1, "FAULT: made up")],
)
def test_info_check_ends_with_1_on_a_fault(monkeypatch, reason, status, words):
    found = [check.Check("cpu", "gram", 0.1, reason)]
    monkeypatch.setattr(check, "self_check", lambda: iter(found))
    result = CliRunner().invoke(app, ["info", "--check"])
    assert result.exit_code == status
    assert words in result.stdout
    result = CliRunner().invoke(app, ["info", "--check", "--json"])
    assert result.exit_code == status
    assert json.loads(result.stdout)["check"] == [
        {"backend": "cpu", "call": "gram", "seconds": 0.1, "fault": reason}
    ]
