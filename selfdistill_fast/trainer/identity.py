"""The identity of a chain as text that is stable across processes: it decides what may continue."""

from __future__ import annotations

import functools
import hashlib
from typing import Any

import numpy as np
import torch
from torch import nn

from selfdistill_fast.trainer.data import Source
from selfdistill_fast.trainer.fit import Fit
from selfdistill_fast.trainer.parallel import World
from selfdistill_fast.trainer.settings import Settings

__all__ = ["data_fingerprint", "describe", "taken_over"]


def describe(
    chain: Any, settings: Settings, sources: list[Source], model: nn.Module, world: World
) -> dict[str, Any]:
    """Everything that determines the first step of a SelfDistillation, as JSON values."""
    shapes = [f"{name} {tuple(p.shape)} {p.dtype}" for name, p in model.state_dict().items()]
    digest = hashlib.blake2b("\n".join(shapes).encode(), digest_size=8).hexdigest()
    return {
        "model": f"{type(model).__name__}, {len(shapes)} tensors, {digest}",
        "output": chain.output,
        "loss": _name(chain.loss),
        "optimizer": _name(chain.optimizer),
        "lr": None if callable(chain.optimizer) else settings.lr,
        "epochs": settings.epochs,
        "batch_size": settings.batch_size,
        "processes": world.size,
        "lam": settings.lam,
        "seed": int(chain.seed),
        "teacher": chain.teacher,
        "augment": _name(chain.augment),
        "precision": chain.precision,
        "n_train": sources[0].n,
        "n_val": sources[1].n if len(sources) > 1 else 0,
    }


def taken_over(first: Any, about: dict[str, Any], sources: list[Source]) -> Fit:
    """Step 1 of a chain with the same beginning as this one."""
    if not getattr(first, "steps_", None):
        raise ValueError("first is not fitted yet")
    differences = [
        f"{key} {first._about.get(key)!r} there, {value!r} here"
        for key, value in about.items()
        if key != "teacher" and first._about.get(key) != value  # step 1 has no teacher
    ]
    if differences:
        raise ValueError(f"first was fitted with other settings or data: {'; '.join(differences)}")
    before = [s for s in (first._fitter.train, first._fitter.val) if s is not None]
    if data_fingerprint(before) != data_fingerprint(sources):
        raise ValueError("first was fitted on other data")
    return first.steps_[0]


def data_fingerprint(sources: list[Source]) -> str:
    """A digest that distinguishes the data of chains."""
    return " ".join(source.fingerprint() for source in sources)


def _name(thing: Any) -> Any:
    """A setting as text that is stable across processes."""
    if thing is None or isinstance(thing, str):
        return thing
    if isinstance(thing, functools.partial):
        parts = [_name(thing.func), *map(_argument, thing.args)]
        parts += [f"{key}={_argument(value)}" for key, value in thing.keywords.items()]
        return f"partial({', '.join(parts)})"
    if hasattr(thing, "__qualname__"):
        return f"{thing.__module__}.{thing.__qualname__}"
    text = repr(thing)
    return type(thing).__qualname__ if " at 0x" in text else text


def _argument(value: Any) -> str:
    """An argument as text; an array, whose own text is rounded, as a digest of all its digits."""
    if isinstance(value, torch.Tensor):
        kind, raw = value.dtype, value.detach().cpu().reshape(-1).view(torch.uint8).numpy()
    elif isinstance(value, np.ndarray) and not value.dtype.hasobject:
        kind, raw = value.dtype, np.ascontiguousarray(value)
    else:
        return repr(value)
    digest = hashlib.blake2b(raw.data, digest_size=8).hexdigest()
    return f"array({kind}, {tuple(value.shape)}, {digest})"
