"""The command ``selfdistill-fast``: one file for each of its commands.

::

    console   streams, progress, errors → exit codes
    options   options that several commands share, and their checks
    tables    columns of data files → dataset: features, targets, held-out rows, scaling
    sweep_file  the TOML file of a sweep
    report    tables and JSON

A command parses its options, calls the functions of the package and prints what they return.
Modules that are slow to import are imported only when a command runs.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from selfdistill_fast.cli import (
    example,
    fit,
    info,
    plan,
    predict,
    sweep,
    train,
    train_figure,
)
from selfdistill_fast.cli.console import Commands

__all__ = ["app", "run"]

app = typer.Typer(
    name="selfdistill-fast",
    cls=Commands,
    help="Exact self-distilled kernel ridge regression.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for module in (example, fit, predict, train, train_figure, sweep, plan, info):
    name = module.__name__.rpartition(".")[2]
    app.command(name.replace("_", "-"))(getattr(module, name))


def run() -> None:
    """Entry point: run the application, with streams that work in any locale."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    app(prog_name="selfdistill-fast")


def _version(wanted: bool) -> None:
    if wanted:
        from selfdistill_fast._config import installed_version

        print(installed_version("selfdistill_fast") or "not installed")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    traceback: Annotated[
        bool,
        typer.Option(
            "--traceback", help="Show where an error arose: its traceback instead of one line."
        ),
    ] = False,
) -> None:
    """Exact self-distilled kernel ridge regression."""
