"""Common elements of all fits of a chain: settings, seeds, the initial network, the loss."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

__all__ = ["PRECISIONS", "Settings", "derive", "initial", "squared"]

PRECISIONS = {"float32": torch.float32, "float64": torch.float64, "bf16": torch.float32}


def squared(f: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """½ ‖f − y‖² of each row, (b,)."""
    return 0.5 * (f - y).square().sum(1)


def derive(*keys: int) -> int:
    """A seed that depends on all keys."""
    return int(np.random.SeedSequence(keys).generate_state(1, np.uint64)[0] >> np.uint64(1))


def initial(model_fn: Callable[[], nn.Module], seed: int) -> nn.Module:
    """A new network with the initial weights of a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_fn()
    if not isinstance(model, nn.Module):
        raise TypeError(f"model_fn must return a torch.nn.Module, got {type(model).__name__}")
    return model


@dataclass(frozen=True)
class Settings:
    """Common settings of all fits of a chain; see SelfDistillation for their meaning."""

    model_fn: Callable[[], nn.Module]
    output: str
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    optimizer: Any
    lr: float
    epochs: int
    batch_size: int
    lam: float
    teacher: str
    augment: Callable[[torch.Tensor, torch.Generator], torch.Tensor] | None
    precision: str
    device: torch.device
    compile: bool | str
    deterministic: bool
    callbacks: tuple[Callable[[dict[str, Any]], None], ...]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of weights and inputs; bf16 uses float32 weights."""
        return PRECISIONS[self.precision]

    def make_optimizer(self, parameters: list[torch.Tensor]) -> torch.optim.Optimizer:
        """The optimiser of one fit."""
        if callable(self.optimizer):
            return self.optimizer(parameters)
        if self.optimizer == "sgd":
            return torch.optim.SGD(parameters, lr=self.lr)
        return torch.optim.Adam(parameters, lr=self.lr, fused=self.device.type == "cuda" or None)

    def activate(self, raw: torch.Tensor) -> torch.Tensor:
        """Outputs (b, p) that the loss compares with the targets."""
        raw = raw.reshape(len(raw), -1).to(self.dtype)
        return raw.softmax(1) if self.output == "softmax" else raw

    def autocast(self) -> Any:
        """The context for forward passes."""
        if self.precision != "bf16":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)
