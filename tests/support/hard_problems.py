"""Hard problems, each made from a few numbers; and what the package makes of them.

An answer without a warning must be within the documented tolerance (tolerance.py). An answer
with a warning of ours, or an error of ours where nothing is promised, is honest, however wrong.
Everything else is a fault: a :class:`Verdict` says which.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field, replace

import mpmath as mp
import numpy as np
import oracle
import tolerance

from selfdistill_fast import (
    NTK,
    RBF,
    Laplacian,
    Linear,
    Matern,
    Polynomial,
    distill,
    gram,
    leave_fold_out,
    leave_one_out,
    spectrum,
)
from selfdistill_fast._solvers import NoLimit
from support import judge

SOLVERS = ("eigh", "cholesky", "tridiagonal", "krylov", "primal", "nystrom", "auto")
FAMILIES = (
    "plain",
    "offset",
    "near constant",
    "near identity",
    "equal rows",
    "nearly equal rows",
    "large",
    "small",
    "graded weights",
)
#: families whose numbers may leave the range of a dtype: a request to scale them is honest
EXTREME = ("large", "small")
HONEST = (ValueError, NoLimit, np.linalg.LinAlgError)
ALPHAS = {
    "zero": 0.0,
    "half": 0.5,
    "one": 1.0,
    "negative": -0.6,
    "above one": 1.5,
    "mixed": (0.2, 1.3, -0.5, 0.0, 0.8),
}
WEIGHTS = ("none", "none", "uniform", "some zero", "graded", "large", "small")
TARGETS = ("normal", "smooth", "offset", "constant", "scaled")


class Random:
    """Draws from a generator; hypothesis draws the same in its own way."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)

    def one_of(self, choices):
        return choices[int(self.rng.integers(len(choices)))]

    def real(self, low, high):
        return float(self.rng.uniform(low, high))

    def integer(self, low, high):
        return int(self.rng.integers(low, high + 1))


@dataclass(frozen=True)
class Problem:
    """All that makes a problem; its repr makes it again."""

    solver: str
    family: str
    kernel: object
    n: int
    d: int
    seed: int
    size: float = 1.0  # of what the family is about
    given: str = "rows"
    dtype: str = "float64"
    targets: str = "normal"
    columns: int = 0  # 0: one-dimensional targets
    weights: str = "none"
    intercept: bool = False
    ridge: float = 1.0  # λ / d_max
    alphas: str = "half"
    n_steps: int = 3
    backend: str = "cpu"
    options: dict = field(default_factory=dict)

    def __repr__(self):
        default = Problem("", "", None, 0, 0, 0)
        given = {k: v for k, v in vars(self).items() if v != getattr(default, k)}
        return f"Problem({', '.join(f'{k}={v!r}' for k, v in given.items())})"


def draw(pick, solver, family, most_rows=judge.MOST_ROWS):
    """A problem of a family for a solver, drawn by ``pick`` (:class:`Random`, or hypothesis)."""
    dtype = pick.one_of(("float64", "float64", "float32"))
    size, length = _sizes(pick, family, dtype)
    given = pick.one_of(("rows", "rows", "precomputed", "function"))
    n = pick.integer(1, most_rows)
    n_steps = pick.integer(1, 4)
    decades = pick.one_of(((-16, -10), (-10, 0), (-10, 0), (0, 16)))
    weights = "graded" if family == "graded weights" else pick.one_of(WEIGHTS)
    columns = pick.one_of((0, 2))
    return Problem(
        solver=solver,
        family=family,
        kernel=Linear() if solver == "primal" else _kernel(pick, family, length),
        n=n,
        d=pick.one_of((1, 2, 3, 20)),
        seed=pick.integer(0, 10**6),
        size=size,
        given="rows" if solver in ("primal", "nystrom") else given,
        dtype=dtype,
        targets=pick.one_of(TARGETS),
        columns=columns,
        weights=weights,
        intercept=pick.one_of((False, True)),
        ridge=10.0 ** pick.real(*decades),
        alphas=pick.one_of(tuple(ALPHAS)),
        n_steps=n_steps,
        backend=pick.one_of(("cpu", "cpu", "reference")),
        options=_options(pick, solver, dtype, n, n_steps, max(columns, 1)),
    )


