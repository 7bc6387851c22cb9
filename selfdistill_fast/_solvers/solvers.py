"""The list of solvers, and lookups by their names.

A solver is a subclass of ``Spectrum`` (base.py) that states its own properties. Adding it to this
list makes it known to ``spectrum``, ``plan``, ``sweep``, the estimators and the command line.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from selfdistill_fast._solvers.base import Spectrum
from selfdistill_fast._solvers.cholesky import CholeskySpectrum
from selfdistill_fast._solvers.eigh import EighSpectrum
from selfdistill_fast._solvers.krylov import KrylovSpectrum
from selfdistill_fast._solvers.nystrom import NystromSpectrum
from selfdistill_fast._solvers.primal import PrimalSpectrum
from selfdistill_fast._solvers.tridiagonal import TridiagonalSpectrum

__all__ = ["SOLVERS", "check_leave_one_out", "check_solver", "solver_named", "with_steps"]

SOLVERS: list[type[Spectrum]] = [
    EighSpectrum,
    CholeskySpectrum,
    TridiagonalSpectrum,
    KrylovSpectrum,
    PrimalSpectrum,
    NystromSpectrum,
]

#: options of "auto"; they are passed on to a solver that has them
_AUTO_OPTIONS = ("n_steps", "tol")


def solver_named(name: Any) -> type[Spectrum] | None:
    """The solver with this name, None for "auto"; ValueError if there is none."""
    for solver in SOLVERS:
        if solver.name == name:
            return solver
    if name != "auto":
        known = ", ".join(solver.name for solver in SOLVERS)
        raise ValueError(f"unknown solver {name!r}; known: auto, {known}")
    return None


def option_names(solver: type[Spectrum] | None) -> tuple[str, ...]:
    """Names of the options of a solver, or, with None, of "auto"."""
    if solver is None:
        return _AUTO_OPTIONS
    return tuple(option.name for option in fields(solver.Options))


def check_solver(name: Any, options: Any) -> None:
    """ValueError for an unknown solver or a bad option, TypeError for one it does not have."""
    solver = solver_named(name)
    unknown = set(options) - set(option_names(solver))
    if unknown:
        raise TypeError(f"solver {name!r} has no option {', '.join(sorted(unknown))}")
    if solver is not None:
        solver.Options(**options)


def check_leave_one_out(name: str, n_steps: int = 1) -> None:
    """ValueError, before any work, if a solver has no leave-one-out for this many steps."""
    solver = solver_named(name)
    if solver is not None:
        solver.check_leave_one_out(n_steps)


def with_steps(solver: Any, options: dict[str, Any] | None, n_steps: int) -> dict[str, Any]:
    """The options of a solver, with the number of steps if it has such an option.

    A ``Plan`` given instead of a name has already considered the steps.
    """
    takes = isinstance(solver, str) and "n_steps" in option_names(solver_named(solver))
    return {**({"n_steps": n_steps} if takes else {}), **(options or {})}
