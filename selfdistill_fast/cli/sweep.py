"""``selfdistill-fast sweep``: score the grid described by a TOML file."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from selfdistill_fast.cli import console, report
from selfdistill_fast.cli.options import check_outputs

__all__ = ["sweep"]


def sweep(
    config: Annotated[Path, typer.Argument(help="TOML file.", metavar="CONFIG")],
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Discard an existing store.")
    ] = False,
    dask: Annotated[
        str | None,
        typer.Option(help="Compute on the cluster of this Dask scheduler.", metavar="ADDRESS"),
    ] = None,
    top: Annotated[int, typer.Option(help="Cells in the table.", min=1)] = 10,
) -> None:
    """Score a grid of kernels, λ, α and steps described by a TOML file.

    The file has the tables data, kernels, grid, solver and output; paths are relative to it.
    After an interruption, the same command continues with the kernels missing from the store.
    Errors are printed and drawn as root mean squared errors in the units of the data.
    """
    import selfdistill_fast
    from selfdistill_fast.cli.sweep_file import SweepConfig
    from selfdistill_fast.plotting import figure_format, save_figure

    asked = SweepConfig.read(config)
    check_outputs(asked.figure)
    if asked.figure is not None:
        figure_format(asked.figure)
    try:
        with ExitStack() as stack:
            client = None
            if dask is not None:
                from distributed import Client

                client = stack.enter_context(Client(dask))
            result = selfdistill_fast.sweep(
                **asked.options, store=asked.store, overwrite=overwrite, client=client
            )
    except KeyboardInterrupt as interrupt:
        console.say("; ".join(getattr(interrupt, "__notes__", ["interrupted"])), "yellow")
        raise typer.Exit(130) from None
    except TypeError as error:  # a value of the wrong kind in the file
        raise console.InputError(f"{config}: {error}") from error
    data = asked.data
    found = result.dataset.assign_coords(target=data.layout.target_names)
    units = np.square(data.scaling.y_std)  # of errors in the units of the data
    errors = {name: found[name] * units for name in ("mse_val", "mse_loo") if name in found}
    result = selfdistill_fast.SweepResult(found.assign(errors), result.kernels)
    counts = [f"{len(data.train)} training rows"]
    counts += [f"{len(rows)} {name} rows" for name, rows in data.held.items()]
    report.print_sweep(result, f"{data.source}: {', '.join(counts)}", top)
    if asked.figure is not None:
        save_figure(result.plot(), asked.figure)
        console.say(f"figure written to {asked.figure}")
    if asked.store is not None:
        scaled = any(std != 1.0 for std in data.scaling.y_std)
        console.say(
            f"store written to {asked.store}"
            + ("; its errors are those of standardised targets" if scaled else "")
        )
