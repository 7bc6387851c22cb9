"""Write the benchmark page from ``bench/results``: ``python docs/benchmark_pages.py DIRECTORY``."""

import json
import shutil
import sys
from pathlib import Path

RESULTS = Path(__file__).resolve().parents[1] / "bench" / "results"


def stored(name):
    """One stored result."""
    return json.loads((RESULTS / f"{name}.json").read_text("utf-8"))


def table(head, rows):
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def number(value):
    """Three digits, or a dash where there is none."""
    return "–" if value is None else f"{value:.3g}"


def core():
    """Gram matrices, products and filters beside their peers."""
    rows = [
        [
            row["case"],
            number(1e3 * row["us"]),
            row.get("judge") or "–",
            number(row.get("ratio")),
            number(row.get("target")),
            row.get("bound_by") or "–",
        ]
        for row in stored("core")["rows"]
    ]
    head = ["case", "ms", "peer", "times faster", "target", "bound by"]
    return table(head, rows)


def large_n():
    """The solvers for many rows beside their peers."""
    rows = [
        [row["case"], *(number(row[key]) for key in ("us", "peer", "ratio", "target"))]
        for row in stored("large_n")["rows"]
    ]
    return table(["case", "seconds", "peer, seconds", "times faster", "target"], rows)


def nystrom():
    """Landmark models beside scikit-learn's."""
    rows = []
    for name, data in stored("nystrom_uci").items():
        for model, cell in data["models"].items():
            rows.append(
                [name, model, number(cell["seconds"]), f"{cell['rmse']:.4f}", number(cell["lam"])]
            )
    return table(["set", "model, landmarks, seed", "seconds", "test RMSE", "λ"], rows)


def tuning():
    """The tuning by leave-one-out; names are those of ``bench_leave_one_out.py``."""
    rows = [
        [name.removeprefix("test_").replace("_", " "), number(seconds)]
        for name, seconds in stored("leave_one_out").items()
    ]
    return table(["what", "seconds"], rows)


def page():
    """The whole page."""
    versions = ", ".join(f"{k} {v}" for k, v in stored("core")["versions"].items())
    return f"""# Benchmarks

These numbers come from `bench/results`, where `make bench` stores them. `bench/README.md` explains
how they were measured, the targets, and what was tried without success. No GPU
has been measured yet.

## Gram matrices, products and filters

Medians with {versions}. "Times faster" compares with the given peer.

{core()}

![Time of each case and of its peers](core.svg)

## Many samples

{large_n()}

## Tuning without a validation set

{tuning()}

## Landmark models

The time is from the samples to the test predictions of the whole grid. The error is that of the
best cell.

{nystrom()}
"""


if __name__ == "__main__":
    directory = Path(sys.argv[1])
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "benchmarks.md").write_text(page(), encoding="utf-8")
    shutil.copy(RESULTS / "core.svg", directory)