def _sizes(pick, family, dtype):
    """The family's own size, and the length of its rows that the kernel is made for."""
    single = dtype == "float32"
    if family == "offset":
        return 10.0 ** pick.real(3, 8), 1.0
    if family == "near constant":
        length = 10.0 ** pick.real(2, 7)
        return length, length
    if family == "near identity":
        length = 10.0 ** -pick.real(0.3, 7)
        return length, length
    if family == "nearly equal rows":
        return 10.0 ** -pick.real(6, 16), 1.0
    if family in EXTREME:
        decades = pick.real(10, 20) if single else pick.real(100, 150)
        size = 10.0 ** (decades if family == "large" else -decades)
        return size, size
    return 1.0, 1.0


def _kernel(pick, family, length):
    names = ["RBF", "Laplacian", "Matern"]
    if family != "near identity":
        names.append("Polynomial")
    if family not in ("near identity", "near constant"):
        names += ["Linear", "NTK"]
    name = pick.one_of(tuple(names))
    strength = 10.0 ** pick.real(-1, 0.5)
    if name == "RBF":
        return RBF(strength / length**2)
    if name == "Laplacian":
        return Laplacian(strength / length)
    if name == "Matern":
        return Matern(length / strength, pick.one_of((0.5, 1.5, 2.5, math.inf)))
    if name == "Polynomial":
        degree, constant = pick.integer(1, 4), pick.one_of((1.0, 0.0, 100.0))
        return Polynomial(degree, strength / length**2, constant)
    return Linear() if name == "Linear" else NTK(pick.integer(1, 3))


def _options(pick, solver, dtype, n, n_steps, p):
    if solver == "krylov":
        tol = 10.0 ** (pick.real(-12, -3) if dtype == "float64" else pick.real(-4, -2))
        rank = pick.one_of((None, None, pick.integer(p, max(n, p))))
        return {"tol": tol, "n_steps": n_steps, "max_rank": rank}
    if solver == "nystrom":
        return {
            "n_landmarks": pick.integer(1, n + 1),
            "sampling": pick.one_of(("rpcholesky", "uniform")),
            "block": pick.one_of((None, 2)),
        }
    return {}


# ------------------------------------------------------------------ the arrays of a problem


