"""What a solver states about itself (for planning) and about functions of K (for chains).

A solver without eigenvalues (``filters``) implements the functions of K itself.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

from selfdistill_fast._solvers.penalties import Penalties
from selfdistill_fast._solvers.problem import NoOptions, Problem, Rates, Work

if TYPE_CHECKING:
    from selfdistill_fast._solvers.spectral import Filters

__all__ = ["Solver"]


class Solver:
    """The part of a spectrum that depends on the solver alone."""

    #: as in ``spectrum(solver=name)``
    name: ClassVar[str]
    #: frozen dataclass of the options, with their defaults and checks
    Options: ClassVar[type] = NoOptions
    #: largest number of steps with leave-one-out; 0 if there is none
    max_loo_steps: ClassVar[float] = math.inf
    #: whether ``solver="auto"`` may choose it
    exact: ClassVar[bool] = True
    #: whether it serves only the single λ that it was made for
    one_lam: ClassVar[bool] = False
    #: whether rows need not be in memory; see sources
    streams: ClassVar[bool] = False
    #: whether its cost depends on the data, and is only an estimate
    guessed: ClassVar[bool] = False
    #: how to reduce its memory, for messages
    memory_hint: ClassVar[str] = "fewer training rows"
    #: after ``Unsuitable``, the cheapest of these solvers that fits replaces it, or else the last
    #: one; if that is the solver itself, it is used as it is
    successors: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def serves(cls, problem: Problem) -> str | None:
        """Why ``solver="auto"`` must not choose it for this problem, or None."""
        return None

    @classmethod
    def cost(cls, problem: Problem, rates: Rates) -> Work:
        """The cost of solving a problem."""
        raise NotImplementedError

    @classmethod
    def check_leave_one_out(cls, n_steps: int = 1) -> None:
        """ValueError if it has no leave-one-out for this many steps; names the alternatives."""
        if cls.max_loo_steps == 0:
            raise ValueError(
                f"leave-one-out needs diagonals of functions of K, and solver={cls.name!r} has "
                "only their products with y: use solver='eigh' (every lam), 'cholesky' (one lam) "
                "or 'nystrom' (a landmark model), or choose on a validation set X_val, y_val"
            )
        if n_steps > cls.max_loo_steps:
            raise ValueError(
                f"solver={cls.name!r} has leave-one-out for at most {cls.max_loo_steps} steps, "
                f"{n_steps} were requested; use solver='eigh', or a validation set X_val, y_val"
            )

    filters: Filters | None = None

    @property
    def spectral(self) -> Filters:
        """The filters; AttributeError where the solver has no eigenvalues."""
        if self.filters is None:
            raise AttributeError(f"solver={self.name!r} has no eigenvalues; use solver='eigh'")
        return self.filters

    @property
    def d(self) -> Any:
        """Eigenvalues, (k,)."""
        return self.spectral.d

    @property
    def z(self) -> Any:
        """Rotated targets, (k, p)."""
        return self.spectral.z

    def _filters_for(self, penalties: Penalties) -> Filters:
        """The filters that serve these λ values and steps."""
        return self.spectral

    def _steps(self, penalties: Penalties) -> Any:
        """:meth:`pure_steps` of checked λ values."""
        return self._filters_for(penalties).steps(penalties)

    def _pure(self, penalties: Penalties) -> Any:
        """:meth:`pure_filters` of checked λ values."""
        return self._filters_for(penalties).pure(penalties)

    def _residual(self, penalties: Penalties) -> Any:
        """:meth:`residual_filters` of checked λ values."""
        return self._filters_for(penalties).residual(penalties)

    def _smoother(self, penalties: Penalties) -> Any:
        """:meth:`smoother_filters` of checked λ values."""
        return self._filters_for(penalties).smoother(penalties)

    def pure_steps(self, lam: Any, n_steps: int, lam_steps: Any = None) -> Any:
        """Coordinates of the pure steps.

        Parameters
        ----------
        lam : float, or array_like of shape (L,)
            The ridge λ. A 1-D array is a batch of λ values, never a schedule.
        n_steps : int T
        lam_steps : array of shape (T,), optional
            A λ for each step; ``lam`` is not used then.

        Returns
        -------
        ndarray of shape (T, k, p), or (L, T, k, p) for a batch; for a schedule
        (T, T, k, p), where [τ − 1, i − 1] is the pure chain of the last i of the steps 1..τ
        """
        return self._steps(Penalties.of(lam, n_steps, lam_steps))

    def pure_filters(self, lam: Any, n_steps: int, lam_steps: Any = None) -> Any:
        """Filters a^(τ−1)/(d + λ) of the pure steps; d times them is diag A^τ.

        Parameters and shapes as :meth:`pure_steps`, without the axis p.
        """
        return self._pure(Penalties.of(lam, n_steps, lam_steps))

    def limit(self, lam: float, alpha: float) -> Any:
        """Coordinates α/(αd + λ) z of infinitely many steps, eq. (17), (k, p).

        Raises
        ------
        NoLimit
            The limit does not exist.
        ValueError
            The coordinates overflow.
        """
        return self.spectral.limit(lam, alpha)

    def shrinkage(self, C: Any, lam: Any, lam_steps: Any) -> Any:
        """diag B of steps that mix the pure steps with weights C; None without eigenvalues."""
        if self.filters is None:
            return None
        penalties = Penalties.of(lam, len(C), lam_steps)
        return self._filters_for(penalties).shrinkage(C, penalties)

    # Functions of K for leave_out.py, each stored as its coordinates along a last axis.
    def residual_filters(self, lam: Any, n_steps: int, lam_steps: Any = None) -> Any:
        """(I − A) A^(τ−1), τ = 1..T, without cancellation.

        Parameters and shapes as :meth:`pure_filters`, except that a schedule gives
        [j, s] = (I − A_j) A_(j−1) … A_s, zero for s > j.
        """
        return self._residual(Penalties.of(lam, n_steps, lam_steps))

    def smoother_filters(self, lam: Any, n_steps: int, lam_steps: Any = None) -> Any:
        """A^τ, τ = 1..T, or A_j … A_s, on the complement of q, without cancellation."""
        return self._smoother(Penalties.of(lam, n_steps, lam_steps))
