"""Loss and gradients of a batch, eq. (18), and the scores of a network on a whole source."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from selfdistill_fast.trainer.data import Source
from selfdistill_fast.trainer.parallel import World
from selfdistill_fast.trainer.settings import Settings

__all__ = ["Objective", "evaluate", "penalty_of"]

#: optimisers that evaluate the closure once and ignore its value
_GRADIENT_ONLY = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop)


class Objective:
    """The closure of an optimiser: loss (18) of a batch and its gradients.

    ``data`` (the loss without penalty) and ``outputs`` are those at the weights before the batch's
    update.
    """

    def __init__(
        self,
        settings: Settings,
        net: nn.Module,
        optimizer: torch.optim.Optimizer,
        parameters: list[torch.Tensor],
        alpha: float,
        decay: float,
        world: World,
    ) -> None:
        self.settings, self.net, self.optimizer = settings, net, optimizer
        self.parameters, self.alpha, self.decay, self.world = parameters, alpha, decay, world
        # an optimiser that uses the value needs the whole loss, equal in all processes
        self.reads = type(optimizer) not in _GRADIENT_ONLY

    def meet(self, x: torch.Tensor, y: torch.Tensor, t: torch.Tensor | None, share: float) -> None:
        """The next batch: inputs, ground truth, teacher's outputs, weight of each row."""
        self.x, self.y, self.t, self.share = x, y, t, share
        self.met = False

    def __call__(self) -> torch.Tensor:
        """The loss; its gradients are stored in the parameters."""
        self.optimizer.zero_grad(set_to_none=True)
        with self.settings.autocast():
            raw = self.net(self.x)
        f = self.settings.activate(raw)
        data = _mixed(self.settings.loss, f, self.y, self.t, self.alpha).sum() * self.share
        # DDP averages the gradients over the processes, the loss is a sum over them
        (data * self.world.size if self.world.size > 1 else data).backward()
        data = data.detach()
        self._penalise()
        if not self.met:
            self.met, self.outputs, self.data = True, f.detach(), data
        if not self.reads:
            return data
        return self.world.sum(data.clone()) + penalty_of(self.parameters, self.decay)

    @torch.no_grad()
    def _penalise(self) -> None:
        """Add the gradient of (decay/2) ‖θ‖² to the gradients."""
        if self.decay == 0.0:
            return
        for p in self.parameters:
            if p.grad is None:  # it does not influence the outputs
                p.grad = torch.zeros_like(p)
        grads = [p.grad for p in self.parameters if p.grad is not None]
        torch._foreach_add_(grads, self.parameters, alpha=self.decay)


def _mixed(loss: Any, f: Any, y: Any, t: Any, alpha: float) -> torch.Tensor:
    """Loss of each row against ground truth y and teacher t, (b,)."""
    if t is None:
        return loss(f, y)
    if alpha == 0.0:
        return loss(f, t)
    return alpha * loss(f, y) + (1.0 - alpha) * loss(f, t)


@torch.no_grad()
def penalty_of(parameters: list[torch.Tensor], decay: float) -> torch.Tensor:
    """(decay/2) ‖θ‖²."""
    norms = torch._foreach_norm(parameters)
    return 0.5 * decay * torch.stack(norms).square().sum()


def evaluate(
    settings: Settings, model: nn.Module, source: Source, world: World
) -> tuple[torch.Tensor, float, float]:
    """Outputs (n, p) on the CPU, mean loss and accuracy of a network on a whole source."""
    world.same_buffers(model)
    training = model.training
    model.eval()
    size = settings.batch_size if settings.device.type == "cpu" else max(settings.batch_size, 1024)
    rows = world.rows(source.n).split(size)
    outputs, targets = [], []
    with torch.inference_mode():
        for raw, y, _ in source.batches(rows):
            with settings.autocast():
                raw_output = model(source.network_input(raw))
            outputs.append(settings.activate(raw_output))
            targets.append(y)
        f = world.gather(torch.cat(outputs), source.n)
        y = world.gather(torch.cat(targets), source.n)
        loss = accuracy = math.nan
        if y.ndim == 2:
            loss = float(settings.loss(f, y).double().mean())
            if source.classification:
                accuracy = float((f.argmax(1) == y.argmax(1)).double().mean())
    model.train(training)
    return f.cpu(), loss, accuracy
