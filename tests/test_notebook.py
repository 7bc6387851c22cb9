"""A notebook is executed: its pictures and tables appear without any magic."""

from __future__ import annotations

import base64
import re

import numpy as np
import pytest

CELLS = [
    "import numpy as np\n"
    "from selfdistill_fast import *\n"
    "rng = np.random.default_rng(0)\n"
    "X = rng.normal(size=(60, 2)); y = np.sin(X[:, 0]) + 0.1 * rng.normal(size=60)\n"
    "s = spectrum(X, y, 'rbf')\n"
    "s",
    "plan(1000, 5, lam=0.1)",
    "path = distill(s, 0.1, 'optimal', 3)\npath",
    "model = SelfDistilledKernelRidgeCV(lams=np.logspace(-4, 1, 6)).fit(X, y)\nmodel.plot()",
    "result = sweep(X, y, kernels=[RBF(0.3), Linear()], lams=[0.1, 1.0], n_steps=2)\nresult",
    "result.plot()",
    "from selfdistill_fast.plotting import figure_errors\n"
    "figure_errors({'leave-one-out': path.selection['mse']}, title='three steps')",
]
TABLES, PICTURES = {0, 1, 2, 4}, {3, 5, 6}


def test_pictures_and_tables_appear():
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    cells = [nbformat.v4.new_code_cell(cell) for cell in CELLS]
    notebook = nbformat.v4.new_notebook(cells=cells)
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    for i, cell in enumerate(notebook.cells):
        shown = [
            output["data"] for output in cell.outputs if output.output_type == "execute_result"
        ]
        if i in PICTURES:
            pictures = [
                base64.b64decode(data["image/png"]) for data in shown if "image/png" in data
            ]
            assert len(pictures) == 1, f"cell {i}"
            assert pictures[0].startswith(b"\x89PNG")
            assert len(pictures[0]) > 5000
        if i in TABLES:
            tables = [data["text/html"] for data in shown if "text/html" in data]
            assert len(tables) == 1, f"cell {i}"
            assert tables[0].startswith("<table>")


def test_tables_escape_and_emphasise():
    from selfdistill_fast._html import number, table

    text = table("a < b", ("x", "y"), [("<i>", 1), ("&", 2)], bold=1)
    assert "a &lt; b" in text
    assert "&lt;i&gt;" in text
    assert "<i>" not in text
    assert [("bold" in row) for row in re.findall(r"<tr.*?</tr>", text)] == [False, False, True]
    assert number(np.nan) == "–"
    assert number(0.12345678) == "0.1235"
