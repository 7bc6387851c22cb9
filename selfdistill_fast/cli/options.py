"""Options shared by several commands, and their interpretation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

from selfdistill_fast.cli.console import InputError

__all__ = ["AsJson", "Data", "Header", "check_outputs", "kernels_from", "parse_alpha"]

Data = Annotated[Path, typer.Argument(help="CSV (also .gz) or Parquet file.", metavar="DATA")]
Header = Annotated[
    bool | None,
    typer.Option("--header/--no-header", help="Whether a CSV has one. [default: detected]"),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def check_outputs(*paths: Path | None) -> None:
    """Reject immediately a path that could not be written after a long computation."""
    for path in paths:
        if path is None:
            continue
        if path.is_dir():
            raise InputError(f"cannot write {path}: it is a directory")
        if not path.parent.is_dir():
            raise InputError(f"cannot write {path}: there is no directory {path.parent}")


def parse_alpha(text: str, steps: int) -> Any:
    """``--alpha``: a name, a number, or steps − 1 numbers."""
    if text in ("optimal", "joint"):
        return text
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(
            "--alpha must be 'optimal', 'joint', a number, or numbers separated by commas; "
            f"got {text!r}"
        ) from None
    if not all(map(math.isfinite, numbers)):
        raise InputError(f"--alpha must be finite, got {text!r}")
    if len(numbers) == 1 and "," not in text:
        return numbers[0]
    if len(numbers) != steps - 1:
        raise InputError(
            f"--alpha lists {len(numbers)} numbers, but --steps {steps} needs {steps - 1}: one for "
            "each step from the second on"
        )
    return numbers


def kernels_from(
    name: str,
    grid: Mapping[str, Sequence[Any]],
    n_features: int,
    *,
    what: str,
    spell: Callable[[str], str] = str,
) -> list[Any]:
    """A kernel for every combination of parameters; an unknown parameter is an error.

    Parameters
    ----------
    name : str
    grid : mapping of a parameter to its values
    n_features : int
        The default of γ is 1 / n_features.
    what : str
        The noun for the name in error messages.
    spell : callable
        Spelling of a parameter in messages.
    """
    from selfdistill_fast.kernels import KERNELS, NTK, kernel_from_name

    names = [known for known in KERNELS if known != "precomputed"]
    name = "polynomial" if name == "poly" else name
    if name not in names:
        raise InputError(f"unknown {what} {name!r}; known: {', '.join(names)}")
    known = [field.name for field in fields(KERNELS[name])]
    for key in grid:
        if key not in known:
            raise InputError(
                f"{spell(key)} has no meaning for the kernel {name}, which takes "
                + (", ".join(map(spell, known)) or "no parameters")
            )
    kernels = []
    for values in itertools.product(*grid.values()):
        given = dict(zip(grid, values, strict=True))
        try:
            kernels.append(
                NTK(**given) if name == "ntk" else kernel_from_name(name, n_features, **given)
            )
        except (TypeError, ValueError) as error:
            raise InputError(str(error)) from None
    return kernels