class Data:
    """The arrays of a problem: X, X_new, y, weights, labels, λ; and K for the judge."""

    def __init__(self, problem):
        self.problem = problem
        rng = np.random.default_rng(problem.seed)
        self.dtype = np.dtype(problem.dtype)
        n, new = problem.n, 3
        normal = rng.standard_normal((n + new, problem.d))
        rows = self._rows(rng, normal).astype(self.dtype)
        self.X, self.X_new = rows[:n], np.concatenate([rows[n:], rows[: min(n, 2)]])
        self.y = self._targets(rng, normal[:n]).astype(self.dtype)
        self.weight = self._weights(rng)
        self.labels = rng.integers(0, 3, n)
        alpha = ALPHAS[problem.alphas]
        self.alpha = alpha if np.ndim(alpha) == 0 else alpha[: problem.n_steps - 1]
        if problem.n_steps == 1 and np.ndim(alpha):
            self.alpha = 0.5
        self.alphas = oracle.alphas_of(self.alpha, problem.n_steps)
        self.K = judge.kernel_matrix(problem.kernel, self.X)
        self.K_new = judge.kernel_matrix(problem.kernel, self.X_new, self.X)
        if problem.given != "rows":  # rounded to what the package is given
            with np.errstate(over="ignore"):
                rounded = self.K.astype(self.dtype), self.K_new.astype(self.dtype)
            self.K, self.K_new = (a.astype(judge.LONG) for a in rounded)
        largest = max(abs(a).max() for a in (self.K, self.K_new))
        #: whether K is, and whether it keeps away from the ends of its dtype's range
        self.finite, limits = largest < np.inf, np.finfo(self.dtype)
        self.in_range = largest == 0 or 1e3 * limits.tiny / limits.eps < largest < 1e-3 * limits.max
        self.d_max = judge.LONG(0)
        if self.finite:
            self.d_max = judge.largest_eigenvalue(self.K, self.weight)
        lam = problem.ridge * self.d_max if self.d_max > 0 else judge.LONG(1)
        self.lam = float(np.clip(lam, 1e-300, 1e300))
        for number in (self.lam, self.d_max * n):  # λ, and a bound of the sums over K_w
            self.in_range &= bool(number == 0 or limits.tiny * 1e3 < number < limits.max * 1e-3)

    @property
    def Y(self):
        return self.y.reshape(self.problem.n, -1).astype(np.float64)

    def exact(self):
        """K and K_new in 60 digits."""
        if self.problem.given != "rows":
            return tuple(judge.widened(a, np.empty(0, object)) for a in (self.K, self.K_new))
        kernel, X = self.problem.kernel, self.X
        return tuple(judge.kernel_matrix(kernel, A, X, digits=True) for A in (X, self.X_new))

    def _rows(self, rng, normal):
        family, size = self.problem.family, self.problem.size
        if family == "offset":
            return normal + size
        if family in EXTREME:
            return normal * size
        if family in ("equal rows", "nearly equal rows"):
            few = normal[rng.integers(0, 1 + self.problem.n // 3, len(normal))]
            return few if family == "equal rows" else few + size * normal
        return normal

    def _targets(self, rng, normal):
        problem = self.problem
        p = max(problem.columns, 1)
        y = rng.standard_normal((problem.n, p))
        if problem.targets == "smooth":
            y = np.sin(normal[:, :1] + np.arange(p))
        elif problem.targets == "offset":
            y = y + 1e4
        elif problem.targets == "constant":
            y = np.full_like(y, 2.0)
        elif problem.targets == "scaled":  # one of two targets far below the other
            y = y * 10.0 ** rng.uniform(-15, 15, p)
        return y if problem.columns else y[:, 0]

    def _weights(self, rng):
        kind, n = self.problem.weights, self.problem.n
        if kind == "none":
            return None
        w = rng.uniform(0.2, 3.0, n)
        if kind == "graded":
            return 10.0 ** rng.uniform(-12, 4, n)
        if kind == "some zero":
            w[rng.permutation(n)[: n // 2]] = 0.0
        return w * {"large": 1e11, "small": 1e-11}.get(kind, 1.0)


# ------------------------------------------------------------------ verdicts


@dataclass(frozen=True)
class Verdict:
    """What became of one answer: "silent", "warned", "refused", "crashed" or "unjudged".

    ``ratio`` is the error over the tolerance, at most 1 for a right answer.
    """

    what: str
    outcome: str
    ratio: float = math.nan
    message: str = ""
    fault: bool = False


def verdicts(problem):
    """Every question that the solver of a problem answers, judged."""
    with mp.workdps(judge.DIGITS), np.errstate(all="ignore"):
        return list(_verdicts(problem, Data(problem)))


def _verdicts(problem, data):
    if problem.given == "rows" and data.in_range:
        yield _of_gram(problem, data)
    s, said, error = _ask(lambda: _spectrum(problem, data))
    if error is not None:
        yield _refused("spectrum", error, problem, data)
        return
    if not data.finite:
        yield Verdict("spectrum", "silent", math.inf, "K is not finite", fault=True)
        return
    if problem.solver == "nystrom":
        data = _of_landmarks(data, s)
    for what, ask, expect in _questions(problem, data, s):
        actual, more, error = _ask(ask)
        if error is not None:
            yield _refused(what, error, problem, data)
            continue
        message = said or more
        try:
            ratio = expect(np.asarray(actual))
        except judge.TooHard:
            yield Verdict(what, "unjudged")
            continue
        if what != "certificate" and message:  # which must hold whatever is said
            yield Verdict(what, "warned", ratio, message)
        else:
            yield Verdict(what, "silent", ratio, "", not ratio <= 1)


def _ask(question):
    """(answer, warning of ours or "", error or None)."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            answer, error = question(), None
        except Exception as refusal:
            answer, error = None, refusal
    # NumPy's own warnings name a line of the package, ours the line that called it
    ours = [str(w.message) for w in caught if w.filename == __file__]
    return answer, "; ".join(ours), error


def _refused(what, error, problem, data):
    """An error of ours is honest where nothing is promised, or numbers leave their range."""
    message = f"{type(error).__name__}: {error}"
    if type(error) not in HONEST:
        return Verdict(what, "crashed", math.inf, message, fault=True)
    rounding = tolerance.rounding(problem.n, float(data.d_max / judge.LONG(data.lam)), data.dtype)
    if problem.solver == "nystrom":
        rounding *= 1e4 / problem.n  # see tolerance.nystrom
    scaled = problem.family in EXTREME and type(error) is ValueError
    cost = 1.0
    if what in ("leave-one-out", "folds"):
        labels = np.arange(problem.n) if what == "leave-one-out" else data.labels
        cost = tolerance.held_out(data.weight, labels, problem.intercept)
    weighted = 100 * tolerance.eps(data.dtype) * cost > 1
    honest = rounding > 1 or scaled or weighted or not data.in_range
    return Verdict(what, "refused", math.nan, message, not honest)


def _spectrum(problem, data):
    kernel, X = problem.kernel, data.X
    if problem.given == "precomputed":
        kernel, X = "precomputed", data.K.astype(data.dtype)
    elif problem.given == "function":

        def kernel(A, B):
            return judge.kernel_matrix(problem.kernel, A, B).astype(data.dtype)

    options = dict(problem.options)
    if problem.solver != "eigh":
        options["lam"] = data.lam
    if problem.solver == "nystrom":
        options["random_state"] = problem.seed
    return spectrum(
        X,
        data.y,
        kernel,
        solver=problem.solver,
        sample_weight=data.weight,
        fit_intercept=problem.intercept,
        backend=problem.backend,
        **options,
    )


def _of_landmarks(data, s):
    """The data with the kernel of the landmark model."""
    exact = judge.landmark_matrices(data.problem.kernel, data.X, data.X_new, s.landmarks)
    other = object.__new__(Data)
    vars(other).update(vars(data), exact=lambda: exact)
    other.K, other.K_new = (judge.to_long(a) for a in exact)
    return other


def _of_gram(problem, data):
    rows = data.X.astype(np.float64), data.X_new.astype(np.float64)
    both = np.concatenate([data.K, data.K_new])

    def ask():
        options = {"kernel": problem.kernel, "backend": problem.backend}
        return np.concatenate([gram(data.X, **options), gram(data.X_new, data.X, **options)])

    actual, _, error = _ask(ask)
    if error is not None:
        return _refused("gram", error, problem, data)
    allowed = tolerance.gram(problem.kernel, np.concatenate(rows), rows[0], data.dtype)
    ratio = float(_ratio(np.abs(actual - both).max(), allowed))
    return Verdict("gram", "silent", ratio, "", not ratio <= 1)


def _questions(problem, data, s):
    """(name, what is asked of the package, what judges the answer) for each question."""
    lam, T = data.lam, problem.n_steps
    X_new = data.X_new if problem.given != "precomputed" else data.K_new.astype(data.dtype)
    X = data.X if problem.given != "precomputed" else data.K.astype(data.dtype)
    both = np.concatenate([X, X_new])
    path, said, error = _ask(lambda: distill(s, lam, data.alpha, T))

    def predict(step):
        if error is not None:
            raise error
        if said:
            warnings.warn(said, RuntimeWarning, stacklevel=1)
        return path.predict(both, step=step)

    def chain(actual):
        return _worst(problem, data, s, actual, _chain(problem, data))

    yield "chain", lambda: predict("all"), chain
    if np.ndim(data.alpha) == 0 and 0 < data.alpha < 2:
        # geometric weights α(1 − α)^k, which add up to α/(1 − |1 − α|) in size
        ridge, c = lam / data.alpha, data.alpha / (1 - abs(1 - data.alpha))
        one = replace(problem, n_steps=1)

        def limit(actual):
            answer = _chain(one, data, ridge)
            return _worst(one, data, s, actual[None], answer, lam=ridge, growth=c)

        yield "limit", lambda: predict(math.inf), limit
    if problem.solver == "krylov":
        yield "certificate", *_certificate(problem, data, s, both)
    kept = np.ones(problem.n, bool) if data.weight is None else data.weight > 0
    if getattr(s, "max_loo_steps", 0) < T:
        return
    if kept.sum() > 1 or not problem.intercept:
        yield (
            "leave-one-out",
            lambda: leave_one_out(s, lam, data.alpha, T),
            lambda a: _held_out(problem, data, s, a, np.arange(problem.n)),
        )
    if len(np.unique(data.labels)) > 1 and (
        not problem.intercept or len(np.unique(data.labels[kept])) > 1
    ):
        yield (
            "folds",
            lambda: leave_fold_out(s, lam, data.alpha, T, data.labels),
            lambda a: _held_out(problem, data, s, a, data.labels),
        )


def _certificate(problem, data, s, both):
    """The error of each pure step over its certificate, where that is given to hold."""
    pure, _, error = _ask(
        lambda: distill(s, data.lam, 0.0, problem.n_steps).predict(both, step="all")
    )

    def ask():
        if error is not None:
            raise error
        return s.certificate(data.lam, problem.n_steps)

    def expect(certificate):
        answer = _chain(replace(problem, alphas="zero"), data, alpha=0.0)
        diagonal = _diagonal(problem, data)
        covered = diagonal <= _largest_seen(data, diagonal)
        actual = np.asarray(pure).reshape(answer.pure.shape)
        gaps = np.abs(actual - answer.pure)[:, covered].max(1) - answer.error
        return float(_ratio(np.maximum(gaps, 0), certificate).max())

    return ask, expect


def _diagonal(problem, data):
    """κ(x, x) at X and X_new; of the kernel, though K may be given rounded."""
    rows = np.concatenate([data.X, data.X_new])
    return np.array([judge.kernel_matrix(problem.kernel, x[None])[0, 0] for x in rows])


def _largest_seen(data, diagonal):
    """max κ(x, x) of the training samples of positive weight."""
    training = diagonal[: data.problem.n]
    return (training if data.weight is None else training[data.weight > 0]).max()


def _chain(problem, data, lam=None, alpha=None):
    lam = data.lam if lam is None else lam
    alphas = (
        data.alphas[: problem.n_steps]
        if alpha is None
        else oracle.alphas_of(alpha, problem.n_steps)
    )
    return judge.chain(
        data.K, data.K_new, data.Y, lam, alphas, data.weight, problem.intercept,
        _needed(problem, data, lam), data.exact,
    )  # fmt: skip


def _held_out(problem, data, s, actual, labels):
    """The largest error of held-out predictions over its tolerance."""
    answer = judge.leave_out(
        labels, data.K, data.Y, data.lam, data.alphas, data.weight, problem.intercept,
        _needed(problem, data, data.lam), data.exact,
    )  # fmt: skip
    cost = tolerance.held_out(data.weight, labels, problem.intercept)
    return _worst(problem, data, s, actual, answer) / cost


def _needed(problem, data, lam):
    """What the judge's own rounding must stay below: a twentieth of the tolerance."""
    return 0.05 * tolerance.silent(problem.n, float(data.d_max), lam, 1.0, data.dtype)


def _worst(problem, data, s, actual, answer, lam=None, growth=None):
    """The largest error over its tolerance, of all steps and targets."""
    lam = data.lam if lam is None else lam
    condition = float(data.d_max / judge.LONG(lam))
    actual = actual.reshape(answer.chain.shape).astype(judge.LONG)
    sizes = np.abs(data.Y).max(0)
    y_mean = np.average(data.Y, axis=0, weights=data.weight) if problem.intercept else 0.0
    largest = judge.LONG(max(abs(data.K).max(), abs(data.K_new).max()))
    flushed = tolerance.underflow(problem.n, largest, data.dtype)
    worst = 0.0
    for t in range(len(actual)):
        c = oracle.weights_of(data.alphas[: t + 1]) if growth is None else np.array([growth])
        last = np.flatnonzero(c).max(initial=0)
        pure = np.abs(answer.pure[: last + 1]).max((0, 1))  # a step has the errors of those before
        if problem.solver == "nystrom":
            lost = tolerance.nystrom(s, lam, c)
            rtol = max(tolerance.floor(data.dtype), lost)
        else:
            rtol = tolerance.silent(problem.n, condition, 1.0, c, data.dtype)
            if s.name in ("eigh", "tridiagonal", "primal"):
                grown = rtol * tolerance.unequal_weights(data.weight, condition)
                rtol = min(grown, max(rtol, tolerance.UNPROMISED))
            lost = min(rtol, tolerance.conditioning(condition, 1.0, c, data.dtype))
        allowed = np.maximum(rtol * pure, lost * sizes) + flushed
        tol = getattr(s, "tol", None)
        if tol is not None:
            allowed = allowed + tolerance.krylov(tol, c) * np.abs(data.Y - y_mean).max(0)
        gap = np.abs(actual[t] - answer.chain[t])
        if len(gap) > problem.n:  # promised where κ(x, x) is not above that of training samples
            diagonal = _diagonal(problem, data)
            gap = gap / np.sqrt(np.maximum(diagonal / _largest_seen(data, diagonal), 1))[:, None]
        error = gap.max(0)
        worst = max(worst, float(_ratio(error, allowed).max()))
    return worst


def _ratio(error, allowed):
    """error / allowed; 0 of nothing, infinite where an error is not finite."""
    error = np.where(np.isfinite(error), error, np.inf)
    return np.where(error == 0, 0.0, error / np.maximum(allowed, 1e-4900))
