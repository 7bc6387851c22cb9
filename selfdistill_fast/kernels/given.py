"""Kernels of which the caller supplies the matrix, a function of samples, or a feature map."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from selfdistill_fast.kernels.base import Kernel
from selfdistill_fast.kernels.named import Linear

__all__ = ["Custom", "Features", "OfSamples", "Precomputed", "has_rows"]

_NO_CODE = (
    "a callable kernel cannot be saved: code is not data. Use a built-in kernel, or "
    "kernel='precomputed' and keep the function yourself"
)


@dataclass(frozen=True)
class Features(Linear):
    """Linear kernel κ(x, z) = ⟨φ(x), φ(z)⟩ of a feature map φ with finitely many features.

    Such as random Fourier features, the embeddings of a network, or a scikit-learn transformer.
    Every solver serves it; ``solver="primal"`` never forms K, so its cost grows linearly with
    the number of rows.

    Parameters
    ----------
    function : callable, or object with a method ``transform``
        ``function(X)`` with n samples returns their features, (n, D). X is whatever
        ``spectrum`` and ``predict`` are given (images, texts, …), or blocks of rows, where X is
        no array in memory. Each row of the result must depend on the same row of X only; the
        function must not change X; a transformer must have been fitted.

    Examples
    --------
    >>> import numpy as np
    >>> from selfdistill_fast import Features, distill, spectrum
    >>> X = np.linspace(0, 1, 50)[:, None]
    >>> waves = Features(lambda X: np.cos(np.pi * X * np.arange(6)))
    >>> s = spectrum(X, np.cos(2 * np.pi * X[:, 0]), waves, solver="primal")
    >>> distill(s, lam=1e-3, alpha=0.5, n_steps=2).coef().round(2) + 0.0
    array([0., 0., 1., 0., 0., 0.])
    """

    function: Any
    name: ClassVar[str] = "features"

    def __post_init__(self) -> None:
        if not (callable(self.function) or hasattr(self.function, "transform")):
            raise TypeError(
                f"Features: function must be callable, or have a method transform; got "
                f"{self.function!r}"
            )

    @property
    def maps_rows(self) -> bool:
        return True

    @property
    def of_mapped_rows(self) -> Linear:
        return Linear()

    def rows(self, X: Any, name: str = "X") -> Any:
        """φ(X), (n, D)."""
        features = getattr(self.function, "transform", self.function)(X)
        shape, n = getattr(features, "shape", None), len(X) if hasattr(X, "__len__") else None
        if shape is None or len(shape) != 2 or (n is not None and shape[0] != n):
            raise ValueError(
                f"Features: the function must return an array (n, D) for n samples; it returned "
                f"{type(features).__name__ if shape is None else f'shape {tuple(shape)}'} for "
                f"{name} with {n} samples"
            )
        return features

    def to_dict(self) -> dict[str, Any]:
        raise TypeError(
            "a feature map cannot be saved: code is not data. Use Linear() on the features, and "
            "keep the function yourself"
        )


@dataclass(frozen=True)
class Precomputed(Kernel):
    """The caller computes K: pass K(X, X_train) wherever rows X are expected."""

    name: ClassVar[str] = "precomputed"

    @property
    def definite(self) -> bool:
        return False


@dataclass(frozen=True, eq=False)
class OfSamples(Precomputed):
    """A function of (X, Z) for samples that are no rows of numbers: strings, graphs, ….

    The caller passes samples, and :meth:`rows` makes K(X, samples) of them.
    """

    function: Callable[[Any, Any], Any]
    samples: Any

    @property
    def maps_rows(self) -> bool:
        return True

    def rows(self, X: Any, name: str = "X") -> Any:
        """K(X, samples), (m, n)."""
        if isinstance(X, str):
            raise TypeError(f"{name} is one string, {X[:20]!r}; pass a list of samples")
        K = self.function(X, self.samples)
        if np.shape(K) != (len(X), len(self.samples)):
            raise ValueError(
                f"the kernel function returned shape {np.shape(K)} for {len(X)} and "
                f"{len(self.samples)} samples; it must return {(len(X), len(self.samples))}"
            )
        return np.asarray(K)

    def to_dict(self) -> dict[str, Any]:
        raise TypeError(_NO_CODE)

    def __repr__(self) -> str:
        return f"Custom(function={self.function!r})"


@dataclass(frozen=True)
class Custom(Kernel):
    """A kernel given as a function.

    Parameters
    ----------
    function : callable
        ``function(X, Z)`` with X (n, d) and Z (m, d) returns K of shape (n, m).
        It must be symmetric; ``function(X, X)`` is checked before it is factorised.
    """

    function: Callable[[Any, Any], Any]
    name: ClassVar[str] = "custom"

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise TypeError(f"Custom: function must be callable, got {self.function!r}")

    @property
    def definite(self) -> bool:
        return False

    def to_dict(self) -> dict[str, Any]:
        raise TypeError(_NO_CODE)


def has_rows(X: Any) -> bool:
    """Whether samples are rows of numbers, and not strings, graphs or other objects."""
    if hasattr(X, "dtype") or not isinstance(X, (list, tuple)):
        return getattr(getattr(X, "dtype", None), "kind", "f") not in "OUS"
    try:
        return np.asarray(X).dtype.kind not in "OUS"
    except (TypeError, ValueError, RuntimeError):  # of different lengths, or tensors
        return hasattr(X[0], "detach")
