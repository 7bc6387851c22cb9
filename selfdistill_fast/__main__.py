"""``selfdistill-fast`` and ``python -m selfdistill_fast``: start the command line."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> int:
    """Run the command line; if its dependencies are missing, say what to install.

    Returns
    -------
    int
        1 if typer or rich is not installed. Otherwise the command line itself ends the
        process: 0 on success, 1 if the task could not be done, 2 for bad input.
    """
    try:
        from selfdistill_fast import cli
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "selfdistill_fast":
            raise
        print(
            f"selfdistill-fast: the command line needs {error.name}, which is not installed.\n"
            "Install its extra: pip install 'selfdistill_fast[cli]'",
            file=sys.stderr,
        )
        return 1
    cli.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
