"""Tables for notebooks."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ["number", "table"]

_CELL = 'style="text-align: left; padding: 2px 8px"'


def table(
    caption: str, head: Sequence[str], rows: Iterable[Sequence[Any]], *, bold: int | None = None
) -> str:
    """An HTML table; the row ``bold`` (from 0) is emphasised."""
    body = []
    for i, row in enumerate(rows):
        cells = "".join(f"<td {_CELL}>{html.escape(str(cell))}</td>" for cell in row)
        body.append(f"<tr{' style=font-weight:bold' if i == bold else ''}>{cells}</tr>")
    names = "".join(f"<th {_CELL}>{html.escape(name)}</th>" for name in head)
    return (
        f'<table><caption style="text-align: left">{html.escape(caption)}</caption>'
        f"<thead><tr>{names}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    )


def number(value: Any) -> str:
    """A number in short, or a dash for NaN."""
    return "–" if value is None or value != value else f"{value:.4g}"
