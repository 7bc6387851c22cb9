"""``selfdistill-fast plan``: the cost of each solver."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from selfdistill_fast.cli import console
from selfdistill_fast.cli.options import AsJson

__all__ = ["plan"]


def plan(
    n: Annotated[int, typer.Argument(help="Training rows.", metavar="N")],
    d: Annotated[int, typer.Argument(help="Features.", metavar="D")],
    p: Annotated[int, typer.Argument(help="Targets.", metavar="[P]")] = 1,
    lam: Annotated[
        list[float] | None,
        typer.Option(help="A λ value that will be requested; repeat for a grid. [default: any]"),
    ] = None,
    steps: Annotated[int, typer.Option(help="Distillation steps.")] = 2,
    loo: Annotated[bool, typer.Option("--loo", help="Leave-one-out is needed.")] = False,
    float32: Annotated[bool, typer.Option("--float32", help="Rows in single precision.")] = False,
    tol: Annotated[float | None, typer.Option(help="Tolerance of solver krylov.")] = None,
    landmarks: Annotated[int, typer.Option(help="Landmarks of solver nystrom.")] = 1000,
    max_memory: Annotated[
        float | None, typer.Option(help="GiB allowed. [default: 80 % of the available memory]")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what each solver would cost for N rows of D features, and which one to use.

    Memory, floating-point operations, passes over the kernel matrix, and the time on this
    machine, from rates measured in about a second.
    """
    from selfdistill_fast import plan as planned

    lams: Any = lam[0] if lam is not None and len(lam) == 1 else lam or None
    try:
        with console.progress("measuring this machine"):
            result = planned(
                n,
                d,
                p,
                lam=lams,
                leave_one_out=loo,
                dtype="float32" if float32 else "float64",
                max_memory=None if max_memory is None else int(max_memory * 2**30),
                n_steps=steps,
                tol=tol,
                n_landmarks=landmarks,
            )
    except ValueError as error:
        raise console.InputError(str(error)) from error
    if as_json:
        print(json.dumps(result.to_dict(), indent=2, ensure_ascii=False))
        return
    console.out().print(str(result), markup=False, soft_wrap=True, highlight=False)
