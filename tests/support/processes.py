"""Python in a process of its own: for what ends a process, or must begin one."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap


def run_python(code, **env):
    """What became of ``code``; ``env`` is added to the environment, None takes a variable away."""
    environment = {**os.environ, **env}
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        encoding="utf-8",
        timeout=100,
        env={name: value for name, value in environment.items() if value is not None},
    )
