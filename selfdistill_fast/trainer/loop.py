"""One fit: a network trained on a mixture of the ground truth and a teacher's outputs, eq. (18).

    (1/n) [ Σ_i α ℓ(f(x_i), y_i) + (1 − α) ℓ(f(x_i), t_i)  +  (λ/2) ‖θ‖² ],    ℓ(f, y) = ½ ‖f − y‖²

over minibatches: the sum becomes a mean over the batch; the penalty is not divided. t are the
teacher's outputs, y one-hot rows or numbers, θ all trainable parameters.

All randomness of an epoch (order, augmentation, dropout; not the initial weights) comes from
streams seeded by (seed, epoch). A fit that is killed and continued from the checkpoint of an epoch
is therefore the same fit, and a checkpoint holds no generator states.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from selfdistill_fast.trainer.checkpoint import read, write
from selfdistill_fast.trainer.data import Source
from selfdistill_fast.trainer.fit import Fit, Log, Task, check_same_alpha, finished
from selfdistill_fast.trainer.objective import Objective, evaluate, penalty_of
from selfdistill_fast.trainer.parallel import World
from selfdistill_fast.trainer.settings import Settings, derive, initial

__all__ = ["Fitter"]

_TICK = 0.5  # seconds between reports within an epoch


class Fitter:
    """Fits networks to one training set.

    Parameters
    ----------
    settings : Settings
    train, val : Source
        Bound to the outputs of the network; ``val`` may be None.
    template : nn.Module
        The network of step 1 with its initial weights, on the CPU.
    world : World
    """

    def __init__(
        self,
        settings: Settings,
        train: Source,
        val: Source | None,
        template: nn.Module,
        world: World,
    ) -> None:
        self.settings, self.train, self.val = settings, train, val
        self.template, self.world = template, world
        self._compiled: dict[str, tuple[nn.Module, Any]] = {}
        if settings.compile:
            torch._dynamo.reset()  # it caches only a few versions, then stops compiling

    # ---------------------------------------------------------------- one fit
    def fit(self, task: Task, teacher: Fit | None) -> Fit:
        """Train a new network, or continue an interrupted fit of this directory.

        Parameters
        ----------
        task : Task
        teacher : Fit, optional
            The previous step; not used if α is 1 or NaN.

        Returns
        -------
        Fit

        Raises
        ------
        FloatingPointError
            The loss is not finite; the checkpoint of the previous epoch remains.
        OSError
            A checkpoint cannot be written; the previous one remains.
        """
        s, alpha, directory = self.settings, task.alpha, task.directory
        if directory is not None:
            done = self.world.first(lambda: finished(directory))
            if done is not None:
                fit = Fit.restored(done)
                check_same_alpha(fit.alpha, alpha, directory)
                self._report("restored", task, history=fit.history)
                return fit
        with _own_random_numbers(s.device), _cudnn(s.deterministic, s.device):
            # the network that was tried on the data is that of the first step, with initial weights
            model = (
                copy.deepcopy(self.template) if task.step == 1 else initial(s.model_fn, task.seed)
            )
            model, net = self._ready("student", self._placed(model))
            parameters: list[torch.Tensor] = [p for p in model.parameters() if p.requires_grad]
            optimizer = s.make_optimizer(parameters)
            history: list[dict[str, float]] = []
            if directory is not None:
                saved = self.world.first(lambda: read(directory / "checkpoint.pt"))
                if saved is not None:
                    check_same_alpha(saved["alpha"], alpha, directory)
                    model.load_state_dict(saved["model"])
                    optimizer.load_state_dict(saved["optimizer"])
                    history = saved["history"]
            log = None
            if directory is not None and self.world.rank == 0:
                log = Log(directory / "log.csv", history)
            guide = self._teacher(teacher, alpha)
            self._report("begin", task, history=history)
            for epoch in range(len(history) + 1, s.epochs + 1):
                row = self._epoch(net, optimizer, parameters, guide, task, epoch)
                row |= self._validate(model, row)
                history.append(row)
                if directory is not None:
                    self._save(directory, task.alpha, model, optimizer, history)
                if log is not None:
                    log.add(row)
                self._report("epoch", task, **row)
            fit = self._finish(model, task, history)
        if directory is not None:

            def keep() -> None:
                write(directory / "fit.pt", fit.stored())
                (directory / "checkpoint.pt").unlink(missing_ok=True)

            self.world.first(keep)
        self._report("done", task, history=history)
        return fit

    def _epoch(
        self,
        net: nn.Module,
        optimizer: torch.optim.Optimizer,
        parameters: list[torch.Tensor],
        guide: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None,
        task: Task,
        epoch: int,
    ) -> dict[str, float]:
        """One pass over the training rows."""
        s, world, n, seed = self.settings, self.world, self.train.n, task.seed
        order = torch.randperm(n, generator=torch.Generator().manual_seed(derive(seed, epoch, 0)))
        torch.manual_seed(derive(seed, epoch, 1, world.rank))
        generator = torch.Generator(s.device).manual_seed(derive(seed, epoch, 2, world.rank))
        together = order.split(s.batch_size * world.size)
        # a process without a row of the last batch gets one with weight 0: DDP waits for it
        mine = [
            batch[world.rank :: world.size] if world.rank < len(batch) else batch[:1]
            for batch in together
        ]
        losses = torch.zeros(len(mine), device=s.device, dtype=s.dtype)
        penalty = penalty_of(parameters, s.lam / n)  # of the weights at the beginning of the epoch
        correct = torch.zeros((), device=s.device, dtype=torch.int64)
        objective = Objective(s, net, optimizer, parameters, task.alpha, s.lam / n, world)
        net.train()
        begun = told = time.perf_counter()
        seen = 0
        for i, (raw, y, rows) in enumerate(self.train.batches(mine)):
            if s.compile:
                torch.compiler.cudagraph_mark_step_begin()
            if s.augment is not None:
                raw = s.augment(raw, generator)
            x = self.train.network_input(raw)
            t = None if guide is None else guide(x, rows)
            share = 0.0 if world.rank >= len(together[i]) else 1.0 / len(together[i])
            objective.meet(x, y, t, share)
            try:
                optimizer.step(objective)  # type: ignore[arg-type]
            except ValueError as error:
                if "more than 1 value per channel" not in str(error):
                    raise
                raise ValueError(
                    f"the last batch of {n} rows in batches of {s.batch_size} has one row, which "
                    "batch norm cannot train on: use another batch_size"
                ) from error
            losses[i] = objective.data
            if self.train.classification and share:
                correct += (objective.outputs.argmax(1) == y.argmax(1)).sum()
            seen += len(together[i])
            now = time.perf_counter()
            if now - told > _TICK and i + 1 < len(mine):
                told = now
                _finite(losses[: i + 1], task, epoch, len(mine))
                self._report(
                    "batch",
                    task,
                    epoch=epoch,
                    batch=i + 1,
                    batches=len(mine),
                    loss=world.size * float(losses[: i + 1].mean()) + float(penalty),
                    images_per_second=seen / (now - begun),
                )
        # each process has its share of the data loss
        losses = (world.sum(losses) + penalty).cpu()  # waits for the device
        seconds = time.perf_counter() - begun
        # no loss of this epoch reflects the last update
        weights = penalty_of(parameters, 1.0)
        _finite(torch.cat([losses, weights.reshape(1).cpu()]), task, epoch, len(mine))
        sizes = torch.tensor([len(batch) for batch in together], dtype=losses.dtype)
        accuracy = math.nan
        if self.train.classification:
            accuracy = int(world.sum(correct)) / n
        return {
            "epoch": epoch,
            "loss": float((losses * sizes).sum() / n),
            "accuracy": accuracy,
            "seconds": seconds,
            "images_per_second": n / seconds,
        }

    def _validate(self, model: nn.Module, row: dict[str, float]) -> dict[str, float]:
        begun = time.perf_counter()
        loss = accuracy = math.nan
        if self.val is not None:
            _, loss, accuracy = evaluate(self.settings, model, self.val, self.world)
        return {
            "val_loss": loss,
            "val_accuracy": accuracy,
            "seconds": row["seconds"] + time.perf_counter() - begun,
        }

    def _finish(self, model: nn.Module, task: Task, history: list[dict[str, float]]) -> Fit:
        s = self.settings
        f, train_loss, train_accuracy = evaluate(s, model, self.train, self.world)
        val_f, val_loss, val_accuracy = None, math.nan, math.nan
        if self.val is not None:
            val_f, val_loss, val_accuracy = evaluate(s, model, self.val, self.world)
        training = sum(self.train.n / row["images_per_second"] for row in history)
        return Fit(
            step=task.step,
            role=task.role,
            alpha=task.alpha,
            seed=task.seed,
            train_predictions=f.numpy(),
            val_predictions=None if val_f is None else val_f.numpy(),
            train_loss=train_loss,
            train_accuracy=train_accuracy,
            val_loss=val_loss,
            val_accuracy=val_accuracy,
            seconds=sum(row["seconds"] for row in history),
            images_per_second=self.train.n * len(history) / training,
            history=history,
            state={
                name: value.detach().to("cpu", copy=True)
                for name, value in model.state_dict().items()
            }
            if task.role == "step"
            else {},
        )

    # ---------------------------------------------------------------- pieces
    def load(self, fit: Fit) -> nn.Module:
        """The network of a fit, in evaluation mode, on the device."""
        model = self._placed(copy.deepcopy(self.template))
        model.load_state_dict(fit.state)
        return model.eval().requires_grad_(False)

    def _placed(self, model: nn.Module) -> nn.Module:
        model = model.to(self.settings.device, self.settings.dtype)
        if self.train.channels_last:
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return model

    def _save(
        self,
        directory: Path,
        alpha: float,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        history: list[dict[str, float]],
    ) -> None:
        content = {
            "alpha": alpha,
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "history": history,
        }
        self.world.first(lambda: write(directory / "checkpoint.pt", content))

    def _teacher(
        self, teacher: Fit | None, alpha: float
    ) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None:
        """The teacher's outputs for a batch (inputs, row numbers), or None if it has no weight."""
        if teacher is None or math.isnan(alpha) or alpha == 1.0:
            return None
        s = self.settings
        if s.teacher == "cached":
            outputs = torch.from_numpy(teacher.train_predictions).to(s.device, s.dtype)
            return lambda x, rows: outputs[rows]
        net = self._ready("teacher", self.load(teacher))[1]

        def guide(x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
            # compiled code cannot mix inference tensors with others
            quiet = torch.no_grad() if s.compile else torch.inference_mode()
            with quiet, s.autocast():
                outputs = s.activate(net(x))
            # an ordinary tensor, and not in the memory of a CUDA graph
            return outputs.clone()

        return guide

    def _ready(self, role: str, model: nn.Module) -> tuple[nn.Module, Any]:
        """The network itself, and the callable for it: distributed, compiled.

        A compiled network is cached and receives the weights of the next fit, which then need
        not be compiled again.
        """
        how = self.settings.compile
        if role in self._compiled:
            cached, net = self._compiled[role]
            cached.load_state_dict(model.state_dict())
            return cached, net
        net = model
        if role == "student" and self.world.size > 1:
            ids = [self.settings.device.index] if self.settings.device.type == "cuda" else None
            net = DistributedDataParallel(model, device_ids=ids)
        if how:
            # "reduce-overhead" runs it as CUDA graphs
            mode = how if isinstance(how, str) else None
            self._compiled[role] = model, torch.compile(net, mode=mode, dynamic=False)
            return self._compiled[role]
        return model, net

    def _report(self, event: str, task: Task, **more: Any) -> None:
        if self.world.rank > 0:
            return
        about = {"event": event, "step": task.step, "role": task.role, "alpha": task.alpha}
        for callback in self.settings.callbacks:
            callback({**about, "epochs": self.settings.epochs, **more})


def _finite(losses: torch.Tensor, task: Task, epoch: int, batches: int) -> None:
    bad = torch.nonzero(~torch.isfinite(losses))
    if not len(bad):
        return
    if task.directory is None:
        kept = "there is no checkpoint directory, so nothing of this fit is saved"
    elif epoch == 1:
        kept = "that was the first epoch, so this fit has no checkpoint yet"
    else:
        kept = f"the checkpoint of epoch {epoch - 1} is kept in {task.directory}"
    i = int(bad[0])
    raise FloatingPointError(
        f"the loss became {float(losses[i])} at {task}, epoch {epoch}, batch "
        f"{min(i + 1, batches)} of {batches}; {kept}. A smaller lr may help"
    )


@contextmanager
def _own_random_numbers(device: torch.device) -> Iterator[None]:
    """Allow seeding inside; the caller's random streams continue unaffected."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield


@contextmanager
def _cudnn(deterministic: bool, device: torch.device) -> Iterator[None]:
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.deterministic
    if device.type == "cuda":
        cudnn.benchmark, cudnn.deterministic = not deterministic, deterministic
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.deterministic = before
