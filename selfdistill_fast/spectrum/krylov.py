"""Krylov spectra: what K does to these targets, and nothing else.

Every prediction of a chain is h(K) t for a smooth h, so the space spanned by t, Kt, K²t, …
holds it to high accuracy after k ≪ n products with K. With an orthonormal basis Q of that
space from the (block) Lanczos process,

    K Q = Q T + Q₊ B Eᵀ,   T = QᵀKQ = S Θ Sᵀ,

where Q₊ is the next block and E picks the last block of coordinates, the Ritz values Θ and
vectors V = Q S take the place of eigenvalues and eigenvectors: everything is as for a full
spectrum (eigh.py) with d = Θ and z = Vᵀt. This serves every λ, α and number of steps; it holds
f(K)t and never diag f(K), so there is no leave-one-out.

**Certificate.** Let t_s = A^s t, ĉ_s and t̂_s the computed dual coefficients and targets of the
pure steps, and r_s = t̂_(s−1) − (K + λ)ĉ_s their residuals; in exact arithmetic

    r_s = −Q₊ B Eᵀ (T + λ)⁻¹ (T(T + λ)⁻¹)^(s−1) Qᵀt.

Then ĉ_τ − c_τ = (K + λ)⁻¹ (δ_(τ−1) − r_τ) and δ_s = A δ_(s−1) + λ(K + λ)⁻¹ r_s for the error
δ_s of t̂_s. A function with coefficients e is ⟨φ(x), Φᵀe⟩, with ‖Φᵀe‖ = ‖K^½e‖; so with F(x) =
√κ(x, x) and u = d/(d + λ)

    |f̂_τ(x) − f_τ(x)| <= F(x) Σ_(s<=τ) ‖r_s‖ g_(τ−s),
    g_0 = max √d/(d + λ) = 1/(2√λ),   g_i = max u^(i−½) (1 − u)^(3/2) / √λ  for i >= 1,

and what r_s does later is known more closely for its part in the basis, and bounded for the
rest by its moments rᵀKr and ‖Kr‖². With an intercept φ is centred: F(x) = ‖φ(x) − φ̄‖, which is
at most √κ(x, x) + ‖φ̄‖; and a part η of ĉ along q, which must not be there, adds η ‖K^½q‖ F(x).

The process stops by the residuals of exact arithmetic and g, for every step at ``lam_min`` and
for every λ that is asked for: the bound need not fall as λ grows, since a residual r_s, s > 1,
may vanish at one λ and not at the next. The certificate is that of residuals computed anew with
products with K, and of what rounding may hide in them and add to a prediction; see
certificate.py and docs/certificate.md. Rounding falls as λ grows: it is a multiple of ‖ĉ_s‖, and
(K + λ)⁻¹, A and the gains all fall.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.linalg import LinAlgError

from selfdistill_fast.alpha import warn_caller
from selfdistill_fast.backend import Reference, get_backend
from selfdistill_fast.gram import native_half, native_matmul
from selfdistill_fast.kernels import Kernel, Precomputed
from selfdistill_fast.spectrum.base import (
    Spectrum,
    check_diagonal,
    check_lam,
    check_n_steps,
    check_tol,
    check_weighted,
    kernel_diagonal,
    largest,
    rounding,
)
from selfdistill_fast.spectrum.certificate import (
    ANY,
    MANY,
    Bound,
    entry_rounding,
    gains,
    gains_by_moments,
    joined,
    magnitudes,
    propagated,
    sum_rounding,
)
from selfdistill_fast.spectrum.eigh import clamp
from selfdistill_fast.spectrum.problem import Problem, Rates, Request, TrainingSet, Unsuitable, Work
from selfdistill_fast.spectrum.spectral import Filters

__all__ = ["KrylovSpectrum", "krylov_bytes"]

#: vectors that a full run is expected to need at most, and allocates at a time
MAX_RANK, _CHUNK = 3000, 64
#: vectors in a block at least: a product with so many takes hardly longer than with one, and
#: random vectors beside the targets find the large eigenvalues, half as many products are left
WIDTH = 4
#: columns of a certificate that are worked on at a time, for each target (of one all steps)
_CERTIFIED = 3
#: how K is kept: half of it, or not at all
STORAGES = ("auto", "float64", "float32", "none")
#: length that a vector may lose in an orthogonalisation that need not be repeated
_ENOUGH = 0.7
#: unit roundoff of the sums with K
_U = 2.0**-53
#: different rows from which the rounding of a product with K is judged by what is seen of it
_SEEN = 64
#: share of the tolerance that the residuals of exact arithmetic are to meet, and the least of
#: it that they are left beside rounding
_SHARE, _ROOM = 0.8, 0.25


class _Asked(NamedTuple):
    """Ridges that are to be within the tolerance; or a schedule of them."""

    lams: list[float]
    schedule: Any


@dataclass(frozen=True)
class KrylovOptions:
    """Options of "krylov"; see :func:`~selfdistill_fast.spectrum`."""

    lam_min: Any = None
    n_steps: Any = 6
    tol: Any = None
    max_rank: Any = None
    storage: str = "auto"

    def __post_init__(self) -> None:
        if self.lam_min is not None:
            check_lam(self.lam_min, batch=False)
        check_n_steps(self.n_steps)
        if self.tol is not None:
            check_tol(self.tol)
        if self.max_rank is not None:
            check_n_steps(self.max_rank, "max_rank")
        if self.storage not in STORAGES:
            raise ValueError(f"unknown storage {self.storage!r}; known: {', '.join(STORAGES)}")


class KrylovSpectrum(Spectrum):
    """Ritz values and vectors of K for given targets; made by :func:`~selfdistill_fast.spectrum`.

    Asking for a smaller λ or for more steps than it was made for continues the same run.

    Attributes
    ----------
    tol : float
        Bound asked for of the error of every pure step 1..n_steps, for every λ that is asked
        for, at every x with κ(x, x) <= max_i κ(x_i, x_i), relative to max |y| (centred, with
        an intercept) of each target. Where it is not met there is a RuntimeWarning.
    lam_min : float
        The smallest ridge that was asked for so far.
    n_steps : int
        The largest number of steps that was asked for so far.
    certificate_ : (T, p) ndarray
        Bound of the error of each pure step at ``lam_min``, in units of y; see
        :meth:`certificate`.
    max_rank : int
        Vectors that the run may have.
    storage : str
        How K was kept: "float64", "float32" (half of it, either way) or "none".
    """

    name = "krylov"
    Options = KrylovOptions
    max_loo_steps = 0
    guessed = True
    memory_hint = "a smaller max_rank"
    successors = ("tridiagonal", "eigh", "krylov")  # itself, with a warning

    @classmethod
    def serves(cls, problem: Problem) -> str | None:
        """A known smallest λ."""
        return "needs lam (or lam_min)" if problem.lam is None else None

    @classmethod
    def cost(cls, problem: Problem, rates: Rates) -> Work:
        """2 n² r flops in r/4 passes over half of K, which is stored where that fits."""
        be, dtype, budget = problem.backend, problem.dtype, problem.budget
        n, p, n_steps = problem.n, problem.p, problem.n_steps
        sizes = (be, n, problem.d, p, dtype)
        smallest = 1e-2 if problem.lam is None else float(np.min(problem.lam))
        tol = _default_tol(dtype) if problem.tol is None else problem.tol
        width = max(p, WIDTH)
        rank = min(krylov_rank(n, smallest, tol) * max(1, round((width / WIDTH) ** 0.5)), n)
        # a run may have MAX_RANK vectors where they fit, and needs room for half more than expected
        storage, most = "none", min(n, MAX_RANK)
        for storage in (dtype.name, "none"):
            needed = krylov_bytes(*sizes, min(n, 3 * rank // 2 + 1), storage, n_steps)
            if needed <= budget:
                needed = max(needed, min(krylov_bytes(*sizes, most, storage, n_steps), budget))
                break
        stored = storage != "none"
        passes = rank / width + 2.0 * n_steps * p / width
        one_pass = (
            be.half_bytes(n, dtype) * rates.byte if stored else 0.5 * n * n * rates.entry(problem.d)
        )
        return Work(
            bytes=needed,
            flops=2.0 * n * n * rank + 4.0 * n * rank**2,
            seconds=(0.5 * problem.matrix_seconds(rates) if stored else 0.0)
            + passes * (one_pass + 2.0 * n * n * width * rates.gemm)
            + 16.0 * n * rank**2 * rates.byte
            + 2.0 * n * rank * problem.columns * rates.gemm,
            passes=math.ceil(passes),
            note="" if stored else "K is not stored",
        )

    def __init__(self, training: TrainingSet, request: Request) -> None:
        be, X, kernel = training.backend, training.X, training.kernel
        options, lam = request.options, request.lam
        if options.lam_min is None and lam is None:
            raise ValueError("solver='krylov' needs lam_min (or lam): its run depends on it")
        smallest = float(np.min(lam if options.lam_min is None else options.lam_min))
        check_lam(smallest, batch=False, dtype=X.dtype)
        n_steps = int(options.n_steps)
        self.tol = _default_tol(X.dtype) if options.tol is None else float(options.tol)
        n, p = training.n_kept, training.p
        most = n - bool(training.fit_intercept)
        asked = None if options.max_rank is None else int(options.max_rank)
        self.max_rank = max(0, min(most, max(MAX_RANK, 4 * p) if asked is None else asked))
        max_memory = request.max_memory
        self._budget = int(0.8 * be.available_memory()) if max_memory is None else max_memory
        self.storage = self._choose_storage(be, X, kernel, options.storage, n, p, smallest)
        sizes = (be, n, X.shape[1], p, X.dtype)
        if asked is None:
            self.max_rank = fitting_rank(self._budget, self.max_rank, *sizes, self.storage, n_steps)
        needed = krylov_bytes(*sizes, self.max_rank, self.storage, n_steps)
        self._prepare(training, self._budget, needed=needed)
        self._lock = threading.RLock()  # a run may be continued while others use it
        self._half: Any = None
        # in float64 also where predictions are float32: as many digits as q has, or K_w mixes
        # with what an intercept takes out
        self._root64 = (
            None
            if training.sample_weight is None
            else be.xp.sqrt(self.kept(training.sample_weight))[:, None]
        )
        precomputed = isinstance(kernel, Precomputed)
        if precomputed or not kernel.pair:
            self._half = self._half_of_matrix(X)
        else:
            diagonal = kernel_diagonal(be, self.kept(self.X), kernel)
            check_diagonal(diagonal, self.X, kernel, X.dtype)
            self._measure(diagonal)
        self._measure_targets()
        self._start()
        if len(self._next) > self.max_rank:
            if request.automatic:
                raise Unsuitable
            raise ValueError(
                f"max_rank={self.max_rank} is less than the {len(self._next)} independent targets "
                "that the run begins with; use a larger max_rank"
                + (" or max_memory" if asked is None else "")
                + ", or fewer targets at a time"
            )
        self.lam_min, self.n_steps = smallest, n_steps
        self._automatic = request.automatic
        self._good = 0.0  # ridges that are not below this are within the tolerance
        self._forget()
        lams = np.array([smallest]) if lam is None else np.unique(lam)
        self._continue(_Asked(lams[lams >= smallest].tolist(), None))
        self._automatic = False

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.RLock())

    # ------------------------------------------------------------ products with K
    def _choose_storage(
        self, be: Any, X: Any, kernel: Kernel, storage: str, n: int, p: int, lam: float
    ) -> str:
        """How to keep K: what fits the budget, and what its precision allows."""
        widest = str(X.dtype)
        if storage == "float64" and widest == "float32":
            raise ValueError("storage='float64' needs float64 rows; X is float32")
        if isinstance(kernel, Precomputed) or not kernel.pair:
            if storage == "none":
                raise ValueError(
                    f"{kernel!r} cannot be computed again: storage='none' is not for it"
                )
            return widest if storage == "auto" else storage
        if storage != "auto":
            return storage
        fits = [
            s
            for s in (widest, "float32")
            if krylov_bytes(be, n, X.shape[1], p, X.dtype, min(self.max_rank, 500), s)
            <= self._budget
        ]
        if widest in fits:
            return widest
        # entries rounded to float32 perturb the residual by at most 2⁻²⁴ ‖K‖ ‖c‖, ‖c‖ <= ‖t‖/λ
        size = float(kernel_diagonal(be, X, kernel).max())
        perturbation = 2.0**-24 * n * size / lam / (2.0 * lam**0.5) * (n * size) ** 0.5
        return "float32" if fits and perturbation <= 0.5 * self.tol else "none"

    def _half_of_matrix(self, X: Any) -> Any:
        """Half of a matrix that no backend computes: precomputed, or the caller's function."""
        be, xp = self.backend, self.backend.xp
        K = self._checked_matrix(X, copy=False)
        self._measure(xp.diagonal(K).astype("float64"))
        return be.half_of(K, dtype=self.storage)

    def _measure(self, diagonal: Any) -> None:
        """Scales of K_w from the diagonal of K, and how much rounding its entries have."""
        xp = self.backend.xp
        self._largest_diagonal = largest(diagonal)
        weight = 1.0 if self._root64 is None else self._root64[:, 0] ** 2
        weighted = diagonal * weight
        self._trace, self._scale_of_K = float(weighted.sum()), largest(weighted)
        check_weighted(largest(abs(weighted)), self.dtype)
        size, eps = diagonal, xp.ones_like(diagonal)
        if self.X is not None:
            X = self.kept(self.X).astype("float64")
            size = magnitudes(self.kernel, diagonal, xp.square(X).sum(1))
            square = xp.square(X - X.mean(0)).sum(1)
            eps = entry_rounding(self.kernel, X.shape[1], square)
        elsewhere = self._unit_roundoff * eps
        half = (self._rounded and self.X is None) or (self._single and not self.kernel.pair)
        eps = (2.0**-24 if half else _U) * eps  # of the entries in an exact _product
        size = xp.maximum(size, 0.0)
        self._largest_magnitude = largest(size)
        # entries of K_w are at most m_i m_j, and off by e_i e_j; those of κ(x, X) by a_j √κ(x, x)
        self._magnitude = xp.sqrt(size * weight)
        self._off, self._off_elsewhere = self._magnitude * xp.sqrt(eps), self._magnitude * elsewhere
        self._entry = largest(elsewhere)

    def _measure_targets(self) -> None:
        """Scale of each target, and its unit: a power of two, in which the run is made.

        So targets of very different sizes are alike to it, and no square over- or underflows.
        A target that is constant but for the rounding of its mean is 0, and its tolerance is
        relative to the constant.
        """
        be, xp = self.backend, self.backend.xp
        scale = be.to_numpy(abs(self.kept(self.Y)).max(0)).astype(np.float64)
        rounding = 8.0 * float(np.finfo(np.float64).eps) * len(self.target) ** 0.5
        mean = abs(be.to_numpy(self.y_mean))
        constant = scale <= rounding * mean
        size = np.where(constant, mean, scale)  # what the error of a constant is relative to
        scale[constant] = 0.0
        unit = np.exp2(np.floor(np.log2(np.where(size > 0.0, size, 1.0))))
        self._unit = np.maximum(unit, 1e-300)
        self._scale, self._goal = scale / self._unit, self.tol * size / self._unit
        added = (mean + scale) / self._unit if self.fit_intercept else 0.0 * scale
        #: of ȳ, which every prediction contains, whatever λ is
        sums = sum_rounding(len(self.target)) * _U
        self._mean_rounding = (3.0 * sums + 4.0 * self._unit_roundoff) * added
        t = self.target.astype("float64") / xp.asarray(self._unit)
        self._dropped = np.where(constant, _norms(t[None], be)[0], 0.0)
        t[:, xp.asarray(constant)] = 0.0
        if self.q is not None:
            t -= self.q[:, None] * (self.q @ t)
        self._t = t  # what the run is about: centred targets in their units

    def _apply(self, V: Any) -> Any:
        """K_w V on the complement of q, for V (n, b) in float64."""
        return self._centred(self._product(V))

    def _centred(self, P: Any) -> Any:
        """P (n, b) on the complement of q, in place; twice, since little of P may be left."""
        if self.q is not None:
            for _ in range(2):
                P -= self.q[:, None] * (self.q @ P)
        return P

    def _product(self, V: Any, *, exactly: bool = False) -> Any:
        """K_w V, (n, b). ``exactly``: with the entries of K in float64, if they are ours."""
        be, xp = self.backend, self.backend.xp
        U = V if self._root64 is None else V * self._root64
        ours = self.kernel.pair != ""
        anew = exactly and self.X is not None and (self._rounded or (self._single and ours))
        if self._half is not None and not anew:
            P = be.half_matmul(self._half, U)
        else:
            X = self.kept(self.X)
            if anew and ours:
                X = X.astype("float64")
            P = native_matmul(be, X, None, xp.ascontiguousarray(U), self.kernel)
        return P if self._root64 is None else P * self._root64

    @property
    def _single(self) -> bool:
        """Whether rows and predictions are float32."""
        return bool(self.dtype == np.float32)

    @property
    def _unit_roundoff(self) -> float:
        """Of the entries of K and of the predictions."""
        return 0.5 * float(np.finfo(self.dtype).eps)

    @property
    def _rounded(self) -> bool:
        """Whether K is kept with fewer digits than it has."""
        return bool(self.storage == "float32" and self.dtype == np.float64)

    def _keep_matrix(self) -> bool:
        """Compute and keep half of K for many products; whether that was done here."""
        if self._half is not None or self.storage == "none":
            return False
        X = self.kept(self.X)
        self._half = native_half(self.backend, X, self.kernel, dtype=self.storage)
        return True

    # ------------------------------------------------------------ the process
    def _start(self) -> None:
        """First block: an orthonormal basis of the targets."""
        xp = self.backend.xp
        self._chunks: list[Any] = []
        self._sizes: list[int] = []  # of the blocks
        self._A: list[np.ndarray] = []  # diagonal blocks of T
        self._B: list[np.ndarray] = []  # B[j] couples block j + 1 to block j
        self._norm = self.scale = self._scale_of_K  # of K_w, as seen so far
        self._last: Any = None  # block that was appended last
        self._done = False  # an invariant subspace: nothing is left to find
        self.k = 0
        self._bases: dict[int, Any] = {0: xp.zeros((0, 0))}
        block, coefficients = self._orthonormal(xp.ascontiguousarray(self._t.T), 0.0)
        if self.q is not None and len(block):
            # a short direction of the targets is not orthogonal to q to as many digits as they
            block -= (block @ self.q)[:, None] * self.q
            block, change = self._orthonormal(block, 0.5)
            coefficients = change @ coefficients
        block = self._widened(block)
        missing = xp.zeros((len(block) - len(coefficients), coefficients.shape[1]))
        coefficients = xp.concatenate([coefficients, missing])
        self._next = block
        self._first = self.backend.to_numpy(coefficients)
        self._first[:, self._scale == 0.0] = 0.0  # not the rounding of the others
        self._offset = None
        self._mean_feature, along = 0.0, 0.0  # ‖mean feature‖, and qᵀKq
        if self.fit_intercept:
            m = self._product(self.q.astype("float64")[:, None], exactly=True)[:, 0]
            self.scale = max(self.scale, float(xp.sqrt((m * m).sum())))
            self._offset = m / self.total_weight**0.5
            along = max(float(self.q @ m), 0.0)
            self._mean_feature = (along / self.total_weight) ** 0.5
            self._mean_root = float(xp.square(self._magnitude).sum() / self.total_weight) ** 0.5
        self._mean_length = along**0.5  # ‖K^½q‖
        self._feature_norm = self._largest_diagonal**0.5 + self._mean_feature
        #: rounding of K as an operator, and the trace of K on the complement of q
        self._slack = sum_rounding(len(self.target)) * _U * self._trace
        self._slack += float((self._magnitude * self._off_elsewhere).sum())
        self._slack += 2.0**-24 * self._trace if self._rounded else 0.0
        self._centred_trace = max(self._trace - along, 0.0)
        self._many_rows = self._different_rows() >= _SEEN

    def _different_rows(self) -> int:
        """How many rows are not equal, or nearly so, to others; their rounding is alike."""
        xp, n = self.backend.xp, len(self.target)
        width = n if self.X is None else self.X.shape[1]
        g = xp.asarray(np.random.default_rng(0).normal(size=(width, 1)))
        if self.X is not None:
            v = self.kept(self.X).astype("float64") @ g
        elif self._root64 is None:
            v = self._product(g)
        else:
            v = self._product(g / self._root64) / self._root64
        v = np.sort(self.backend.to_numpy(v[:, 0]))
        return 1 + int((np.diff(v) > 1e-9 * (v[-1] - v[0])).sum())

    def _widened(self, block: Any) -> Any:
        """The block with random vectors up to ``WIDTH`` of them."""
        xp = self.backend.xp
        count = min(WIDTH, self.max_rank) - len(block)
        if len(block) == 0 or count <= 0:
            return block
        random = np.random.default_rng(0).normal(size=(count, len(self.target)))
        W = xp.asarray(random)
        for _ in range(2):
            W -= (W @ block.T) @ block
            if self.q is not None:
                W -= (W @ self.q)[:, None] * self.q
        return xp.concatenate([block, self._orthonormal(W, 0.0)[0]])

    def _orthonormal(self, W: Any, cutoff: float) -> tuple[Any, Any]:
        """Orthonormal rows U (r, n) and coefficients C (r, b) with Wᵀ = Uᵀ C; W (b, n).

        Directions no longer than ``cutoff``, or that rounding alone separates, are dropped.
        """
        be, xp = self.backend, self.backend.xp
        eps = float(np.finfo(np.float64).eps)
        if len(W) == 1:
            norm = float(xp.sqrt((W[0] * W[0]).sum()))
            if not norm > cutoff:
                return W[:0], xp.zeros((0, 1))
            return W / norm, xp.full((1, 1), norm)
        V, s, G = be.svd(xp.ascontiguousarray(W.T))
        real = s > max(cutoff, 8.0 * eps * W.shape[1] ** 0.5 * largest(s))
        return xp.ascontiguousarray(V[:, real].T), s[real][:, None] * G[real]

    def _orthogonalise(self, W: Any) -> Any:
        """W (b, n) made orthogonal to all vectors so far and to q, in place, twice if need be."""
        be, xp = self.backend, self.backend.xp
        before = float(xp.square(W).sum(1).min()) if W.size else 0.0
        for _ in range(3):
            be.project_out(self._basis_chunks(self.k), W)
            if self.q is not None:
                W -= (W @ self.q)[:, None] * self.q
            after = float(xp.square(W).sum(1).min()) if W.size else 0.0
            if after >= _ENOUGH**2 * before:
                break
            before = after
        return W

    def _basis_chunks(self, k: int) -> Any:
        """Views of the first k basis vectors, (c, n) each."""
        for i, chunk in enumerate(self._chunks):
            rest = k - i * _CHUNK
            if rest <= 0:
                return
            yield chunk[: min(rest, _CHUNK)]

    def _append(self, block: Any) -> None:
        xp = self.backend.xp
        done = 0
        while done < len(block):
            at = self.k % _CHUNK
            if at == 0:
                self._chunks.append(xp.empty((_CHUNK, block.shape[1])))
            take = min(_CHUNK - at, len(block) - done)
            self._chunks[-1][at : at + take] = block[done : done + take]
            done += take
            self.k += take

    def _step(self) -> None:
        """Append the next block and find the one after it; all of it, or nothing."""
        k, blocks = self.k, len(self._A)
        try:
            self._extend()
        except BaseException:
            self.k = k
            del self._chunks[-(-k // _CHUNK) :]
            del self._sizes[blocks:], self._A[blocks:], self._B[blocks:]
            raise

    def _extend(self) -> None:
        be, xp = self.backend, self.backend.xp
        block = self._next
        W = xp.ascontiguousarray(self._apply(block.T).T)
        # K couples a block to itself, by A, and to the last, by B, which is known
        earlier = [] if self._last is None else [self._last]
        A = be.to_numpy(be.project_out([*earlier, block], W))[-len(block) :]
        A = 0.5 * (A + A.T)
        if not np.isfinite(A).all():
            raise ValueError(
                f"{self.kernel!r} overflows {self.dtype} on these rows: scale X down"
                + (" or use float64" if self.dtype == np.float32 else "")
            )
        self._append(block)
        self._sizes.append(len(block))
        self._A.append(A)
        self._norm = max(self._norm, float(abs(A).sum(1).max()))
        W = self._orthogonalise(W)
        eps = float(np.finfo(np.float64).eps)
        cutoff = 4.0 * eps * len(self.target) ** 0.5 * self._norm
        following, B = self._orthonormal(W, cutoff)
        lengths = np.square(be.to_numpy(B)).sum(1)  # singular values, squared
        if len(following) and lengths.min() < 1e-4 * lengths.max():
            # a short direction of W is not orthogonal to as many digits as W is
            following = self._orthogonalise(following)
            following, change = self._orthonormal(following, 0.5)
            B = change @ B
        B = be.to_numpy(B)
        self._norm = max(self._norm, float(abs(B).sum(1).max(initial=0.0)))
        self._B.append(B)
        self._last, self._next, self._done = block, following, len(following) == 0

    def _continue(self, asked: _Asked) -> None:
        """Go on until all that was asked for meets ``tol``; a warning where it does not."""
        kept = False
        floor: Any = 0.0
        strictness = 1.0
        try:
            if not self._done and len(self._next):
                kept = self._keep_matrix()
            before = set(self._bases)
            for _ in range(20):
                room = np.maximum(self._goal - floor, _ROOM * self._goal)
                self._run(_SHARE / strictness * room)
                self._diagonalise()
                self._forget()
                excess = self._excess(asked, room)
                if excess > 1.0 and not self._ended:
                    strictness *= 2.0 * min(excess, 1e3)
                    continue
                floor = self._certified(self.lam_min)[1]
                room = np.maximum(self._goal - floor, _ROOM * self._goal)
                if self._ended or self._excess(asked, room) <= 1.0:
                    break
            for k in set(self._bases) - before - {self.k}:  # nobody has seen these
                del self._bases[k]
            self._warn(asked)
        finally:
            if kept:
                self._half = None

    @property
    def _ended(self) -> bool:
        """Whether the run cannot go on."""
        return self._done or self.k + len(self._next) > self.max_rank

    def _excess(self, asked: _Asked, room: Any) -> float:
        """By what factor the residuals of exact arithmetic exceed ``room`` (T, p) at most."""
        room = np.maximum(np.broadcast_to(room, (self.n_steps, self.p)), 1e-300)
        bounds = [self._recursion(lam, self.n_steps) for lam in {self.lam_min, *asked.lams}]
        if asked.schedule is not None:
            bounds.append(self._recursion_of_schedule(asked.schedule))
        return max(float(np.max(b / room[: len(b)], initial=0.0)) for b in bounds)

    def _run(self, target: np.ndarray) -> None:
        """Steps of the process, until :meth:`_recursion` meets ``target``, (p,) or (T, p).

        It is asked for as soon as the residual of the first pure step is small enough. That
        follows from T = LDLᵀ by blocks, with Δ_j = A_j + λ − B_(j−1) Δ_(j−1)⁻¹ B_(j−1)ᵀ:
        the last block of (T + λ)⁻¹ E₁ C₀, times B_m, is ± Π_j B_j Δ_j⁻¹ C₀.
        """
        if len(self._next) == 0:
            self._done = True
        lam, small = self.lam_min, Reference()
        target = np.broadcast_to(target, (self.n_steps, self.p))
        goal = target[0] * 2.0 * lam**0.5 / max(self._feature_norm, 1e-300)  # of the residual
        residual = self._first
        delta: Any = None

        def advance(j: int, residual: np.ndarray, delta: Any) -> tuple[np.ndarray, Any]:
            D = self._A[j] + lam * np.eye(len(self._A[j]))
            if j and delta is None:  # λ is below the rounding of T: go on to the end
                return residual, None
            if j:
                B = self._B[j - 1]
                D = D - B @ small.cholesky_solve(delta, B.T)
            try:
                L = small.cholesky(0.5 * (D + D.T))
            except LinAlgError:
                self._diagonalise()  # names the eigenvalue, if it is more than round-off
                return np.full_like(residual, np.inf), None
            return self._B[j] @ small.cholesky_solve(L, residual), L

        for j in range(len(self._A)):
            residual, delta = advance(j, residual, delta)
        factor = 1.0
        while not self._ended:
            size = np.sqrt(np.square(residual).sum(0))
            if self._A and (size <= factor * goal).all():
                bound = self._bound_by_solves(lam, self.n_steps)
                excess = float(np.max(bound / np.maximum(target, 1e-300), initial=0.0))
                if excess <= 1.0:
                    return
                factor = min(factor, float(np.max(size / np.maximum(goal, 1e-300)))) / min(
                    excess, 1e3
                )
            self._step()
            residual, delta = advance(len(self._A) - 1, residual, delta)

    def _diagonalise(self) -> None:
        """Ritz values, vectors and rotated targets of the basis so far."""
        be, xp = self.backend, self.backend.xp
        k = self.k
        if k in self._bases and k:
            return
        theta, S = be.eigh(xp.asarray(self._projected()))
        self.scale = max(self.scale, self._norm)
        # entries kept in float32 are a reason for eigenvalues below zero, whatever θ's precision
        limit = rounding(self.scale, np.float32 if self.storage == "float32" else self.dtype)
        d = clamp(theta, self.kernel, xp, limit, len(self.target))
        S = xp.ascontiguousarray(S)
        self._z = S[: len(self._first)].T @ xp.asarray(self._first)
        self.filters = Filters(be, d, self._z * xp.asarray(self._unit), self.dtype)
        last = self._sizes[-1] if self._sizes else 0
        coupling = xp.asarray(self._B[-1]) if self._B else xp.zeros((0, 0))
        self._coupling = coupling @ S[k - last :]  # B Eᵀ S, (b, k)
        self._bases[k] = S  # last: from here on all of it is there

    def _bound_by_solves(self, lam: float, n_steps: int) -> np.ndarray:
        """What :meth:`_recursion` says, (T, p), without eigenvectors of T."""
        small = get_backend("cpu")  # blocks of four are faster in NumPy, T in LAPACK
        T = self._projected()
        T[np.diag_indices_from(T)] += lam
        L = small.cholesky(T)
        t = np.zeros((self.k, self._first.shape[1]))
        t[: len(self._first)] = self._first
        sizes = []
        for _ in range(n_steps):
            c = small.cholesky_solve(L, t)
            t = t - lam * c
            sizes.append(np.square(self._B[-1] @ c[self.k - self._sizes[-1] :]).sum(0) ** 0.5)
        bounds = gains(lam, n_steps)[:, None, None] * np.stack(sizes)
        return propagated(bounds) * self._feature_norm

    def _projected(self) -> np.ndarray:
        """T = QᵀKQ, block tridiagonal, (k, k)."""
        T = np.zeros((self.k, self.k))
        at = 0
        for j, A in enumerate(self._A):
            size = len(A)
            T[at : at + size, at : at + size] = A
            following = len(self._B[j])
            if at + size < self.k:
                T[at + size : at + size + following, at : at + size] = self._B[j]
                T[at : at + size, at + size : at + size + following] = self._B[j].T
            at += size
        return T

    def _ensure(self, lam: Any, n_steps: int, lam_steps: Any = None) -> None:
        """Continue the run where what is asked for is not within the tolerance."""
        lams = check_lam(lam if lam_steps is None else lam_steps, batch=True, dtype=self.dtype)
        lams = lams.reshape(-1)
        smallest = float(lams.min())
        with self._lock:
            before = self.lam_min, self.n_steps
            new = smallest < self.lam_min or n_steps > self.n_steps
            # a warning has named those for which the tolerance cannot be met
            open_ = lams if new else lams[lams >= self._good]
            schedule = lams if lam_steps is not None and len(open_) == len(lams) else None
            asked = _Asked(np.unique(open_).tolist(), schedule)
            try:
                self.lam_min = min(smallest, self.lam_min)
                if n_steps > self.n_steps:
                    self.n_steps = n_steps
                    self._forget()
                if self.k not in self._bases or not self._within(asked):
                    self._continue(asked)
            except BaseException:  # interrupted: ask again the next time
                self.lam_min, self.n_steps = before
                self._forget()
                raise

    def _within(self, asked: _Asked) -> bool:
        """Whether every step is within the tolerance for all that is asked."""
        if asked.schedule is not None:
            bound = self._recursion_of_schedule(asked.schedule)
            bound += self._floor(min(asked.lams))[: len(bound)]
            return bool((bound <= self._goal).all())
        for lam in asked.lams:
            if lam in self._met:
                continue
            bound = self._recursion(lam, self.n_steps) + self._floor(lam)
            if not (bound <= self._goal).all():
                bound = self._certified(lam)[0]  # not by the triangle inequality
                if not (bound <= self._goal).all():
                    return False
            self._met.add(lam)
        return True

    def _forget(self) -> None:
        """What was certified, since the basis or the number of steps is another one."""
        self._certificates: dict[float, tuple[np.ndarray, np.ndarray, Bound]] = {}
        self._met: set[float] = set()  # ridges that are within the tolerance

    # ------------------------------------------------------------ certificate
    def certificate(self, lam: Any, n_steps: int, X: Any = None) -> np.ndarray:
        """Bound of the error of each pure step, rounding included.

        Without ``X`` it holds at every x with κ(x, x) <= max_i κ(x_i, x_i), so for a stationary
        kernel at every x; with ``X`` at its rows. From residuals that are computed anew, with
        about 2 L T p products with K. The error of a mixed chain is at most Σ_k |c_k| times
        this. See the head of this module and docs/certificate.md.

        Parameters
        ----------
        lam : float, or array_like of shape (L,)
            The ridge λ. A 1-D array is a batch of ridges, never a schedule.
        n_steps : int T
        X : array_like of shape (m, d), optional
            Rows to bound the error at. Not with a precomputed kernel, whose κ(x, x) is not known.

        Returns
        -------
        bound : ndarray of shape (T, p), or (L, T, p) for a batch; with X (T, m, p), (L, T, m, p)
            In units of y.
        """
        lam, n_steps = check_lam(lam, batch=True), check_n_steps(n_steps)
        if X is not None and self.X is None:
            raise ValueError(
                "κ(x, x) at new points is not known for a precomputed kernel: leave X out, and "
                "multiply the bound by the root of κ(x, x) / max K_ii where that is above 1"
            )
        X = None if X is None else self.check_new(X)
        self._ensure(lam, n_steps)
        with self._lock:
            found = [self._certified(float(one)) for one in lam.reshape(-1)]
            if X is None:
                bounds = [bound[:n_steps] for bound, _, _ in found]
            else:
                feature, root = self._feature_norms(X)
                bounds = [
                    Bound(*(part[:n_steps, None] for part in parts)).at(feature, root)
                    for _, _, parts in found
                ]
                largest_entries = root[:, 0] * self._largest_magnitude**0.5
                for bound in bounds:
                    bound[:, largest_entries > float(np.finfo(self.dtype).max)] = np.inf
        return (np.stack(bounds) if lam.ndim else bounds[0]) * self._unit

    @property
    def certificate_(self) -> np.ndarray:
        """Bound of the error of each pure step at ``lam_min``, (T, p); computed when stale."""
        with self._lock:
            return self._certified(self.lam_min)[0] * self._unit

    def _feature_norms(self, X: Any) -> tuple[np.ndarray, np.ndarray]:
        """‖φ(x) − φ̄‖ (φ̄ = 0 without an intercept) and √κ(x, x) at rows X, (m, 1) each."""
        be, xp = self.backend, self.backend.xp
        diagonal = kernel_diagonal(be, X, self.kernel)
        size = magnitudes(self.kernel, diagonal, xp.square(X.astype("float64")).sum(1))
        root = be.to_numpy(xp.sqrt(xp.maximum(size, 0.0)))[:, None]
        feature = be.to_numpy(xp.sqrt(xp.maximum(diagonal, 0.0)))[:, None]
        if not self.fit_intercept:
            return feature, root
        weights = xp.square(self.q.astype("float64"))[:, None]
        mean = native_matmul(be, X, self.kept(self.X), weights, self.kernel)
        square = np.square(feature) - 2.0 * be.to_numpy(mean) + self._mean_feature**2
        rounding = 4.0 * (self._entry + sum_rounding(len(self.target)) * _U)
        square = np.maximum(square, 0.0) + rounding * np.square(root + self._mean_root)
        return np.minimum(feature + self._mean_feature, np.sqrt(square)), root

    def _certified(self, lam: float) -> tuple[np.ndarray, np.ndarray, Bound]:
        """The certificate (T, p), its share of rounding (T, p), and the parts of the first."""
        if lam not in self._certificates:
            whole, floor = self._explicit(lam)
            norms = self._feature_norm, self._largest_magnitude**0.5
            self._certificates[lam] = whole.at(*norms), floor.at(*norms), whole
        return self._certificates[lam]

    def _floor(self, lam: float, *, likely: bool = False) -> np.ndarray:
        """Rounding in the certificate at λ, (T, p), from that at a λ where it is known.

        It falls as λ grows, since ‖c_s‖ and the gains do, and grows with λ^(−3/2) at most
        towards smaller ones. ``likely``: as it changes with ‖c₁‖ and the gain.
        """
        if not self._certificates:
            self._certified(self.lam_min)
        below = [known for known in self._certificates if known <= lam]
        known = max(below) if below else min(self._certificates)
        floor = self._certificates[known][1]
        if not below:
            return floor * math.exp(min(1.5 * (math.log(known) - math.log(lam)), 600.0))
        if not likely:
            return floor
        share = self._length(lam) / self._length(known)
        return self._mean_rounding + (floor - self._mean_rounding) * share

    def _length(self, lam: float) -> np.ndarray:
        """‖c₁‖/√λ, (p,)."""
        c = self._z / (self.d.astype("float64")[:, None] + lam)
        return np.maximum(_norms(c[None], self.backend)[0], 1e-300) / lam**0.5

    def _recursion(self, lam: float, n_steps: int) -> np.ndarray:
        """The certificate (T, p) from residuals of exact arithmetic, in the targets' units."""
        filters = self.backend.pure_filters(self.d.astype("float64"), np.array([lam]), n_steps)[0]
        bound = propagated(gains(lam, n_steps)[:, None, None] * self._exact_sizes(filters))
        return bound * self._feature_norm

    def _recursion_of_schedule(self, lam_steps: np.ndarray) -> np.ndarray:
        """As :meth:`_recursion` for a ridge for each step: of the chains s..τ the worst.

        What a residual does later is at most what it does at once, max √d/(d + λ_τ).
        """
        T = len(lam_steps)
        filters = self.spectral.windows(lam_steps).astype(
            "float64"
        )  # [τ, s]: c_τ from step s on
        sizes = np.stack([self._exact_sizes(filters[t]) for t in range(T)])
        lost = np.stack([sizes[: t + 1].sum(0).max(0) for t in range(T)])
        return 0.5 / np.sqrt(lam_steps)[:, None] * lost * self._feature_norm

    def _exact_sizes(self, filters: Any) -> np.ndarray:
        """‖r_s‖ of exact arithmetic, (T, p), for pure filters (T, k)."""
        return _norms(self._coupling @ (filters[..., None] * self._z), self.backend)

    def _explicit(self, lam: float) -> tuple[Bound, Bound]:
        """The certificate, and the rounding in it, from residuals with K; few targets at a time."""
        n_steps = self.n_steps
        filters = self.backend.pure_filters(self.d.astype("float64"), np.array([lam]), n_steps)[0]
        count = max(1, _CERTIFIED * self.p // n_steps)
        parts = [slice(at, at + count) for at in range(0, self.p, count)]
        with np.errstate(over="ignore"):
            found = [self._explicit_of(part, lam, filters) for part in parts]
        whole, floor = zip(*found, strict=True)
        return joined(list(whole)), joined(list(floor))

    def _explicit_of(self, targets: slice, lam: float, filters: Any) -> tuple[Bound, Bound]:
        """The certificate of some targets, and the rounding in it."""
        xp, be = self.backend.xp, self.backend
        z = self._z[:, targets]
        C = self._rows_of(filters[..., None] * z)  # (T, n, p)
        T, n, p = C.shape
        dual = xp.ascontiguousarray(xp.moveaxis(C, 1, 0).reshape(n, T * p))
        values = self._product(dual, exactly=True)
        lost = self._lost_by_single(dual, values).reshape(T, p)
        KC = xp.moveaxis(self._centred(values).reshape(n, T, p), 1, 0)
        R = xp.empty_like(C)
        t = self._t[:, targets]
        seen = np.zeros((T, p))  # what the residuals have beyond those of exact arithmetic
        for s in range(T):
            R[s] = self._centred(t - KC[s] - lam * C[s])
            t = t - lam * C[s]
            known = self._next.T @ (self._coupling @ (filters[s][:, None] * z))
            seen[s] = _norms((R[s] + known)[None], be)[0]
        sizes = _norms(R, be)
        # what the basis holds of R, in Ritz coordinates, and the rest
        inside = self._ritz_coordinates(R)
        R = R - self._rows_of(inside)
        held = self._propagated_inside(inside, lam)
        rest = _norms(R, be)
        flat = xp.ascontiguousarray(xp.moveaxis(R, 1, 0).reshape(n, T * p))
        KR = xp.moveaxis(self._apply(flat).reshape(n, T, p), 1, 0)
        square = np.maximum(np.square(rest), 1e-300)
        mean = np.maximum(be.to_numpy((R * KR).sum(1)), 0.0) / square + self._slack
        mean_square = np.square(_norms(KR, be) + self._slack * rest) / square
        now, later = gains_by_moments(mean, mean_square, lam)
        contraction = self._contraction(lam)
        # for i >= 2 also u² (1 − u)³ u/λ <= (d/λ)² max (1 − u)³ u/λ
        at_most = (27.0 / 256.0 * mean_square / lam) ** 0.5 / lam
        much_later = np.minimum(later * contraction, at_most)
        outside = [now, later, *(much_later * contraction ** (i - 2) for i in range(2, T))][:T]
        largest_gains = gains(lam, T)[:, None, None]
        bounds = np.minimum(held + rest * np.stack(outside), largest_gains * sizes)

        noise, rounding = self._rounding(targets, C, KC, seen, lost)
        by = self._gains_of_rounding(lam, T)[:, None, None]
        of_t = 4.0 * (self._unit_roundoff + T * _U) * _norms(self._t[None, :, targets], be)
        size = propagated(by * noise) + by[0] * (of_t + self._dropped[targets]) + rounding.size
        whole = rounding._replace(size=propagated(bounds) + size)
        return whole, rounding._replace(size=propagated(by * seen) + size)

    def _gains_of_rounding(self, lam: float, n_steps: int) -> np.ndarray:
        """As :func:`gains`, for a residual that may have any direction, with what is known of K.

        In the basis K is known from the Ritz values and the coupling; on its complement it is
        at most its trace there.
        """
        cap = 0.5 / lam**0.5
        if self._trace + self._slack < lam:
            cap = (self._trace + self._slack) ** 0.5 / (self._trace + self._slack + lam)
        theta = self.d.astype("float64")
        inside = 0.0
        if self.k:
            leak = float(self.backend.xp.sqrt(((self._coupling / (theta + lam)) ** 2).sum()))
            leak += self._slack / (float(theta.min()) + lam)
            inside = float(((theta + self._slack) ** 0.5 / (theta + lam)).max()) + cap * leak
        rest = max(self._centred_trace - float(theta.sum()), 0.0) + self._slack
        largest_now = min(cap, math.hypot(inside, min(cap, rest**0.5 / lam)))
        later = largest_now * self._contraction(lam) ** np.arange(n_steps - 1)
        result = gains(lam, n_steps)
        result[0], result[1:] = largest_now, np.minimum(result[1:], later)
        return result

    def _contraction(self, lam: float) -> float:
        """A bound of ‖A‖."""
        largest_eigenvalue = self._trace + self._slack
        return largest_eigenvalue / (largest_eigenvalue + lam)

    def _lost_by_single(self, dual: Any, values: Any) -> np.ndarray:
        """What predictions in float32 lose at a training row at most, over √κ(x, x), (b,).

        That of ``dual`` itself is in it, but no measure of others, being the same for all rows.
        From the exact ``values`` K_w dual (n, b); inf where that is not to be known.
        """
        be, xp = self.backend, self.backend.xp
        n = len(dual)
        if not (self._single and self.kernel.pair and self._many_rows):
            return np.full(dual.shape[1], np.inf)
        root = xp.ones((n, 1)) if self._root64 is None else self._root64
        X, W = self.kept(self.X), xp.ascontiguousarray((dual * root).astype(self.dtype))
        found = native_matmul(be, X, X, W, self.kernel).astype("float64")
        size = xp.maximum(self._magnitude[:, None], 1e-300)  # of a row of zeros
        return be.to_numpy((abs(found * root - values) / size).max(0))

    def _rounding(
        self, targets: slice, C: Any, KC: Any, seen: np.ndarray, lost: np.ndarray
    ) -> tuple[np.ndarray, Bound]:
        """First-order bounds of rounding, for dual coefficients C (T, n, p) and K C.

        The first (T, p) is of residuals: of the entries of K times C and of the sums. In the
        second: that C is not orthogonal to q; and of predictions κ(x, X)ᵀc, from the entries,
        the sums, c, and the constant ȳ − r·c. ``seen`` and ``lost`` (T, p) are measured, of the
        residuals and of the predictions. See docs/certificate.md.
        """
        be, xp = self.backend, self.backend.xp
        n, u = C.shape[1], self._unit_roundoff
        sums = sum_rounding(n) * _U

        def weighted(by: Any) -> tuple[np.ndarray, np.ndarray, float]:
            P = abs(C) * by[:, None]
            return be.to_numpy(P.sum(1)), _norms(P, be), float(xp.sqrt(xp.square(by).sum()))

        length = _norms(C, be)
        added, squares, all_ = weighted(self._magnitude)
        off, off_squares, off_all = weighted(self._off)

        noise = 3.0 * sums * all_ * added + 8.0 * _U * _norms(self._t[None, :, targets], be)
        if self._many_rows:  # it would be seen, in so many rows
            noise = np.minimum(noise, 2.0 * seen)
        noise = noise + off_all * np.minimum(off, MANY * off_squares)

        point = sums * added
        elsewhere, elsewhere_squares, _ = weighted(self._off_elsewhere)
        point += np.minimum(elsewhere, ANY * elsewhere_squares)
        if self._single:  # sums within a tile of K are in float32
            if self.kernel.pair:
                point += u * np.minimum(sum_rounding(min(n, 192)) * added, 300.0 * squares)
            else:
                point += u * sum_rounding(n) * added
        point = np.minimum(point, 4.0 * lost) + 3.0 * u * np.minimum(added, ANY * squares)
        square = be.to_numpy((C * KC).sum(1))
        point += 3.0 * u * np.sqrt(np.maximum(square, 0.0))
        again = (2.0 * self.k**0.5 + 4.0) * _U * length  # of c, which is computed once more
        again = again * min(all_, ANY * largest(self._magnitude))
        point += again
        if not self.fit_intercept:
            return noise, Bound(np.zeros_like(point), point, np.zeros_like(point))
        along = abs(be.to_numpy(xp.tensordot(self.q.astype("float64"), C, ([0], [1]))))
        shift = abs(be.to_numpy(xp.tensordot(self._offset, C, ([0], [1]))))
        fixed = self._mean_root * (3.0 * sums * added + again) + 3.0 * u * shift
        fixed += off_all / self.total_weight**0.5 * off
        fixed += self._mean_rounding[targets]
        return noise, Bound((along + sums * length) * self._mean_length, point, fixed)

    def _propagated_inside(self, u: Any, lam: float) -> np.ndarray:
        """What residuals V u do i = 0, 1, … steps later, (T, T, p), for u (T, k, p).

        ‖K^½(K + λ)⁻¹ h(K) V u‖ with h = 1 for i = 0 and λ(K + λ)⁻¹ A^(i−1) after that. Each
        factor passes V as (K + λ)⁻¹V u = V(Θ + λ)⁻¹u − (K + λ)⁻¹ Q₊BEᵀS (Θ + λ)⁻¹u.
        """
        be = self.backend
        theta = self.d.astype("float64")[:, None]
        a, cap, slack = theta / (theta + lam), 0.5 / lam**0.5, self._slack

        def leaks(u: Any) -> np.ndarray:
            u = u / (theta + lam)
            return (_norms(self._coupling @ u, be) + slack * _norms(u, be)) * cap

        def size(u: Any) -> np.ndarray:
            return _norms((theta + slack) ** 0.5 / (theta + lam) * u, be) + leaks(u)

        bounds, leaked = [size(u)], np.zeros_like(cap)
        while len(bounds) < len(u):
            leaked = leaked + leaks(u)
            bounds.append(size((1.0 - a) * u) + leaked)
            u = a * u
        return np.stack(bounds)

    def _ritz_coordinates(self, R: Any) -> Any:
        """VᵀR for R (T, n, p)."""
        xp = self.backend.xp
        parts = [xp.tensordot(Q, R, ([1], [1])) for Q in self._basis_chunks(self.k)]
        inside = xp.concatenate(parts) if parts else xp.zeros((0, R.shape[0], R.shape[2]))
        return xp.moveaxis(xp.tensordot(self._bases[self.k].T, inside, 1), 0, 1)

    def _warn(self, asked: _Asked) -> None:
        """RuntimeWarning where the run ended before its tolerance was met."""
        bound = self._certified(self.lam_min)[0]
        if self._within(asked) and (bound <= self._goal).all():
            self._good = 0.0
            return
        if self._automatic and not self._done and self._ended:
            raise Unsuitable
        self._good = self._good_from(asked)
        ended = (
            f"the tolerance is below rounding{' of K to float32' if self._rounded else ''}"
            if self._done or not self._ended
            else f"max_rank={self.max_rank} was reached"
        )
        good = f"only for lam >= {self._good:.3g}" if self._good < math.inf else "for no lam"
        warn_caller(
            f"solver='krylov' stopped after {self.k} vectors: {ended}; its answers are to "
            f"tol={self.tol:g} {good}, and at lam={self.lam_min:g} to "
            f"{float((bound * self._unit).max()):.2g}; use a larger tol or max_rank, "
            f"{'another storage, ' if self._rounded else ''}or solver='eigh'",
            RuntimeWarning,
        )

    def _good_from(self, asked: _Asked) -> float:
        """A λ whose certificate meets the tolerance; inf if there is none.

        Not far above the smallest for which it does not, and above all that were asked for
        and whose residuals exceed it (which need not fall as λ grows).
        """
        lam, top = self.lam_min, max(self.lam_min, self._norm) * 1e12
        for one in asked.lams:
            met = asked.schedule is None and self._recursion(one, self.n_steps) <= self._goal
            lam = lam if np.all(met) else max(lam, one)

        def likely(lam: float) -> bool:
            bound = self._recursion(lam, self.n_steps) + self._floor(lam, likely=True)
            return bool((bound <= self._goal).all())

        for attempt in range(12):
            low, high = math.log(lam) + 0.01 * 2.0**attempt, math.log(top)
            if low >= high or not likely(top):
                break
            for _ in range(40):
                middle = 0.5 * (low + high)
                low, high = (low, middle) if likely(math.exp(middle)) else (middle, high)
            lam = float(f"{1.005 * math.exp(high):.3g}")  # as it is printed
            if (self._certified(lam)[0] <= self._goal).all():
                return lam
        return math.inf

    # ------------------------------------------------------------ the protocol
    def _rows_of(self, coordinates: Any) -> Any:
        """V @ coordinates in float64; (..., k, p) may be from before the run went on."""
        xp = self.backend.xp
        lead, (k, p) = coordinates.shape[:-2], coordinates.shape[-2:]
        S = math.prod(lead)
        flat = xp.moveaxis(coordinates.reshape(S, k, p), 0, 1).reshape(k, S * p)
        flat = self._bases[k] @ flat.astype("float64")
        product = xp.zeros((len(self.target), S * p))
        at = 0
        for Q in self._basis_chunks(k):
            product += Q.T @ flat[at : at + len(Q)]
            at += len(Q)
        n = len(product)
        return xp.moveaxis(product.reshape(n, S, p), 1, 0).reshape(*lead, n, p)

    @property
    def V(self) -> Any:
        """Ritz vectors, (n, k); formed when it is asked for."""
        with self._lock:
            return self._rows_of(self.backend.xp.eye(self.k)).astype(self.dtype)

    def in_rows(self, coordinates: Any) -> Any:
        """V @ coordinates for coordinates (..., k, p), one product for all."""
        return self._rows_of(coordinates).astype(self.dtype)

    def project(self, X_new: Any) -> Any:
        """Basis functions at new points, (m, k): κ(x, X) W^½ V, centred with an intercept.

        Parameters
        ----------
        X_new : array_like of shape (m, d)
            With a precomputed kernel K(X_new, X), (m, n).
        """
        X_new = self.check_new(X_new)
        V = V_kept = self.V
        if self._root is not None:
            V = V * self._root[:, None]
        if self.X is None:
            P = (X_new if self.rows is None else X_new[:, self.rows]) @ V
        else:
            V = self.backend.xp.ascontiguousarray(V)
            P = native_matmul(self.backend, X_new, self.kept(self.X), V, self.kernel)
        return P if self._offset is None else P - V_kept.T @ self._offset.astype(self.dtype)

    def constant(self, coordinates: Any) -> Any:
        """What a prediction adds to κ(x, X) @ dual: ȳ − r·c, (…, p)."""
        mean = self.y_mean.astype(self.dtype)
        if self._offset is None:
            shape = (*coordinates.shape[:-2], coordinates.shape[-1])
            return self.backend.xp.zeros(shape, self.dtype) + mean
        r = self.backend.xp.tensordot(self._offset, self._rows_of(coordinates), ([0], [-2]))
        return mean - r.astype(self.dtype)

    def _filters_for(self, lam: Any, n_steps: int, lam_steps: Any = None) -> Filters:
        """Of a run that is continued for a smaller λ, or more steps."""
        with self._lock:
            self._ensure(lam, check_n_steps(n_steps), lam_steps)
            return self.spectral

    def limit(self, lam: float, alpha: float) -> Any:
        """As for a full spectrum: one step with λ/α in the place of λ."""
        with self._lock:
            if alpha > 0.0:  # λ is requested with it: continued, and warned, once
                self._ensure([lam, lam / alpha], self.n_steps)
            return self.spectral.limit(lam, alpha)

    def warn_below_rounding(self, lam: Any) -> None:
        """Nothing: the certificate has rounding in it, and warns."""


def _norms(R: Any, be: Any) -> np.ndarray:
    """‖R_sj‖, (T, p), for R (T, n, p)."""
    return be.to_numpy(be.xp.sqrt(be.xp.square(R).sum(1)))


def krylov_bytes(
    be: Any, n: int, d: int, p: int, dtype: Any, rank: int, storage: str, n_steps: int = 6
) -> int:
    """Peak bytes of a run of ``rank`` vectors: half of K, the basis, and blocks of work."""
    itemsize = np.dtype(dtype).itemsize
    rank = min(rank, n)
    basis = -(-rank // _CHUNK) * _CHUNK * n * 8
    certified = max(_CERTIFIED * p, n_steps)
    blocks = 8 * n * (12 * p + 10 * certified + 16)  # of the process; of the certificate
    matrix = be.half_bytes(n, storage) if storage != "none" else 0
    rows = n * d * (2 * itemsize + 16)  # as given and in float64, and packed
    return matrix + basis + blocks + rows + 4 * rank * rank * 8


def fitting_rank(
    budget: int,
    most: int,
    be: Any,
    n: int,
    d: int,
    p: int,
    dtype: Any,
    storage: str,
    n_steps: int,
) -> int:
    """The largest rank up to ``most`` whose :func:`krylov_bytes` fit, but at least a chunk."""
    low, high = min(_CHUNK, most), most
    while low < high:
        middle = (low + high + 1) // 2
        if krylov_bytes(be, n, d, p, dtype, middle, storage, n_steps) <= budget:
            low = middle
        else:
            high = middle - 1
    return low


def _default_tol(dtype: Any) -> float:
    return 1e-3 if dtype == np.float32 else 1e-8


def krylov_rank(n: int, lam: float, tol: float) -> int:
    """Vectors that a run is expected to take, which depends on the data.

    22 (n/λ)^¼ for eight digits, and in proportion for others: a fit to smooth kernels of a few
    columns, in blocks of four vectors.
    """
    digits = -math.log10(tol) / 8.0
    return max(1, min(n, math.ceil(22.0 * max(n**0.25 / lam**0.25, 1.0) * max(digits, 0.25))))
