"""``selfdistill-fast info``: the hardware and software of this installation, and a self-test."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.text import Text

from selfdistill_fast.cli import console
from selfdistill_fast.cli.options import AsJson

__all__ = ["info"]


def info(
    as_json: AsJson = False,
    check: Annotated[
        bool,
        typer.Option(
            "--check", help="Test the main calls of each backend; exit status 1 on a fault."
        ),
    ] = False,
) -> None:
    """Show what this installation runs on: instruction sets, BLAS, threads, GPU, versions."""
    from selfdistill_fast._config import show_config

    config = show_config()
    if not as_json:
        _print(config)
    checks = _self_check(show=not as_json) if check else []
    if as_json:
        found = dict(config)
        if check:
            found["check"] = [asdict(one) for one in checks]
        print(json.dumps(found, indent=2, ensure_ascii=False))
    if any(one.fault is not None for one in checks):
        raise typer.Exit(1)


def _print(config: Any) -> None:
    out = console.out()
    out.print(config.table(), markup=False, soft_wrap=True)
    for note in config["notes"]:
        out.print(f"\nnote: {note}", markup=False, soft_wrap=True)
    for caution in config["warnings"]:
        console.say(f"warning: {caution}", "yellow")


def _self_check(show: bool) -> list[Any]:
    """Every check of :func:`~selfdistill_fast._check.self_check`, one line each as it finishes."""
    from selfdistill_fast._check import self_check

    out = console.out()
    if show:
        out.print()
    done = []
    for one in self_check():
        done.append(one)
        if show:
            line = f"{one.backend:<10} {one.call:<32} {one.seconds:6.2f} s  "
            line += "ok" if one.fault is None else f"FAULT: {one.fault}"
            out.print(Text(line, style="" if one.fault is None else "bold red"), soft_wrap=True)
    faults = sum(one.fault is not None for one in done)
    if show and faults:
        console.say(f"{faults} of {len(done)} checks failed", "bold red")
    elif show:
        out.print(f"{len(done)} checks passed")
    return done
