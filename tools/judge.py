"""Judges many hard problems and tabulates what the solvers make of them, in Markdown.

    python tools/judge.py 20000                  all solvers and families, two processes
    python tools/judge.py 2000 --solver krylov   some of them
    python tools/judge.py 20000 --faults 50      and print the first 50 faults

The problems and what is asked of an answer are those of tests/support/hard_problems.py; those of
one seed are the same everywhere. Of each question (a chain, its limit, leave-one-out, folds, a
certificate, a kernel matrix) the table counts what came with a warning, what was refused with an
error of ours, and what no arithmetic could judge; of what came without a word it has the largest
error ÷ tolerance, which must not exceed 1. Ends with 1 if there was a fault.
"""

from __future__ import annotations

import argparse
import faulthandler
import multiprocessing
import os
import sys
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "support")]

# one thread for each process, before NumPy is imported
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

from support import judge  # noqa: E402
from support.hard_problems import FAMILIES, SOLVERS, Random, draw, verdicts  # noqa: E402

#: seconds that a problem may take, most take less than one; then its stack is printed again
#: and again, so that an endless loop is seen
PATIENCE = 120


def judged(job):
    """(problem, verdicts) of one seed."""
    seed, solver, family, rows = job
    problem = draw(Random(seed), solver, family, rows)
    faulthandler.dump_traceback_later(PATIENCE, repeat=True)
    try:
        return problem, verdicts(problem)
    finally:
        faulthandler.cancel_dump_traceback_later()


def table(found):
    """Markdown from {(solver, family): [(problem, verdicts)]}."""
    lines = [
        "| solver | family | problems | questions | warned | refused | unjudged | faults | "
        "largest silent error ÷ tolerance |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for (solver, family), results in found.items():
        every = [v for _, verdicts_ in results for v in verdicts_]
        count = Counter(v.outcome for v in every)
        faults = sum(v.fault for v in every)
        silent = max((v.ratio for v in every if v.outcome == "silent"), default=0.0)
        lines.append(
            f"| {solver} | {family} | {len(results)} | {len(every)} | {count['warned']} | "
            f"{count['refused']} | {count['unjudged']} | {faults} | {silent:.2g} |"
        )
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("problems", type=int, nargs="?", default=20_000)
    parser.add_argument("--seed", type=int, default=0, help="of the first problem; one more each")
    parser.add_argument("--solver", choices=SOLVERS, action="append")
    parser.add_argument("--family", choices=FAMILIES, action="append")
    parser.add_argument(
        "--rows", type=int, default=judge.MOST_ROWS,
        help=f"of a problem at most; above {judge.MOST_ROWS} some cannot be judged",
    )  # fmt: skip
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--faults", type=int, default=20, help="so many are printed")
    parser.add_argument("--out", type=Path, help="file for the table; default: standard output")
    given = parser.parse_args()
    if not judge.WIDE:
        sys.exit("long double is double here: nothing can be judged")
    cells = [(s, f) for s in given.solver or SOLVERS for f in given.family or FAMILIES]
    jobs = [(given.seed + i, *cells[i % len(cells)], given.rows) for i in range(given.problems)]
    found = {cell: [] for cell in cells}
    start, printed = time.monotonic(), 0
    with multiprocessing.get_context("spawn").Pool(given.jobs) as pool:
        for done, (problem, results) in enumerate(pool.imap(judged, jobs, chunksize=20), 1):
            found[problem.solver, problem.family].append((problem, results))
            for verdict in (v for v in results if v.fault):
                if printed < given.faults:
                    print(f"{verdict}\n    of {problem}", file=sys.stderr)
                printed += 1
            if done % 1000 == 0 or done == len(jobs):
                seconds = time.monotonic() - start
                print(f"{done} problems, {printed} faults, {seconds:.0f} s", file=sys.stderr)
    text = table(found)
    if given.out:
        given.out.write_text(text + "\n", encoding="utf-8")
    else:
        print(text)
    sys.exit(printed > 0)


if __name__ == "__main__":
    main()
