"""Calls the public functions with drawn arguments: valid ones, borderline ones and wrong ones.

    python tools/fuzz.py                  100000 calls
    python tools/fuzz.py --calls 5000 --seed 7
    python tools/fuzz.py --replay 12345   the calls of one seed, each printed before it is made

`make fuzz` runs it with the C code compiled for the address and undefined-behaviour sanitizers.

Every call must return or raise what is documented, and soon; and no result may hold a NaN if all
that went in was finite, unless there was a warning. The calls are made by a process of their own,
which notes each seed and call in a file first: what ends it is known, and the next one goes on.
Ends with 1 if anything was found.
"""

from __future__ import annotations

import argparse
import faulthandler
import math
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")  # before NumPy is imported

import numpy as np  # noqa: E402

import selfdistill_fast as sdf  # noqa: E402

PACKAGE = str(Path(sdf.__file__).parent)
#: what the public functions may raise: NumPy's LinAlgError is a ValueError, a missing file an
#: OSError
DOCUMENTED = (ValueError, TypeError, MemoryError, OSError)
#: words of errors that no one wrote on purpose: something wrong got past the checks
ACCIDENTS = (
    "unsupported operand",
    "not subscriptable",
    "has no len()",
    "'NoneType'",
    "unexpected keyword",
    "broadcast",
    "matmul",
    "out of bounds",
    "cannot reshape",
    "ufunc",
    "leading minor",
    "did not converge",
    "truth value",
)
#: seconds that a call may take, also under sanitizers on a busy machine
LIMIT = 120
SOLVERS = ("eigh", "cholesky", "tridiagonal", "krylov", "primal", "nystrom", "auto")
#: exit status of a process that found something and went on to its end
FOUND = 3


class Finding(Exception):
    """Something that must not happen."""


# ------------------------------------------------------------------ arguments


def inner_products(A, B):
    """A kernel of the caller's own."""
    return np.asarray(A, np.float64) @ np.asarray(B, np.float64).T


def features(A):
    """A feature map of the caller's own."""
    return np.tanh(np.asarray(A, np.float64))


