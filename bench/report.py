"""From medians and ceilings to one table, bench/results/core.json and a picture.

A case's floor is max(bytes / bandwidth, flops / best matrix product, exps / exp rate): no
program can be faster on this machine that writes (or reads) the matrix, forms the inner
products and takes the exponentials. ``python bench/report.py`` prints the stored results again.
"""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
FILE = RESULTS / "core.json"
PEERS = ("scikit-learn", "scipy", "torch", "pykeops", "gram+BLAS", "numpy")


def floor_of(case, ceilings):
    """(seconds, what binds)."""
    parts = {
        "bytes": case.nbytes / ceilings["fill"] + case.reads / ceilings["read"],
        "flops": case.flops / (ceilings["gemm"][case.isa][case.dtype] or float("inf")),
        "exps": case.exps / ceilings["exp"][case.isa][case.dtype],
    }
    binding = max(parts, key=parts.get)
    return parts[binding], binding


def rows_of(ceilings, medians):
    from cases import CASES

    rows = []
    for case in CASES:
        ours = medians.get((case.name, "ours"))
        if ours is None or case.isa not in ceilings["gemm"]:
            continue
        floor, binding = floor_of(case, ceilings)
        names = {who: case.name if who in case.timed else case.twin for who in case.rivals}
        peers = {who: medians.get((names[who], who)) for who in case.rivals}
        judge = peers.get(case.judge)
        rows.append(
            {
                "group": case.group,
                "case": case.name,
                "us": ours,
                "fresh": peers.get("fresh"),
                "peers": {who: peers.get(who) for who in case.rivals if who in PEERS},
                "judge": case.judge,
                "ratio": judge / ours if isinstance(judge, float) else None,
                "target": case.target,
                "floor": floor,
                "bound_by": binding,
            }
        )
    return rows


def _ms(seconds):
    """Milliseconds; how a peer failed as it is."""
    if seconds is None:
        return "-"
    return seconds if isinstance(seconds, str) else f"{1e3 * seconds:.4g}"


def table(rows, ceilings):
    """The rows and the ceilings as text; times in milliseconds."""
    lines = [
        f"{ceilings['threads']} threads; fill {ceilings['fill'] / 1e9:.1f} GB/s, "
        f"copy {ceilings['copy'] / 1e9:.1f} GB/s; "
        + (f"read {ceilings['read'] / 1e9:.1f} GB/s; " if "read" in ceilings else "")
        + "; ".join(
            f"{isa}: gemm {rate['float64'] / 1e9:.0f} / {rate['float32'] / 1e9:.0f} GFlop/s, "
            f"exp {ceilings['exp'][isa]['float64'] / 1e9:.1f} / "
            f"{ceilings['exp'][isa]['float32'] / 1e9:.1f} G/s (f64 / f32)"
            for isa, rate in ceilings["gemm"].items()
        ),
        "",
    ]
    head = ["case (ms)", "us", "fresh", *PEERS, "ratio", "target", "floor", "by", "x floor"]
    cells = [head]
    for row in rows:
        peers = [
            "" if who not in row["peers"] else _ms(row["peers"][who]).replace("-", "absent")
            for who in PEERS
        ]
        cells.append(
            [
                row["case"],
                _ms(row["us"]),
                _ms(row["fresh"]),
                *peers,
                f"{row['ratio']:.2f}" if row["ratio"] else "-",
                f"{row['target']:.3g}" if row["target"] else "-",
                _ms(row["floor"]),
                row["bound_by"],
                f"{row['us'] / row['floor']:.2f}" if row["floor"] else "-",
            ]
        )
    keep = [c for c in range(len(head)) if any(row[c] for row in cells[1:])]
    widths = {c: max(len(row[c]) for row in cells) for c in keep}
    for number, row in enumerate(cells):
        lines.append(
            "  ".join(row[c].ljust(widths[c]) if c == 0 else row[c].rjust(widths[c]) for c in keep)
        )
        if number == 0:
            lines.append("  ".join("-" * widths[c] for c in keep))
    return "\n".join(lines)


def picture(rows, path):
    """Ratio to the peer, with its target, and multiples of the floor."""
    try:
        import matplotlib

        matplotlib.use("svg")
        import matplotlib.pyplot as plt
    except ImportError:
        return
    rows = [row for row in rows if row["ratio"]][::-1]
    if not rows:
        return
    names = [f"{row['case']}  (vs {row['judge']})" for row in rows]
    fig, (left, right) = plt.subplots(
        1, 2, sharey=True, figsize=(10, 0.32 * len(rows) + 1), layout="constrained"
    )
    left.barh(names, [row["ratio"] for row in rows], color="#3b6fb6")
    left.plot([row["target"] or float("nan") for row in rows], names, "k|", ms=12, label="target")
    left.set(xscale="log", xlabel="times as fast as the peer")
    left.legend(loc="lower right")
    floors = [row["us"] / row["floor"] if row["floor"] else float("nan") for row in rows]
    right.barh(names, floors, color="#c8803a")
    right.axvline(1, color="k", lw=1)
    right.set(xlabel="times the floor of this machine", xlim=(0, 5))
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    plt.rcParams["svg.hashsalt"] = "selfdistill_fast"
    fig.savefig(path, metadata={"Date": None})
    plt.close(fig)


def versions():
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for name in ("numpy", "scipy", "scikit-learn", "torch", "pykeops"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def write(ceilings, medians):
    """Print the table of what ran and put its rows in the place of the stored ones."""
    from cases import CASES

    rows = rows_of(ceilings, medians)
    print("\n\n" + table(rows, ceilings) + "\n")
    found = {row["case"]: row for row in rows}
    if FILE.exists():
        found = {
            row["case"]: row for row in json.loads(FILE.read_text(encoding="utf-8"))["rows"]
        } | found
    rows = [found[case.name] for case in CASES if case.name in found]
    RESULTS.mkdir(exist_ok=True)
    stored = {
        "versions": versions(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "ceilings": ceilings,
        "rows": rows,
    }
    FILE.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
    picture(rows, RESULTS / "core.svg")
    print(f"written: {FILE} and core.svg")


if __name__ == "__main__":
    stored = json.loads(FILE.read_text(encoding="utf-8"))
    print(table(stored["rows"], stored["ceilings"]))
