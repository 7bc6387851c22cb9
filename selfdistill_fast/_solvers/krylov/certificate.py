"""The certificate of a run: bounds of the error of every pure step, rounding included.

It uses residuals recomputed with products with K; see the head of the package, bounds.py and
docs/certificate.md.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from selfdistill_fast._gram import native_diagonal, native_matmul
from selfdistill_fast._solvers.krylov.bounds import (
    ANY,
    MANY,
    Bound,
    gains,
    gains_by_moments,
    joined,
    magnitudes,
    norms,
    propagated,
    sum_rounding,
)
from selfdistill_fast._solvers.krylov.lanczos import Lanczos
from selfdistill_fast._solvers.krylov.memory import CERTIFIED
from selfdistill_fast._solvers.krylov.operator import UNIT
from selfdistill_fast._solvers.krylov.targets import Targets
from selfdistill_fast._solvers.penalties import Penalties
from selfdistill_fast._solvers.spectral import Filters
from selfdistill_fast._validation import largest

__all__ = ["Certificate", "Requested"]


class Requested(NamedTuple):
    """λ values, or a schedule of them, for which the tolerance must be met."""

    lams: list[float]
    schedule: Any
    lam_min: float  #: the smallest λ requested so far


class Certificate:
    """Bounds for the current basis of a run, for ``n_steps`` steps, by λ."""

    def __init__(
        self, run: Lanczos, targets: Targets, filters: Filters, n_steps: int, total_weight: float
    ) -> None:
        self.K, self.run, self.targets, self.n_steps = run.K, run, targets, n_steps
        self.backend, self.p = run.backend, targets.t.shape[1]
        self._windows, self._total_weight = filters.windows, total_weight
        self._d, self._z, self._coupling = run.d, run.z, run.coupling
        self._known: dict[float, tuple[np.ndarray, np.ndarray, Bound]] = {}
        self._met: set[float] = set()  # λ values that are within the tolerance

    def within(self, requested: Requested) -> bool:
        """Whether every step is within the tolerance for all requested λ values."""
        goal = self.targets.goal
        if requested.schedule is not None:
            bound = self.recursion_of_schedule(requested.schedule)
            bound += self.floor(min(requested.lams), requested.lam_min)[: len(bound)]
            return bool((bound <= goal).all())
        for lam in requested.lams:
            if lam in self._met:
                continue
            bound = self.recursion(lam, self.n_steps) + self.floor(lam, requested.lam_min)
            if not (bound <= goal).all():
                bound = self.certified(lam)[0]  # sharper: without the triangle inequality
                if not (bound <= goal).all():
                    return False
            self._met.add(lam)
        return True

    def excess(self, requested: Requested, room: Any) -> float:
        """The largest factor by which the residuals of exact arithmetic exceed ``room`` (T, p)."""
        room = np.maximum(np.broadcast_to(room, (self.n_steps, self.p)), 1e-300)
        bounds = [self.recursion(lam, self.n_steps) for lam in {requested.lam_min, *requested.lams}]
        if requested.schedule is not None:
            bounds.append(self.recursion_of_schedule(requested.schedule))
        return max(float(np.max(b / room[: len(b)], initial=0.0)) for b in bounds)

    def good_from(self, requested: Requested) -> float:
        """A λ whose certificate meets the tolerance; inf if there is none.

        It is close to the smallest such λ, and above all requested λ values whose residuals
        exceed the tolerance (residuals need not fall as λ grows).
        """
        goal = self.targets.goal
        lam, top = requested.lam_min, max(requested.lam_min, self.run.norm) * 1e12
        for one in requested.lams:
            met = requested.schedule is None and self.recursion(one, self.n_steps) <= goal
            lam = lam if np.all(met) else max(lam, one)

        def likely(lam: float) -> bool:
            bound = self.recursion(lam, self.n_steps) + self.floor(
                lam, requested.lam_min, likely=True
            )
            return bool((bound <= goal).all())

        for attempt in range(12):
            low, high = math.log(lam) + 0.01 * 2.0**attempt, math.log(top)
            if low >= high or not likely(top):
                break
            for _ in range(40):
                middle = 0.5 * (low + high)
                low, high = (low, middle) if likely(math.exp(middle)) else (middle, high)
            lam = float(f"{1.005 * math.exp(high):.3g}")  # as it is printed
            if (self.certified(lam)[0] <= goal).all():
                return lam
        return math.inf

    def certified(self, lam: float) -> tuple[np.ndarray, np.ndarray, Bound]:
        """The certificate (T, p), its share of rounding (T, p), and the certificate's parts."""
        if lam not in self._known:
            whole, floor = self._explicit(lam)
            sizes = self.K.feature_norm, self.K.largest_magnitude**0.5
            self._known[lam] = whole.at(*sizes), floor.at(*sizes), whole
        return self._known[lam]

    def floor(self, lam: float, lam_min: float, *, likely: bool = False) -> np.ndarray:
        """Rounding in the certificate at λ, (T, p), from its value at a λ where it is known.

        That λ is ``lam_min`` if there is no other. Rounding falls as λ grows, since ‖c_s‖ and the
        gains do, and grows at most like λ^(−3/2) towards smaller λ. ``likely``: an estimate from
        ‖c₁‖ and the gain instead.
        """
        if not self._known:
            self.certified(lam_min)
        below = [known for known in self._known if known <= lam]
        known = max(below) if below else min(self._known)
        floor = self._known[known][1]
        if not below:
            return floor * math.exp(min(1.5 * (math.log(known) - math.log(lam)), 600.0))
        if not likely:
            return floor
        share = self._length(lam) / self._length(known)
        return self.targets.mean_rounding + (floor - self.targets.mean_rounding) * share

    def _length(self, lam: float) -> np.ndarray:
        """‖c₁‖/√λ, (p,)."""
        c = self._z / (self._d.astype("float64")[:, None] + lam)
        return np.maximum(norms(c[None], self.backend)[0], 1e-300) / lam**0.5

    def recursion(self, lam: float, n_steps: int) -> np.ndarray:
        """The certificate (T, p) from residuals of exact arithmetic, in the targets' units."""
        filters = self.backend.pure_filters(self._d.astype("float64"), np.array([lam]), n_steps)[0]
        bound = propagated(gains(lam, n_steps)[:, None, None] * self._exact_sizes(filters))
        return bound * self.K.feature_norm

    def recursion_of_schedule(self, lam_steps: np.ndarray) -> np.ndarray:
        """As :meth:`recursion`, with one λ for each step: the worst of the chains s..τ.

        The later effect of a residual is at most its immediate effect, max √d/(d + λ_τ).
        """
        T = len(lam_steps)
        schedule = Penalties(lam_steps, T, scheduled=True)
        filters = self._windows(schedule).astype("float64")  # [τ, s]: c_τ from step s on
        sizes = np.stack([self._exact_sizes(filters[t]) for t in range(T)])
        lost = np.stack([sizes[: t + 1].sum(0).max(0) for t in range(T)])
        return 0.5 / np.sqrt(lam_steps)[:, None] * lost * self.K.feature_norm

    def _exact_sizes(self, filters: Any) -> np.ndarray:
        """‖r_s‖ of exact arithmetic, (T, p), for pure filters (T, k)."""
        return norms(self._coupling @ (filters[..., None] * self._z), self.backend)

    def feature_norms(self, X: Any) -> tuple[np.ndarray, np.ndarray]:
        """‖φ(x) − φ̄‖ (φ̄ = 0 without an intercept) and √κ(x, x) at rows X, (m, 1) each."""
        be, xp = self.backend, self.backend.xp
        diagonal = native_diagonal(be, X, self.K.kernel)
        size = magnitudes(self.K.kernel, diagonal, xp.square(X.astype("float64")).sum(1))
        root = be.to_numpy(xp.sqrt(xp.maximum(size, 0.0)))[:, None]
        feature = be.to_numpy(xp.sqrt(xp.maximum(diagonal, 0.0)))[:, None]
        if self.K.q is None:
            return feature, root
        weights = xp.square(self.K.q.astype("float64"))[:, None]
        mean = native_matmul(be, X, self.K.X, weights, self.K.kernel)
        square = np.square(feature) - 2.0 * be.to_numpy(mean) + self.K.mean_feature**2
        rounding = 4.0 * (self.K.entry + sum_rounding(self.K.n) * UNIT)
        square = np.maximum(square, 0.0) + rounding * np.square(root + self.K.mean_root)
        return np.minimum(feature + self.K.mean_feature, np.sqrt(square)), root

    def _explicit(self, lam: float) -> tuple[Bound, Bound]:
        """The certificate, and the rounding in it, from residuals with K; few targets at a time."""
        n_steps = self.n_steps
        filters = self.backend.pure_filters(self._d.astype("float64"), np.array([lam]), n_steps)[0]
        count = max(1, CERTIFIED * self.p // n_steps)
        parts = [slice(at, at + count) for at in range(0, self.p, count)]
        with np.errstate(over="ignore"):
            found = [self._explicit_of(part, lam, filters) for part in parts]
        whole, floor = zip(*found, strict=True)
        return joined(list(whole)), joined(list(floor))

    def _explicit_of(self, targets: slice, lam: float, filters: Any) -> tuple[Bound, Bound]:
        """The certificate of some targets, and the rounding in it."""
        xp, be = self.backend.xp, self.backend
        z = self._z[:, targets]
        C = self.run.rows_of(filters[..., None] * z)  # (T, n, p)
        T, n, p = C.shape
        dual = xp.ascontiguousarray(xp.moveaxis(C, 1, 0).reshape(n, T * p))
        values = self.K.product(dual, exactly=True)
        lost = self.K.lost_by_single(dual, values).reshape(T, p)
        KC = xp.moveaxis(self.K.centred(values).reshape(n, T, p), 1, 0)
        R = xp.empty_like(C)
        t = self.targets.t[:, targets]
        seen = np.zeros((T, p))  # the excess of the residuals over those of exact arithmetic
        for s in range(T):
            R[s] = self.K.centred(t - KC[s] - lam * C[s])
            t = t - lam * C[s]
            known = self.run.next.T @ (self._coupling @ (filters[s][:, None] * z))
            seen[s] = norms((R[s] + known)[None], be)[0]
        sizes = norms(R, be)
        # the part of R in the basis, in Ritz coordinates, and the rest
        inside = self.run.ritz_coordinates(R)
        R = R - self.run.rows_of(inside)
        held = self._propagated_inside(inside, lam)
        rest = norms(R, be)
        flat = xp.ascontiguousarray(xp.moveaxis(R, 1, 0).reshape(n, T * p))
        KR = xp.moveaxis(self.K.apply(flat).reshape(n, T, p), 1, 0)
        size = np.maximum(rest, 1e-300)
        mean = np.maximum(be.to_numpy((R * KR).sum(1)), 0.0) / size / size + self.K.slack
        root_mean_square = norms(KR, be) / size + self.K.slack
        now, later = gains_by_moments(mean, root_mean_square, lam)
        contraction = self._contraction(lam)
        # for i >= 2 also u² (1 − u)³ u/λ <= (d/λ)² max (1 − u)³ u/λ
        at_most = (27.0 / 256.0 / lam) ** 0.5 * root_mean_square / lam
        much_later = np.minimum(later * contraction, at_most)
        outside = [now, later, *(much_later * contraction ** (i - 2) for i in range(2, T))][:T]
        largest_gains = gains(lam, T)[:, None, None]
        bounds = np.minimum(held + rest * np.stack(outside), largest_gains * sizes)

        noise, rounding = self._rounding(targets, C, KC, seen, lost)
        by = self._gains_of_rounding(lam, T)[:, None, None]
        of_t = 4.0 * (self.K.unit_roundoff + T * UNIT) * norms(self.targets.t[None, :, targets], be)
        size = (
            propagated(by * noise) + by[0] * (of_t + self.targets.dropped[targets]) + rounding.size
        )
        whole = rounding._replace(size=propagated(bounds) + size)
        return whole, rounding._replace(size=propagated(by * seen) + size)

    def _gains_of_rounding(self, lam: float, n_steps: int) -> np.ndarray:
        """As :func:`gains`, for a residual of any direction, using the available bounds of K.

        In the basis, K is known from the Ritz values and the coupling; on the complement it is
        at most its trace there.
        """
        cap = 0.5 / lam**0.5
        if self.K.trace + self.K.slack < lam:
            cap = (self.K.trace + self.K.slack) ** 0.5 / (self.K.trace + self.K.slack + lam)
        theta = self._d.astype("float64")
        inside = 0.0
        if self.run.k:
            leak = float(self.backend.xp.sqrt(((self._coupling / (theta + lam)) ** 2).sum()))
            leak += self.K.slack / (float(theta.min()) + lam)
            inside = float(((theta + self.K.slack) ** 0.5 / (theta + lam)).max()) + cap * leak
        rest = max(self.K.centred_trace - float(theta.sum()), 0.0) + self.K.slack
        largest_now = min(cap, math.hypot(inside, min(cap, rest**0.5 / lam)))
        later = largest_now * self._contraction(lam) ** np.arange(n_steps - 1)
        result = gains(lam, n_steps)
        result[0], result[1:] = largest_now, np.minimum(result[1:], later)
        return result

    def _contraction(self, lam: float) -> float:
        """A bound of ‖A‖."""
        largest_eigenvalue = self.K.trace + self.K.slack
        return largest_eigenvalue / (largest_eigenvalue + lam)

    def _rounding(
        self, targets: slice, C: Any, KC: Any, seen: np.ndarray, lost: np.ndarray
    ) -> tuple[np.ndarray, Bound]:
        """First-order bounds of rounding, for dual coefficients C (T, n, p) and K C.

        The first (T, p) is the rounding of residuals, from the entries of K times C and from the
        sums. The second contains the non-orthogonality of C to q, and the rounding of predictions
        κ(x, X)ᵀc, from the entries, the sums, c, and the constant ȳ − r·c. ``seen`` and ``lost``
        (T, p) are measured errors of the residuals and of the predictions. See
        docs/certificate.md.
        """
        be, xp = self.backend, self.backend.xp
        n, u = C.shape[1], self.K.unit_roundoff
        sums = sum_rounding(n) * UNIT

        def weighted(by: Any) -> tuple[np.ndarray, np.ndarray, float]:
            P = abs(C) * by[:, None]
            return be.to_numpy(P.sum(1)), norms(P, be), float(xp.sqrt(xp.square(by).sum()))

        length = norms(C, be)
        added, squares, all_ = weighted(self.K.magnitude)
        off, off_squares, off_all = weighted(self.K.off)

        noise = 3.0 * sums * all_ * added + 8.0 * UNIT * norms(self.targets.t[None, :, targets], be)
        if self.K.many_rows:  # with so many rows it would show in the residuals
            noise = np.minimum(noise, 2.0 * seen)
        noise = noise + off_all * np.minimum(off, MANY * off_squares)

        point = sums * added
        elsewhere, elsewhere_squares, _ = weighted(self.K.off_elsewhere)
        point += np.minimum(elsewhere, ANY * elsewhere_squares)
        if self.K.single:  # sums within a tile of K are in float32
            if self.K.kernel.pair:
                point += u * np.minimum(sum_rounding(min(n, 192)) * added, 300.0 * squares)
            else:
                point += u * sum_rounding(n) * added
        point = np.minimum(point, 4.0 * lost) + 3.0 * u * np.minimum(added, ANY * squares)
        square = be.to_numpy((C * KC).sum(1))
        point += 3.0 * u * np.sqrt(np.maximum(square, 0.0))
        again = (2.0 * self.run.k**0.5 + 4.0) * UNIT * length  # of c, which is recomputed
        again = again * min(all_, ANY * largest(self.K.magnitude))
        point += again
        if self.K.q is None:
            return noise, Bound(np.zeros_like(point), point, np.zeros_like(point))
        along = abs(be.to_numpy(xp.tensordot(self.K.q.astype("float64"), C, ([0], [1]))))
        shift = abs(be.to_numpy(xp.tensordot(self.K.offset, C, ([0], [1]))))
        fixed = self.K.mean_root * (3.0 * sums * added + again) + 3.0 * u * shift
        fixed += off_all / self._total_weight**0.5 * off
        fixed += self.targets.mean_rounding[targets]
        return noise, Bound((along + sums * length) * self.K.mean_length, point, fixed)

    def _propagated_inside(self, u: Any, lam: float) -> np.ndarray:
        """The effect of residuals V u i = 0, 1, … steps later, (T, T, p), for u (T, k, p).

        ‖K^½(K + λ)⁻¹ h(K) V u‖ with h = 1 for i = 0 and λ(K + λ)⁻¹ A^(i−1) after that. Each
        factor commutes with V up to a coupling term:
        (K + λ)⁻¹V u = V(Θ + λ)⁻¹u − (K + λ)⁻¹ Q₊BEᵀS (Θ + λ)⁻¹u.
        """
        be = self.backend
        theta = self._d.astype("float64")[:, None]
        a, cap, slack = theta / (theta + lam), 0.5 / lam**0.5, self.K.slack

        def leaks(u: Any) -> np.ndarray:
            u = u / (theta + lam)
            return (norms(self._coupling @ u, be) + slack * norms(u, be)) * cap

        def size(u: Any) -> np.ndarray:
            return norms((theta + slack) ** 0.5 / (theta + lam) * u, be) + leaks(u)

        bounds, leaked = [size(u)], np.zeros_like(cap)
        while len(bounds) < len(u):
            leaked = leaked + leaks(u)
            bounds.append(size((1.0 - a) * u) + leaked)
            u = a * u
        return np.stack(bounds)