class Draw:
    """Arguments of all kinds from one generator; ``wild`` is the share of wrong ones."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        self.wild = (0.0, 0.02, 0.15)[int(self.rng.integers(3))]

    def one_of(self, choices):
        return choices[int(self.rng.integers(len(choices)))]

    def chance(self, probability):
        return self.rng.random() < probability

    def wrong(self):
        return self.chance(self.wild)

    def size(self):
        return self.one_of((1, 2, 3, 4, 5, 7, 9, 16, 17, 33, 70))

    def array(self, shape):
        """Numbers of any size, layout and dtype; sometimes something else."""
        if self.wrong():
            return self.no_array(shape)
        a = self.rng.standard_normal(shape)
        kind = self.rng.integers(12)
        if kind == 0:
            a = np.zeros(shape)
        elif kind == 1:
            a = np.full(shape, 2.0)
        elif kind == 2 and shape[0] > 1:
            a[shape[0] // 2 :] = a[: shape[0] - shape[0] // 2]  # equal rows
        elif kind == 3:
            a += 10.0 ** self.rng.uniform(2, 8)
        elif kind == 4:
            a *= 10.0 ** self.rng.uniform(-320, 300)
        elif kind == 5:
            a *= 10.0 ** self.rng.uniform(-40, 38)
        return self.layout(a)

    def layout(self, a):
        with np.errstate(over="ignore"):
            kind = self.rng.integers(12)
            if kind in (0, 1):
                single = a.astype(np.float32)
                return single if np.isfinite(single).all() else a
            if kind == 2:
                return np.asfortranarray(a)
            if kind == 3:
                return a[::-1].copy()[::-1]
            if kind == 4:
                return np.repeat(a, 2, axis=-1)[..., ::2]
            if kind == 5:
                return a.astype(a.dtype.newbyteorder())
            if kind == 6:
                return a.tolist()
            if kind == 7:
                return np.clip(a, -100, 100).astype(self.one_of((np.int8, np.int64, np.float16)))
            if kind == 8:
                a.flags.writeable = False
            if kind == 9:
                return np.broadcast_to(a[:1], a.shape)
            return a

    def no_array(self, shape):
        a = self.rng.standard_normal(shape)
        flat = a.reshape(-1)
        kind = self.rng.integers(14)
        if kind < 3 and a.size:
            flat[self.rng.integers(a.size)] = (math.nan, math.inf, -math.inf)[kind]
            return a
        return (
            a[:0],
            a[..., :0],
            np.float64(3.0),
            a.reshape(-1),
            a[None],
            a.astype(str),
            None,
            a + 1j,
            a.astype(object),
            np.ma.masked_array(a),
            [[1.0, 2.0], [3.0]],
            "text",
            np.concatenate([a, a]),
            a.astype("M8[s]") if a.size else {},
        )[int(self.rng.integers(14))]

    def scalar(self, low, high):
        """A positive number over so many decades."""
        if self.wrong():
            return self.one_of((0.0, -1.0, math.nan, math.inf, None, "a", 1j, True, [], 1e-320))
        value = 10.0 ** self.rng.uniform(low, high)
        return self.one_of((value, value, np.float32(value), max(1, int(min(value, 1e9)))))

    def lam(self):
        if self.chance(0.1):
            return 10.0 ** self.rng.uniform(-300, 300)
        return self.scalar(-20, 20)

    def n_steps(self):
        if self.wrong():
            return self.one_of((0, -1, 2.5, True, "3", None, math.nan))
        return self.one_of((1, 2, 3, 4, np.int64(3), 2.0, 12))

    def alpha(self, n_steps):
        if self.wrong():
            return self.one_of((math.nan, None, "best", [0.5], [[0.5]], 1j, math.inf, True))
        steps = n_steps if isinstance(n_steps, (int, np.integer)) else 3
        many = self.rng.uniform(-1, 2, min(max(int(steps) - 1, 0), 60))
        number = self.one_of((0.0, 1.0, 0.3, -0.6, 1.9, 1e8, -1e200))
        return self.one_of((number, number, many, many.tolist(), "optimal", "joint"))

    def weight(self, n):
        if self.chance(0.5):
            return None
        w = self.rng.uniform(0.0, 2.0, n)
        kind = self.rng.integers(7)
        if kind == 0:
            w[: n // 2] = 0.0
        elif kind == 1:
            w = 10.0 ** self.rng.uniform(-300, 300, n)
        elif kind == 2:
            w = 10.0 ** self.rng.uniform(-12, 4, n)
        elif self.wrong():
            return self.one_of((w - 1.0, w * 0.0, w * math.nan, w[:-1], w[None], "w", 2.0, -1.0))
        return w

    def kernel(self):
        """A function that makes a kernel, which may be refused."""
        gamma, degree = self.scalar(-8, 4), self.one_of((1, 2, 3, 9))
        if self.wrong():
            wrong = (
                lambda: "rbff",
                lambda: sdf.Features(3),
                lambda: sdf.RBF,
                lambda: None,
                lambda: sdf.Matern(1.0, 0.7),
                lambda: sdf.NTK(0),
                lambda: sdf.Polynomial(2.5, 1.0, 0.0),
                lambda: lambda A, B: np.zeros((1, 1)),
                lambda: lambda A, B: np.full((len(A), len(B)), math.nan),
                lambda: lambda A, B: "K",
            )
            return self.one_of(wrong)
        constant = self.one_of((0.0, 1.0, -0.5, 100.0))
        nu = self.one_of((0.5, 1.5, 2.5, math.inf))
        right = (
            lambda: sdf.RBF(gamma),
            lambda: sdf.RBF(gamma),
            lambda: sdf.Laplacian(gamma),
            lambda: sdf.Matern(gamma, nu),
            lambda: sdf.Polynomial(degree, gamma, constant),
            sdf.Linear,
            lambda: sdf.NTK(degree),
            lambda: inner_products,
            lambda: sdf.RBF([gamma] * self.one_of((1, 2, 3))),
            lambda: 0.5 * sdf.RBF(gamma) + sdf.Linear(),
            lambda: sdf.Laplacian(gamma) * sdf.Polynomial(2, gamma, 1.0),
            lambda: sdf.Features(features),
        )
        return self.one_of(right)

    def backend(self):
        if self.wrong():
            return self.one_of(("tpu", 3, np))
        return self.one_of((None, "cpu", "reference", "auto"))

    def threads(self):
        return self.one_of((0, -1, "a", 1.5)) if self.wrong() else self.one_of((None, 1, 2, 3))

    def folds(self, n):
        if self.wrong():
            return self.one_of((0, 1, n + 1, "k", [0], np.zeros(n + 1), None, True, []))
        labels = self.rng.integers(0, 3, n)
        return self.one_of((2, 3, labels, labels.astype(str), labels.tolist(), np.arange(n)))

    def options(self, solver):
        """Options of a solver; sometimes those of another."""
        if self.wrong():
            solver = self.one_of(SOLVERS)
        chosen = {}
        if solver == "krylov":
            if self.chance(0.5):
                chosen["tol"] = self.one_of((1e-12, 1e-6, 1e-2)) if not self.wrong() else 2.0
            if self.chance(0.3):
                chosen["max_rank"] = self.one_of((1, 2, 5, 0 if self.wrong() else 40))
            if self.chance(0.3):
                chosen["storage"] = self.one_of(("auto", "float64", "float32", "none"))
        if solver == "nystrom":
            chosen["n_landmarks"] = self.one_of((1, 2, 5, 100, -1 if self.wrong() else 3))
            chosen["sampling"] = self.one_of(("auto", "rpcholesky", "uniform", "kmeans"))
            chosen["random_state"] = int(self.rng.integers(100))
            if self.chance(0.3):
                chosen["block"] = self.one_of((1, 2, 7))
        return chosen


# ------------------------------------------------------------------ calls


class Session:
    """Makes calls for one seed and judges them."""

    def __init__(self, seed, note, folder):
        self.draw, self.note, self.folder = Draw(seed), note, folder
        self.calls, self.about = 0, ""

    def call(self, name, function, *args, **kwargs):
        """The result, or None after an error that is documented."""
        text = ", ".join([*map(_text, args), *(f"{k}={_text(v)}" for k, v in kwargs.items())])
        self.note(f"{name}({text})")
        self.calls += 1
        with warnings.catch_warnings(record=True) as caught, np.errstate(all="ignore"):
            warnings.simplefilter("always")
            try:
                result = function(*args, **kwargs)
            except DOCUMENTED as error:
                accident = next((a for a in ACCIDENTS if a in str(error)), None)
                if accident:
                    raise Finding(f"accidental {type(error).__name__}: {error}") from error
                return None
            except Exception as error:
                raise Finding(f"undocumented {type(error).__name__}: {error}") from error
        if not caught and _finite([*args, *kwargs.values()]) and not _without_nan(result):
            raise Finding(f"NaN from finite arguments, without a warning: {name}{self.about}")
        return result

    def run(self):
        kinds = (
            (self.gram, 4),
            (self.spectrum, 8),
            (self.weights, 3),
            (self.filters, 1),
            (self.estimator, 1),
            (self.sweep, 0.03),
        )
        share = np.array([s for _, s in kinds])
        kinds[int(self.draw.rng.choice(len(kinds), p=share / share.sum()))][0]()

    def kernel(self):
        make = self.draw.kernel()
        return self.call("kernel", make)

    def gram(self):
        draw = self.draw
        n, m, d = draw.size(), draw.size(), draw.one_of((1, 2, 3, 8, 40))
        X, Z = draw.array((n, d)), draw.one_of((None, draw.array((m, d))))
        kernel = self.kernel()
        columns = n if Z is None else m
        options = {"backend": draw.backend(), "n_threads": draw.threads()}
        out = None
        if draw.chance(0.2):
            out = np.empty((n, columns), draw.one_of((np.float64, np.float32)))
        # K itself may be infinite, and so what is computed from it may be NaN
        self.call("gram", sdf.gram, X, Z, kernel, out=out, **options)
        W = draw.array(draw.one_of(((columns,), (columns, 1), (columns, 5))))
        self.call("gram_matmul", sdf.gram_matmul, X, Z, W, kernel, **options)
        kernels = [kernel, self.kernel()]
        self.call("gram_sweep", lambda *a, **k: [K.copy() for K in sdf.gram_sweep(*a, **k)],
                  X, Z, kernels, **options)  # fmt: skip

    def spectrum(self):
        draw = self.draw
        n, d = draw.size(), draw.one_of((1, 2, 3, 20))
        p = draw.one_of((None, 1, 3))
        shape = (n,) if p is None else (n, p)
        X, y, kernel = draw.array((n, d)), draw.array(shape), self.kernel()
        X_new = draw.array((draw.size(), d))
        if draw.chance(0.15):
            X = self.call("gram", sdf.gram, X, None, kernel)
            kernel, X_new = "precomputed", X
        solver, lam = draw.one_of(SOLVERS), draw.lam()
        options = draw.options(solver)
        if solver in ("cholesky", "krylov") or draw.chance(0.5):
            options["lam"] = lam if not draw.wrong() else [lam, 1.0]
        if solver == "krylov":
            options["n_steps"] = draw.n_steps()
        w = draw.weight(n)
        s = self.call(
            "spectrum", sdf.spectrum, X, y, kernel, solver=solver, sample_weight=w,
            fit_intercept=draw.one_of((False, True)), backend=draw.backend(), **options,
        )  # fmt: skip
        if s is None:
            return
        self.about = f" of {type(s).__name__}, {s.dtype}"
        if draw.chance(0.1):
            s = self.call("pickle", lambda s: pickle.loads(pickle.dumps(s)), s) or s
        self.call("project", s.project, X_new)
        lam = lam if not draw.wrong() else draw.lam()
        for _ in range(2):
            n_steps = draw.n_steps()
            alpha = draw.alpha(n_steps)
            ask = self.one_question(s, X_new, n, p, lam, alpha, n_steps)
            if ask is not None:
                self.path(ask, X_new, s.backend)

    def one_question(self, s, X_new, n, p, lam, alpha, n_steps):
        """A path, or None after another question."""
        draw = self.draw
        kind = draw.rng.integers(8)
        if kind == 0:
            lams = draw.one_of((lam, [1e-3, 1.0]))
            self.call("leave_one_out", sdf.leave_one_out, s, lams, alpha, n_steps)
        elif kind == 1:
            self.call("leave_fold_out", sdf.leave_fold_out, s, lam, alpha, n_steps, draw.folds(n))
        elif kind == 2 and hasattr(s, "certificate"):
            self.call("certificate", s.certificate, lam, n_steps)
        elif kind == 3:
            self.call("constrained_path", sdf.constrained_path, s, draw.scalar(-6, 3), max_steps=9)
        else:
            options = {"clip": draw.chance(0.3), "per_target": draw.chance(0.3)}
            if draw.chance(0.3):
                rows = len(X_new) if hasattr(X_new, "__len__") else 3
                options["X_val"] = X_new
                options["y_val"] = draw.array((rows,) if p is None else (rows, p))
                options["sample_weight_val"] = draw.weight(rows)
            if draw.chance(0.15):
                lam = None
                options["lam_steps"] = [draw.lam() for _ in range(draw.one_of((1, 2, 3)))]
            return self.call("distill", sdf.distill, s, lam, alpha, n_steps, **options)
        return None

    def path(self, path, X_new, backend):
        draw = self.draw
        steps = None, 1, 2, "best", "last", "all", math.inf, 99 if draw.wrong() else "all"
        step = draw.one_of(steps)
        before = self.call("predict", path.predict, X_new, step)
        if draw.chance(0.2):
            self.call("dual_coef", path.dual_coef, step)
            self.call("coef", path.coef, step)
            file = self.folder / "model.npz"
            self.call("save", path.save, file, metadata=draw.one_of((None, {"a": 1}, {"a": 1j})))
            if not file.exists():
                return
            if draw.wrong():
                data = bytearray(file.read_bytes())
                for _ in range(3):
                    data[int(draw.rng.integers(len(data)))] ^= 1 << int(draw.rng.integers(8))
                file.write_bytes(data[: len(data) - draw.one_of((0, 0, 100))])
                self.call("load", sdf.load, file)
            else:
                again = self.call("load", sdf.load, file, backend=backend)
                after = None if again is None else self.call("predict", again.predict, X_new, step)
                if again is not None and not np.array_equal(
                    before if before is not None else 0, after if after is not None else 0,
                    equal_nan=True,
                ):  # fmt: skip
                    raise Finding("a saved path predicts other values than the path itself")
            file.unlink()

    def weights(self):
        draw = self.draw
        m, p, T = draw.size(), draw.one_of((None, 2)), draw.one_of((1, 2, 4))
        shape = (m,) if p is None else (m, p)
        y, options = draw.array(shape), {"sample_weight": draw.weight(m)}
        if draw.chance(0.3):
            options["per_target"] = True
        pair = draw.array(shape), draw.array(shape)
        self.call("optimal_alpha", sdf.optimal_alpha, y, *pair, **options)
        options["clip"] = draw.chance(0.5)
        c = self.call("joint_weights", sdf.joint_weights, y, draw.array((T, *shape)), **options)
        c = c if c is not None and draw.chance(0.5) else draw.array((T,))
        # weights that no sequence has are an error, α's that do not matter are 1
        alphas = self.call("weights_to_alphas", lambda c: sdf.weights_to_alphas(c)[1:], c)
        self.call("alphas_to_weights", sdf.alphas_to_weights, draw.array((T,)))
        if alphas is not None:
            self.call("alphas_to_weights", sdf.alphas_to_weights, alphas)

    def filters(self):
        draw = self.draw
        d = draw.array((draw.size(),))
        d = np.abs(d) if isinstance(d, np.ndarray) and d.dtype.kind == "f" else d
        n_steps = draw.n_steps()
        self.call("shrinkage_path", sdf.shrinkage_path, d, draw.lam(), draw.alpha(n_steps), n_steps)
        self.call("limit_shrinkage", sdf.limit_shrinkage, d, draw.lam(), draw.alpha(2))
        sizes = draw.one_of((1, 100, 10**5)), draw.one_of((1, 50)), draw.one_of((1, 3))
        self.call("plan", sdf.plan, *sizes, lam=draw.one_of((None, draw.lam())))

    def estimator(self):
        draw = self.draw
        n, d = draw.size(), 2
        X, y, X_new = draw.array((n, d)), draw.array((n,)), draw.array((3, d))
        name = draw.one_of(("rbf", "laplacian", "matern", "poly", "linear", "ntk"))
        options = {
            "kernel": name if not draw.wrong() else "nothing",
            "alpha": draw.alpha(2),
            "fit_intercept": draw.chance(0.5),
            "backend": draw.backend(),
        }
        if draw.chance(0.3):
            y = draw.rng.integers(0, 3, n) if not draw.wrong() else y
            options["lam"] = draw.lam()
            model = self.call("estimator", sdf.SelfDistilledKernelRidgeClassifier, **options)
        elif draw.chance(0.8):
            options |= {"lam": draw.lam(), "solver": draw.one_of(SOLVERS), "n_steps": 2}
            model = self.call("estimator", sdf.SelfDistilledKernelRidge, **options)
        else:
            options |= {"lams": draw.one_of((None, [draw.lam(), 1.0]))}
            options |= {"max_steps": draw.n_steps(), "cv": draw.one_of((None, 2, 3))}
            model = self.call("estimator", sdf.SelfDistilledKernelRidgeCV, **options)
        fitted = self.call("fit", model.fit, X, y, draw.weight(n))
        if fitted is not None:
            self.call("predict", fitted.predict, X_new)

    def sweep(self):
        draw = self.draw
        X, y = draw.array((9, 2)), draw.array((9,))
        options = {"store": self.folder / "store.zarr"} if draw.chance(0.3) else {}
        self.call(
            "sweep", sdf.sweep, X, y, kernels=[self.kernel(), self.kernel()],
            lams=[draw.lam(), 1.0], alphas=[draw.alpha(2)], n_steps=2, progress=False,
            overwrite=True, **options,
        )  # fmt: skip


def _text(value):
    if isinstance(value, np.ndarray) and value.ndim:
        return f"<{value.dtype} {value.shape}, from {value.flat[0] if value.size else None}>"
    text = " ".join(repr(value).split())
    return text if len(text) < 200 else text[:200] + "…"


def _finite(values):
    """Whether all numbers in some arguments are finite; models were made from finite numbers."""
    for value in values:
        if isinstance(value, (list, tuple)) and not _finite(value):
            return False
        if isinstance(value, (int, float)) and not math.isfinite(value):
            return False
        if isinstance(value, np.ndarray) and not (
            value.dtype.kind in "fiub" and np.isfinite(value).all()
        ):
            return False
    return True


def _without_nan(result):
    if isinstance(result, (list, tuple)):
        return all(map(_without_nan, result))
    if isinstance(result, (float, np.ndarray)) and np.asarray(result).dtype.kind == "f":
        return not np.isnan(result).any()
    return True


# ------------------------------------------------------------------ processes


def work(start, calls, notes, *, verbose=False):
    """Make calls from one seed on; note each in a file. Returns the exit status."""
    found, done, seed, begun = Counter(), 0, start, time.monotonic()

    with tempfile.TemporaryDirectory() as folder, open(notes, "w", encoding="utf-8") as file:
        while done < calls:
            lines = []

            def note(text, seed=seed, lines=lines, done=done):
                lines.append(text)
                file.seek(0)
                file.truncate()
                file.write(f"{seed} {done}\n" + "\n".join(lines))
                file.flush()
                if verbose:
                    print(text, flush=True)

            session = Session(seed, note, Path(folder))
            try:
                session.run()
            except Finding as finding:
                where = _where(finding)
                found[where] += 1
                if found[where] == 1:
                    print(f"\nseed {seed}: {finding}\n  at {where}", *lines, sep="\n  ", flush=True)
                    if verbose and finding.__cause__ is not None:
                        traceback.print_exception(finding.__cause__)
            done += max(session.calls, 1)
            seed += 1
            if seed % 2000 == 0:
                print(f"{done} calls, {time.monotonic() - begun:.0f} s", flush=True)
        file.seek(0)
        file.truncate()
    print(f"{done} calls, {sum(found.values())} findings of {len(found)} kinds")
    for where, count in found.most_common():
        print(f"  {count:6d} {where}")
    return FOUND if found else 0


def _where(finding):
    """The line of the package that a finding comes from."""
    error = finding.__cause__
    frames = traceback.extract_tb(error.__traceback__) if error is not None else []
    ours = [f for f in frames if f.filename.startswith(PACKAGE)]
    if not ours:
        return str(finding)
    return f"{Path(ours[-1].filename).name}:{ours[-1].lineno}, {type(error).__name__}"


def watch(start, calls):
    """Have the calls made by another process, and by the next one where it dies."""
    died = status = 0
    with tempfile.TemporaryDirectory() as folder:
        notes = Path(folder) / "notes"
        while calls > 0:
            command = [sys.executable, __file__, "--work", str(notes)]
            code = _run([*command, "--seed", str(start), "--calls", str(calls)], notes)
            status = max(status, int(code != 0))
            if code in (0, FOUND):
                break
            head, *lines = notes.read_text(encoding="utf-8").split("\n") if notes.exists() else [""]
            if not head:
                print(f"the process ended with {code} before its first call")
                break
            died += 1
            seed, done = map(int, head.split())
            print(
                f"\nseed {seed}: the process ended with {code} in the last of", *lines, sep="\n  "
            )
            start, calls = seed + 1, calls - done
    print(f"{died} crashes or hangs; --replay SEED makes the calls of one seed again")
    return status


def _run(command, notes):
    """The exit status of a process, which is ended when it makes no call for too long."""
    process = subprocess.Popen(command)
    while True:
        try:
            return process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            if notes.exists() and time.time() - notes.stat().st_mtime > LIMIT:
                print(f"\nno call returned for {LIMIT} s:", flush=True)
                process.send_signal(signal.SIGUSR1)  # where it is
                time.sleep(1)
                process.kill()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--calls", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--replay", type=int, metavar="SEED")
    parser.add_argument("--work", metavar="FILE", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.replay is not None:
        with tempfile.NamedTemporaryFile() as notes:
            sys.exit(work(given.replay, 1, notes.name, verbose=True))
    if given.work:
        faulthandler.register(signal.SIGUSR1, all_threads=True)
        sys.exit(work(given.seed, given.calls, given.work))
    sys.exit(watch(given.seed, given.calls))


if __name__ == "__main__":
    main()
