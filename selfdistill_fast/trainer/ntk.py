"""The kernel of a network at its weights, so that the exact engine runs on it.

    K(x, z) = (1/p) Σ_k ⟨∂f_k(x)/∂θ, ∂f_k(z)/∂θ⟩

is the empirical neural tangent kernel. A wide network trained from θ₀ with the penalty
(λ/2) ‖θ − θ₀‖² changes so little that it equals the kernel ridge regression with this K.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.func import functional_call, jacrev, vmap

from selfdistill_fast.trainer.data import Source, as_source

__all__ = ["empirical_ntk_gram"]

_CHUNK = 64  # rows whose derivatives are taken together: bounds the activations


def empirical_ntk_gram(
    model: nn.Module,
    X: Any,
    Z: Any = None,
    *,
    outputs: str = "mean",
    max_memory: int = 2**31,
) -> np.ndarray:
    r"""Gram matrix of the empirical neural tangent kernel of a network.

    Parameters
    ----------
    model : torch.nn.Module
        (b, ...) → (b,) or (b, p). Derivatives are taken at its current weights, with respect to
        those that require gradients, in evaluation mode.
    X : array, tensor, TensorDataset, ImageSet or Dataset of n inputs
    Z : the same, of m inputs, optional
        Default: X itself; the result is then exactly symmetric.
    outputs : "mean" or "full"
        "mean": one kernel for all outputs, the mean of theirs. "full": every pair of outputs.
    max_memory : int
        Bytes for derivatives held at a time, in addition to the result.

    Returns
    -------
    K : ndarray of shape (n, m), or (n, m, p, p) with ``outputs="full"``
        ``K[i, j, a, b]`` is ⟨∂f_a(x_i), ∂f_b(z_j)⟩. In the precision of the network.

    Raises
    ------
    ValueError
        Unknown ``outputs``, no trainable weights, or inputs that the network does not accept.
    MemoryError
        The derivatives of two inputs need more than ``max_memory``.

    Examples
    --------
    A linear network is its own tangent:

    >>> import numpy as np
    >>> from torch import nn
    >>> from selfdistill_fast import distill, spectrum
    >>> from selfdistill_fast.trainer import empirical_ntk_gram
    >>> X = np.random.default_rng(0).normal(size=(8, 3))
    >>> K = empirical_ntk_gram(nn.Linear(3, 1, bias=False).double(), X)
    >>> np.allclose(K, X @ X.T)
    True
    >>> distill(spectrum(K, X[:, 0], "precomputed"), 0.1, "optimal", 2).alphas.shape
    (2,)
    """
    if outputs not in ("mean", "full"):
        raise ValueError(f"outputs must be 'mean' or 'full', got {outputs!r}")
    weights = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    if not weights:
        raise ValueError("the model has no weights that require gradients")
    some = next(iter(weights.values()))
    sources = [
        as_source(data, name, some.device, some.dtype, with_targets=False)
        for data, name in ((X, "X"), (Z, "Z"))
        if data is not None
    ]
    if sources[0].sample_shape != sources[-1].sample_shape:
        raise ValueError(
            f"inputs X have shape {sources[0].sample_shape}, Z {sources[-1].sample_shape}"
        )
    training = model.training
    model.eval()
    try:
        return _gram(model, weights, sources, outputs == "full", max_memory)
    finally:
        model.train(training)


def _gram(
    model: nn.Module,
    weights: dict[str, torch.Tensor],
    sources: list[Source],
    full: bool,
    max_memory: int,
) -> np.ndarray:
    fixed = {name: p.detach() for name, p in model.named_parameters() if name not in weights}
    fixed |= dict(model.named_buffers())

    def f(theta: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        return functional_call(model, (theta, fixed), (x[None],)).reshape(-1)

    jacobian = vmap(jacrev(f), (None, 0))

    def derivatives(source: Source, rows: torch.Tensor) -> list[torch.Tensor]:
        """∂f(x)/∂θ_l for every parameter l, (b, p, size of θ_l)."""
        x = source.network_input(source.inputs_at(rows))
        with torch.no_grad():
            return [J.flatten(2) for J in jacobian(weights, x).values()]

    left, right = sources[0], sources[-1]
    with torch.inference_mode():
        p = model(left.network_input(left.inputs_at(torch.arange(1)))).numel()
    row = sum(w.numel() * w.element_size() for w in weights.values()) * p
    if 2 * row > max_memory:
        raise MemoryError(
            f"the derivatives of two inputs need {2 * row:,} bytes, max_memory is {max_memory:,}"
        )
    # large blocks on the left are held; for each of them, small ones on the right are streamed
    small = max(1, min(_CHUNK, max_memory // (5 * row)))
    large = max(small, max_memory // row - 3 * small, 1)

    def kept(block: torch.Tensor) -> list[torch.Tensor]:
        pieces = [derivatives(left, rows) for rows in block.split(small)]
        return [torch.cat(parts) for parts in zip(*pieces, strict=True)]

    def product(a: list[torch.Tensor], b: list[torch.Tensor]) -> torch.Tensor:
        n, m = len(a[0]), len(b[0])
        out: Any = 0
        for A, B in zip(a, b, strict=True):
            if full:
                C = A.reshape(n * p, -1) @ B.reshape(m * p, -1).T
                out = out + C.reshape(n, p, m, p).transpose(1, 2)
            else:
                out = out + A.reshape(n, -1) @ B.reshape(m, -1).T
        return out if full else out / p

    symmetric = len(sources) == 1
    shape = (left.n, right.n, p, p) if full else (left.n, right.n)
    K = torch.empty(shape, dtype=next(iter(weights.values())).dtype)
    for block in torch.arange(left.n).split(large):
        J = kept(block)
        start = int(block[0]) if symmetric else 0
        for rows in _blocks(start, right.n, small):
            K[block[0] : block[-1] + 1, rows[0] : rows[-1] + 1] = product(
                J, derivatives(right, rows)
            ).cpu()
    if symmetric:
        _mirror(K)
    return K.numpy()


def _blocks(start: int, stop: int, size: int) -> Iterator[torch.Tensor]:
    yield from torch.arange(start, stop).split(size)


def _mirror(K: torch.Tensor) -> None:
    """Copy the upper triangle of pairs of inputs, and on the diagonal that of pairs of outputs."""
    for i in range(len(K)):
        K[i + 1 :, i] = K[i, i + 1 :] if K.ndim == 2 else K[i, i + 1 :].transpose(1, 2)
        if K.ndim == 4:
            K[i, i] = (K[i, i] + K[i, i].T) / 2
