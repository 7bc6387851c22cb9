"""The three forms of λ: one value, a batch of values, a schedule over the steps of a chain.

Without a schedule, the pure chain of length τ is the same wherever it starts, and arrays hold it
at position τ − 1. With a schedule it also depends on its last step. Arrays then have two step
axes: the last step j and the first step s (``window``), or j and the length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from selfdistill_fast._validation import check_lam, check_lam_steps, check_n_steps

__all__ = ["Penalties"]


@dataclass(frozen=True, eq=False)
class Penalties:
    """λ of the steps of a chain; made by :meth:`of`.

    Attributes
    ----------
    values : float64 array: 0-d for one λ, (L,) for a batch, (T,) for a schedule
    n_steps : int T
    scheduled : bool
    """

    values: np.ndarray
    n_steps: int
    scheduled: bool = False

    @classmethod
    def of(cls, lam: Any, n_steps: Any, lam_steps: Any = None, *, batch: bool = True) -> Penalties:
        """Check the arguments of a public function; TypeError or ValueError if they are invalid.

        ``lam``: one λ, or with ``batch`` an array (L,); ignored if there is a schedule.
        """
        n_steps = check_n_steps(n_steps)
        if lam_steps is not None:
            return cls(check_lam_steps(lam_steps, n_steps), n_steps, scheduled=True)
        return cls(check_lam(lam, batch=batch), n_steps)

    @property
    def lam(self) -> float | None:
        """λ of every step; None for a schedule."""
        return None if self.scheduled else float(self.values)

    @property
    def lam_steps(self) -> np.ndarray | None:
        """λ of each step of a schedule, else None."""
        return self.values if self.scheduled else None

    @property
    def smallest(self) -> float:
        """The smallest λ."""
        return float(self.values.min())

    @property
    def is_batch(self) -> bool:
        """Whether arrays have a leading axis of λ values."""
        return not self.scheduled and self.values.ndim == 1

    @property
    def count(self) -> int:
        """Number of pure steps' predictions: λ values times steps, or the square of the steps."""
        return self.n_steps * max(1, self.values.size)

    @property
    def starts(self) -> range:
        """First steps of the pure chains that differ."""
        return range(self.n_steps if self.scheduled else 1)

    def each(self) -> list[Penalties]:
        """The members of a batch, or this object alone."""
        return [Penalties(lam, self.n_steps) for lam in self.values] if self.is_batch else [self]

    def at(self, step: int) -> float:
        """λ of a step, counted from 0."""
        return float(self.values[step] if self.scheduled else self.values)

    def check_range(self, dtype: Any) -> None:
        """ValueError where λ or 1/λ is not a normal number of ``dtype``."""
        check_lam(self.values, batch=True, dtype=dtype)

    def window(self, a: Any, first: int, last: int) -> Any:
        """What ``a`` holds for the steps first..last."""
        return a[last, first] if self.scheduled else a[last - first]

    def chain(self, a: Any, first: int) -> Any:
        """What ``a`` holds for the steps first..last, for last = first, …, T − 1."""
        return a[first:, first] if self.scheduled else a

    def ending(self, a: Any, last: int) -> Any:
        """What ``a`` holds for the last 1, 2, … of the steps up to ``last``."""
        return a[last] if self.scheduled else a

    def by_last_step(self, chains: list[Any], xp: Any) -> Any:
        """Arrays of the chains from each of ``starts`` on as one, by last step and length."""
        if not self.scheduled:
            return chains[0]
        columns = xp.zeros((len(chains), *chains[0].shape), chains[0].dtype)
        for start, chain in enumerate(chains):
            for i in range(len(chain)):
                columns[start + i, i] = chain[i]
        return columns
