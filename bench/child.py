"""Runs a function in a process of its own and says how it ended.

A peer may raise, run out of memory or die by a signal, as OpenBLAS's threaded syrk does on some
processors: its row says so, and the run goes on.

    run(function, *arguments)      what it returned, or ChildFailed
    outcome(function, *arguments)  what it returned, or how it failed: a string

The function is found again by its file and its name; arguments and results pass as JSON. What it
prints goes to standard error.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import traceback
from pathlib import Path

#: seconds after which a peer is taken to hang
TIMEOUT = 3600


class ChildFailed(RuntimeError):
    """Its message is "crashed: SIGSEGV", "failed: MemoryError: …", or "absent"."""


def run(function, *arguments, env=None):
    """function(*arguments) in a process of its own, with ``env`` added to the environment."""
    code = function.__code__
    command = [sys.executable, __file__, code.co_filename, code.co_name, json.dumps(arguments)]
    environment = {**os.environ, **(env or {})}
    try:
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            encoding="utf-8",
            env=environment,
            timeout=TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ChildFailed(f"failed: no result after {TIMEOUT} s") from None
    if done.returncode < 0:
        raise ChildFailed(f"crashed: {signal_name(-done.returncode)}")
    try:
        ended = json.loads(done.stdout)
    except ValueError:
        raise ChildFailed(f"failed: no result, exit status {done.returncode}") from None
    if "failure" in ended:
        error = ChildFailed(ended["failure"])
        error.add_note(ended["traceback"])
        raise error
    return ended["result"]


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def failure(error: BaseException) -> str:
    """How it failed, in a few words."""
    if isinstance(error, ChildFailed):
        return str(error)
    if isinstance(error, ModuleNotFoundError):
        return "absent"
    words = " ".join(str(error).split())
    return f"failed: {type(error).__name__}" + (f": {words[:80]}" if words else "")


def outcome(function, *arguments):
    """What a peer returned, or how it failed."""
    try:
        return run(function, *arguments)
    except ChildFailed as error:
        return failure(error)


def main(file: str, name: str, arguments: str) -> None:
    answer = os.dup(1)
    os.dup2(2, 1)  # what the function prints is no part of the answer
    sys.path.insert(0, str(Path(file).parent))
    try:
        function = getattr(importlib.import_module(Path(file).stem), name)
        ended = json.dumps({"result": function(*json.loads(arguments))})
    except (Exception, SystemExit) as error:
        ended = json.dumps({"failure": failure(error), "traceback": traceback.format_exc()})
    with os.fdopen(answer, "w") as stream:
        stream.write(ended)


if __name__ == "__main__":
    main(*sys.argv[1:])
