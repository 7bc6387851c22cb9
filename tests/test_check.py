"""The self-test: right where all is well, and a fault, a crash or a hang is never silent."""

from __future__ import annotations

import io
import json
import os

import numpy as np
import pytest
from processes import run_python
from typer.testing import CliRunner

import selfdistill_fast
from selfdistill_fast import _check as check
from selfdistill_fast._backend import cuda_libraries, cuda_loader
from selfdistill_fast.cli import app

CALLS = 11


def test_this_installation_is_well():
    found = list(check.self_check(["reference", "cpu"]))
    assert [one for one in found if one.fault is not None] == []
    assert [one.backend for one in found] == ["reference"] * CALLS + ["cpu"] * CALLS
    assert {"gram RBF", "gram_matmul", "solver krylov"} <= {one.call for one in found}


def said_by(backend):
    answers = io.StringIO()
    check._run(backend, answers)
    return [json.loads(line) for line in answers.getvalue().splitlines()]


def test_gpu_calls_on_the_stand_in(stand_in):
    ended = [one for one in said_by("gpu") if "seconds" in one]
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
def test_a_wrong_result_is_a_fault(monkeypatch, name, calls, broken):
    if name == "distill" and broken is one_entry_wrong:
        path = selfdistill_fast.DistillationPath
        monkeypatch.setattr(path, "predict", lambda *a, **k: np.zeros((3, 300, 2)))
    else:
        monkeypatch.setattr(selfdistill_fast, name, broken(getattr(selfdistill_fast, name)))
    faults = [one["fault"] for one in said_by("reference") if one.get("fault")]
    assert len(faults) == calls
    expected = "wrong by" if broken is one_entry_wrong else "ZeroDivisionError"
    assert all(expected in fault for fault in faults)


@pytest.mark.skipif(os.name != "posix", reason="needs a shell script")
@pytest.mark.parametrize(
    ("ending", "fault"),
    [
        ("kill -SEGV $$", "died by SIGSEGV"),
        ("kill -40 $$", "died by signal 40"),
        ("echo 'ImportError: no such library' >&2; exit 1", "status 1: ImportError: no"),
        ("exec sleep 60", "no result after 5 s"),
        ("exit 0", "status 0: no message"),
    ],
)
def test_a_process_that_ends_early_is_a_fault(tmp_path, monkeypatch, ending, fault):
    python = tmp_path / "python"
    python.write_text(
        "#!/bin/sh\n"
        """echo '{"call": "load"}'; echo '{"call": "load", "seconds": 0.5, "fault": null}'\n"""
        """echo '{"call": "gram"}'\n""" + ending + "\n",
        encoding="utf-8",
    )
    python.chmod(0o755)
    monkeypatch.setattr(check.sys, "executable", str(python))
    monkeypatch.setattr(check, "TIMEOUT", 5 if "sleep" in ending else 100)
    first, second = check.self_check(["cpu"])
    assert (first.call, first.seconds, first.fault) == ("load", 0.5, None)
    assert second.call == "gram"
    assert fault in second.fault


def test_what_is_checked_is_what_is_installed(tmp_path, monkeypatch):
    """Not a folder of the same name, such as that of a clone, in the working directory."""
    (tmp_path / "selfdistill_fast").mkdir()
    (tmp_path / "selfdistill_fast" / "__init__.py").write_text(
        "raise ImportError('a clone')\n", encoding="utf-8"
    )
    monkeypatch.chdir(tmp_path)
    commands = []
    run = check.subprocess.run  # an editable install is found first in any case
    monkeypatch.setattr(
        check.subprocess, "run", lambda command, **k: commands.append(command) or run(command, **k)
    )
    assert [one.fault for one in check.self_check(["reference"]) if one.fault] == []
    assert commands[0][1:3] == ["-P", "-m"]


def test_what_a_library_prints_is_no_answer():
    code = """
        import json
        from selfdistill_fast import _check as check
        def jobs(backend):
            yield "load", lambda: print("a library says hello")
        check._jobs = jobs
        check._main("cpu")
    """
    result = run_python(code)
    assert result.returncode == 0, result.stderr
    assert [set(json.loads(line)) for line in result.stdout.splitlines()] == [
        {"call"}, {"call", "seconds", "fault"}, {"done"},
    ]  # fmt: skip
    assert "hello" in result.stderr


def test_a_gpu_is_checked_where_there_are_a_driver_and_cupy(monkeypatch):
    monkeypatch.setattr(cuda_libraries, "driver_version", lambda: None)
    assert "gpu" not in check.backends_here()
    monkeypatch.setattr(cuda_libraries, "driver_version", lambda: (13, 0))
    monkeypatch.setattr(cuda_libraries, "cupy_packages", dict)
    assert "gpu" not in check.backends_here()  # nobody wants one here
    monkeypatch.setattr(cuda_libraries, "cupy_packages", lambda: {"cupy-cuda13x": 13})
    assert "gpu" in check.backends_here()


def test_a_gpu_that_cannot_be_used_is_one_fault(monkeypatch):
    def unusable():
        raise cuda_loader.GpuUnavailable("CuPy cannot load cublas")

    monkeypatch.setattr(cuda_loader, "load", unusable)
    faults = [one["fault"] for one in said_by("gpu") if "seconds" in one]
    assert faults == ["GpuUnavailable: CuPy cannot load cublas"]


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
