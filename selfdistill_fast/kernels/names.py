"""Kernels from a name, a description, or whatever a caller gives."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import numpy as np

from selfdistill_fast.kernels.base import Kernel
from selfdistill_fast.kernels.combined import Product, Sum
from selfdistill_fast.kernels.given import Custom, Precomputed
from selfdistill_fast.kernels.named import NTK, RBF, Laplacian, Linear, Matern, Polynomial

__all__ = ["KERNELS", "as_kernel", "kernel_from_dict", "kernel_from_name"]

#: Every kernel that has a name, by its name.
KERNELS: dict[str, type[Kernel]] = {
    cls.name: cls for cls in (RBF, Laplacian, Matern, Polynomial, Linear, NTK, Precomputed)
}

_ALIASES = {"poly": "polynomial"}


def kernel_from_dict(spec: dict[str, Any]) -> Kernel:
    """Rebuild a kernel from :meth:`Kernel.to_dict`; ValueError for anything else."""
    params = {k: math.inf if v == "inf" else v for k, v in spec.items()}
    if params.get("name") in ("sum", "product"):
        return _combined_from_dict(spec)
    cls = KERNELS.get(params.pop("name", None))  # type: ignore[arg-type]
    if cls is None or set(params) != {f.name for f in fields(cls)}:
        raise ValueError(f"not the description of a kernel: {spec!r}")
    return cls(**params)


def _combined_from_dict(spec: dict[str, Any]) -> Kernel:
    """A sum or product from its ``to_dict``; ValueError for anything else."""
    try:
        parts = tuple(kernel_from_dict(part) for part in spec["parts"])
        if spec["name"] == "sum" and set(spec) == {"name", "parts", "weights"}:
            return Sum(parts, tuple(float(weight) for weight in spec["weights"]))
        if spec["name"] == "product" and set(spec) == {"name", "parts"} and parts:
            return Product(parts)
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"not the description of a kernel: {spec!r}") from error
    raise ValueError(f"not the description of a kernel: {spec!r}")


def kernel_from_name(
    kernel: Any,
    n_features: int,
    *,
    gamma: float | None = None,
    degree: int = 3,
    coef0: float = 1,
    length_scale: float = 1.0,
    nu: float = 1.5,
) -> Kernel:
    """The kernel described by scikit-learn's string name and parameters.

    Parameters
    ----------
    kernel : str, Kernel or callable
        "rbf", "laplacian", "matern", "poly"/"polynomial", "linear", "ntk" (one hidden
        layer), "precomputed"; an instance and a callable are passed through.
    n_features : int
        ``gamma=None`` means 1 / n_features.
    """
    if not isinstance(kernel, str):
        return as_kernel(kernel)
    name = _ALIASES.get(kernel, kernel)
    if name not in KERNELS:
        raise ValueError(
            f"unknown kernel {kernel!r}; known names: {', '.join(sorted([*KERNELS, *_ALIASES]))}; "
            "or pass a kernel object such as RBF(0.1), or a function of (X, Z)"
        )
    given = {
        "gamma": 1.0 / n_features if gamma is None else gamma,
        "degree": degree,
        "coef0": coef0,
        "length_scale": length_scale,
        "nu": nu,
        "depth": 1,
    }
    cls = KERNELS[name]
    return cls(**{f.name: given[f.name] for f in fields(cls)})


def as_kernel(kernel: Any, X: Any = None) -> Kernel:
    """``kernel`` as a :class:`Kernel`: an instance, a name, or a callable.

    ``X``: samples, or their number of features, for the γ of "rbf", "laplacian" and "poly".
    """
    if isinstance(kernel, Kernel):
        return kernel
    if isinstance(kernel, str):
        shape = (0, X) if isinstance(X, int) else getattr(X, "shape", None)
        if shape is None and isinstance(X, (list, tuple)):
            shape = np.shape(X)
        if shape is None or len(shape) != 2 or not shape[1]:
            if kernel not in ("precomputed", "linear", "ntk", "matern"):
                raise TypeError(
                    f"kernel={kernel!r} means γ = 1/n_features, and X has no such number here; "
                    "write the kernel itself, such as RBF(0.1)"
                )
            shape = (0, 1)
        return kernel_from_name(kernel, int(shape[1]))
    if isinstance(kernel, type) and issubclass(kernel, Kernel):
        raise TypeError(f"kernel is the class {kernel.__name__}; write {kernel.__name__}(...)")
    if callable(kernel):
        return Custom(kernel)
    raise TypeError(
        "kernel must be a kernel object such as RBF(0.1), a function of (X, Z), or a name such as "
        f"'rbf'; got {kernel!r}"
    )
