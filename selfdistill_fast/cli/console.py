"""The two output streams of a command, and the mapping of errors to exit codes.

Results go to standard output, everything else (progress, hints, warnings, errors) to standard
error, so that output can be piped. An error prints one line and gives exit code 2 (bad input) or
1 (the task could not be done); ``--traceback`` shows where it occurred.
"""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text
from typer.core import TyperGroup

__all__ = ["Commands", "InputError", "err", "out", "progress", "say"]


class InputError(ValueError):
    """An option or a file that cannot be used as given."""


def out() -> Console:
    """Standard output; lines are not wrapped unless it is a terminal."""
    console = Console(highlight=False, soft_wrap=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=max(console.width, 160))
    return console


def err() -> Console:
    """Standard error."""
    return Console(stderr=True, highlight=False)


def say(text: str, style: str | None = None) -> None:
    """Print one line on standard error, without wrapping."""
    err().print(Text(" ".join(text.split()), style=style or ""), soft_wrap=True)


@contextmanager
def progress(text: str) -> Iterator[None]:
    """A spinner with the elapsed time, only if standard error is a terminal."""
    console = err()
    if not console.is_terminal:
        yield
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        bar.add_task(text, total=None)
        yield


class Commands(TyperGroup):
    """The commands; an exception in one of them becomes one red line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the requested command."""
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _show_warning
                super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:  # the reader of the pipe has closed it: not an error
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from None
        except (ValueError, np.linalg.LinAlgError, OSError, ImportError, MemoryError) as error:
            if ctx.params["traceback"]:
                traceback.print_exception(error)
            else:
                say(f"error: {str(error) or type(error).__name__}", "bold red")
            raise typer.Exit(2 if isinstance(error, InputError) else 1) from None


def _show_warning(message: Any, category: type[Warning], *_: Any, **__: Any) -> None:
    """Print a warning, unless it is for the developers of a dependency."""
    if not issubclass(category, (DeprecationWarning, PendingDeprecationWarning)):
        say(f"warning: {message}", "yellow")
