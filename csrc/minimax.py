"""Prints the polynomial coefficients of csrc/elementary.h; run by hand, with mpmath.

Remez exchange for min over P of max |P(x) − g(x)| on an interval, in 60 digits. The
leading terms of both series are kept exact, so that exp(0) = 1 and asin(t) ~ t hold to
the last bit:

- exp:   2^f = 1 + f P(f),            |f| ≤ 1/2, 1/16 or 1/32,  g = (2^f − 1)/f
- asin:  asin(t) = t + t y P(y),      y = t² in [0, 1/4],       g = (asin(t)/t − 1)/y
"""

from mpmath import asin, cos, log, lu_solve, matrix, mp, mpf, nstr, pi, polyval, sqrt

mp.dps = 60


def remez(g, lo, hi, degree):
    """Coefficients (constant first) and the largest error."""
    n = degree + 2
    x = [(lo + hi) / 2 - (hi - lo) / 2 * cos(pi * (k + mpf(1) / 2) / n) for k in range(n)]
    grid = [lo + (hi - lo) * (mpf(k) + mpf(1) / 3) / 3000 for k in range(3000)]
    values = [g(t) for t in grid]
    for _ in range(5):
        rows = matrix(n, n)
        for i, xi in enumerate(x):
            for j in range(degree + 1):
                rows[i, j] = xi**j
            rows[i, n - 1] = (-1) ** i
        solution = lu_solve(rows, matrix([g(xi) for xi in x]))
        c = [solution[j] for j in range(degree + 1)]
        error = [polyval(c[::-1], t) - v for t, v in zip(grid, values, strict=True)]
        peaks, start = [], 0  # the extremum of each run of equal sign
        for k in range(1, len(grid) + 1):
            if k == len(grid) or error[k] * error[start] < 0:
                peaks.append(max(range(start, k), key=lambda i: abs(error[i])))
                start = k
        if len(peaks) != n:
            raise ArithmeticError(f"{len(peaks)} alternations instead of {n}")
        x = [grid[p] for p in peaks]
    return c, max(abs(e) for e in error)


def show(name, c, error):
    """Print coefficients as C's hexadecimal numbers."""
    print(f"{name}: |P - g| <= {nstr(error, 3)}")
    print(",\n".join(f"    {float(cj).hex()}" for cj in c))


def exp_tail(f):
    """(2^f − 1)/f, by its series at 0."""
    return (mpf(2) ** f - 1) / f if abs(f) > mpf(10) ** -20 else log(2) + f * log(2) ** 2 / 2


def asin_tail(y):
    """(asin(√y)/√y − 1)/y, by its limit at 0."""
    return (asin(sqrt(y)) / sqrt(y) - 1) / y if y > mpf(10) ** -30 else mpf(1) / 6


if __name__ == "__main__":
    slack = 1 + mpf(2) ** -20  # n is rounded from an inexact product
    for name, half, degree in (
        ("exp f64, |f| <= 1/2", mpf(1) / 2, 10),
        ("exp f64, |f| <= 1/16", mpf(1) / 16, 6),
        ("exp f32, |f| <= 1/2", mpf(1) / 2, 5),
        ("exp f32, |f| <= 1/32", mpf(1) / 32, 2),
    ):
        show(name, *remez(exp_tail, -half * slack, half * slack, degree))
    show("asin f64", *remez(asin_tail, mpf(0), mpf(1) / 4, 11))
    show("asin f32", *remez(asin_tail, mpf(0), mpf(1) / 4, 4))
    for entries in (8, 16):
        table = [float(mpf(2) ** (mpf(j) / entries)).hex() for j in range(entries)]
        print(f"2^(j/{entries}):", ", ".join(table))
    print("log2(e) - f64:", float(1 / log(2) - mpf(float(1 / log(2)))).hex())
