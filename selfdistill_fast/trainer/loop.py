"""One fit: a network trained on a mixture of the ground truth and a teacher's outputs, eq. (18).

    (1/n) [ Σ_i α ℓ(f(x_i), y_i) + (1 − α) ℓ(f(x_i), t_i)  +  (λ/2) ‖θ‖² ],    ℓ(f, y) = ½ ‖f − y‖²

over minibatches: the sum becomes its mean over the batch, the penalty stays whole. t are the
teacher's outputs, y one-hot rows or numbers, θ all trainable parameters.

All randomness of an epoch – initial weights aside – is drawn from streams seeded by (seed, epoch):
order, augmentation, dropout. So a fit that is killed and continued from the checkpoint of an
epoch is the same fit, and a checkpoint holds no generator states.
"""

from __future__ import annotations

import copy
import csv
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from selfdistill_fast.trainer.checkpoint import read, write
from selfdistill_fast.trainer.data import Source
from selfdistill_fast.trainer.parallel import World

__all__ = [
    "COLUMNS",
    "PRECISIONS",
    "Fit",
    "Fitter",
    "Settings",
    "derive",
    "evaluate",
    "initial",
    "squared",
]

PRECISIONS = {"float32": torch.float32, "float64": torch.float64, "bf16": torch.float32}
#: of the log of a fit, one row an epoch
COLUMNS = (
    "epoch",
    "loss",
    "accuracy",
    "val_loss",
    "val_accuracy",
    "seconds",
    "images_per_second",
)
_TICK = 0.5  # seconds between reports within an epoch
#: optimisers that evaluate once and do not read the value
_GRADIENT_ONLY = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop)


def squared(f: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """½ ‖f − y‖² of each row, (b,)."""
    return 0.5 * (f - y).square().sum(1)


def derive(*keys: int) -> int:
    """A seed that depends on all the keys."""
    return int(np.random.SeedSequence(keys).generate_state(1, np.uint64)[0] >> np.uint64(1))


def initial(model_fn: Callable[[], nn.Module], seed: int) -> nn.Module:
    """A new network whose initial weights are those of a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_fn()
    if not isinstance(model, nn.Module):
        raise TypeError(f"model_fn must return a torch.nn.Module, got {type(model).__name__}")
    return model


@dataclass(frozen=True)
class Settings:
    """What all fits of a chain have in common; see SelfDistillation for their meaning."""

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
        """Of weights and inputs; bf16 keeps float32 weights."""
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
        """The context that forward passes run in."""
        if self.precision != "bf16":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)


@dataclass
class Fit:
    """One trained network and how it did.

    Attributes
    ----------
    step : int
        Step of the chain, from 1.
    role : "step" or "student"
        "student": the fit with α = 0 that estimates α̂ and is then forgotten.
    alpha : float
        Weight of the ground truth; NaN for step 1.
    seed : int
        Of initial weights, order, augmentation and dropout.
    state : dict of name to tensor
        Weights and buffers after the last epoch, on the CPU; empty for a student.
    train_predictions, val_predictions : ndarray of shape (n, p) and (m, p)
        Outputs after the last epoch, without augmentation; None without validation data.
    train_loss, val_loss : float
        Mean loss against the ground truth, without penalty.
    train_accuracy, val_accuracy : float
        NaN for regression.
    seconds : float
        Of all epochs, checkpoints left out.
    images_per_second : float
        Training rows by the time of the training passes, validation left out.
    history : list of dict
        A row for each epoch: mean objective (18) and accuracy over the training batches as they
        were seen, loss and accuracy on the validation data.
    """

    step: int
    role: str
    alpha: float
    seed: int
    train_predictions: np.ndarray
    val_predictions: np.ndarray | None
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    seconds: float
    images_per_second: float
    history: list[dict[str, float]]
    state: dict[str, torch.Tensor] = field(repr=False, default_factory=dict)

    def stored(self) -> dict[str, Any]:
        """Tensors and plain values, for a file."""
        content = {field.name: getattr(self, field.name) for field in fields(self)}
        for name in ("train_predictions", "val_predictions"):
            if content[name] is not None:
                content[name] = torch.from_numpy(content[name])
        return content

    @classmethod
    def restored(cls, content: dict[str, Any]) -> Fit:
        """The reverse of :meth:`stored`."""
        for name in ("train_predictions", "val_predictions"):
            if content[name] is not None:
                content[name] = content[name].numpy()
        return cls(**content)


@dataclass(frozen=True)
class Task:
    """Which fit is to be made; the fields are those of :class:`Fit`.

    ``directory`` is for ``checkpoint.pt``, ``fit.pt`` (when done) and ``log.csv``, or None.
    """

    step: int
    role: str
    alpha: float
    seed: int
    directory: Path | None

    def __str__(self) -> str:
        if self.step == 1:
            return "step 1"
        what = "student with α = 0" if self.role == "student" else f"α = {self.alpha:g}"
        return f"step {self.step}, {what}"


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
            torch._dynamo.reset()  # it keeps a few versions of a network only, then none

    # ---------------------------------------------------------------- one fit
    def fit(self, task: Task, teacher: Fit | None) -> Fit:
        """Train a fresh network, or go on where a fit of this directory was stopped.

        Parameters
        ----------
        task : Task
        teacher : Fit, optional
            The step before; not used where α is 1 or NaN.

        Returns
        -------
        Fit

        Raises
        ------
        FloatingPointError
            The loss is not finite; the checkpoint of the epoch before stays.
        OSError
            A checkpoint cannot be written; the one before stays.
        """
        s, alpha, directory = self.settings, task.alpha, task.directory
        if directory is not None:
            done = self.world.first(lambda: _finished(directory))
            if done is not None:
                fit = Fit.restored(done)
                _same_alpha(fit.alpha, alpha, directory)
                self._report("restored", task, history=fit.history)
                return fit
        with _own_random_numbers(s.device), _cudnn(s.deterministic, s.device):
            # the network that was tried on the data is the first step's, as it began
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
                    _same_alpha(saved["alpha"], alpha, directory)
                    model.load_state_dict(saved["model"])
                    optimizer.load_state_dict(saved["optimizer"])
                    history = saved["history"]
            log = None
            if directory is not None and self.world.rank == 0:
                log = _Log(directory / "log.csv", history)
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
        # a process without a row of the last batch takes one with weight 0: DDP waits for it
        mine = [
            batch[world.rank :: world.size] if world.rank < len(batch) else batch[:1]
            for batch in together
        ]
        losses = torch.zeros(len(mine), device=s.device, dtype=s.dtype)
        penalty = _penalty(parameters, s.lam / n)  # of the weights that the epoch begins with
        correct = torch.zeros((), device=s.device, dtype=torch.int64)
        objective = _Objective(s, net, optimizer, parameters, task.alpha, s.lam / n, world)
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
        # what the last update did shows in no loss of this epoch
        weights = _penalty(parameters, 1.0)
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
        """The teacher's outputs for a batch (inputs, row numbers), or None where it has no say."""
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
        """The network itself, and as it is called: by all processes, compiled.

        A compiled network is kept and gets the weights of the next fit, which need not be
        compiled again then.
        """
        how = self.settings.compile
        if role in self._compiled:
            kept, net = self._compiled[role]
            kept.load_state_dict(model.state_dict())
            return kept, net
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
        kept = "there is no checkpoint directory, so nothing of this fit is kept"
    elif epoch == 1:
        kept = "that was the first epoch, so this fit has no checkpoint yet"
    else:
        kept = f"the checkpoint of epoch {epoch - 1} is kept in {task.directory}"
    i = int(bad[0])
    raise FloatingPointError(
        f"the loss became {float(losses[i])} at {task}, epoch {epoch}, batch "
        f"{min(i + 1, batches)} of {batches}; {kept}. A smaller lr may help"
    )


class _Objective:
    """The closure of an optimiser: loss (18) of a batch and its gradients.

    ``data`` (the loss without penalty) and ``outputs`` are those at the weights that the batch
    met first.
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
        # who may read the value must read the whole, and the same in all processes
        self.reads = type(optimizer) not in _GRADIENT_ONLY

    def meet(self, x: torch.Tensor, y: torch.Tensor, t: torch.Tensor | None, share: float) -> None:
        """The next batch: inputs, ground truth, teacher's outputs, weight of each row."""
        self.x, self.y, self.t, self.share = x, y, t, share
        self.met = False

    def __call__(self) -> torch.Tensor:
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
        return self.world.sum(data.clone()) + _penalty(self.parameters, self.decay)

    @torch.no_grad()
    def _penalise(self) -> None:
        """Add the gradient of (decay/2) ‖θ‖² to the gradients."""
        if self.decay == 0.0:
            return
        for p in self.parameters:
            if p.grad is None:  # without influence on the outputs
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
def _penalty(parameters: list[torch.Tensor], decay: float) -> torch.Tensor:
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


@contextmanager
def _own_random_numbers(device: torch.device) -> Iterator[None]:
    """Seed at will inside; the caller's random streams go on as if nothing had happened."""
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


def _finished(directory: Path) -> dict[str, Any] | None:
    done = read(directory / "fit.pt")
    if done is not None:  # a kill may have come between the two
        (directory / "checkpoint.pt").unlink(missing_ok=True)
    return done


def _same_alpha(before: float, now: float, directory: Path) -> None:
    if before != now and not (math.isnan(before) and math.isnan(now)):
        raise ValueError(
            f"{directory} holds a fit with α = {before!r}, now α = {now!r}. Use another "
            "directory, or the same settings to continue it"
        )


class _Log:
    """log.csv: written anew from the checkpoint's history, then a row an epoch."""

    def __init__(self, path: Path, history: Sequence[dict[str, float]]) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, COLUMNS).writeheader()
        for row in history:
            self.add(row)

    def add(self, row: dict[str, float]) -> None:
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, COLUMNS).writerow({name: row[name] for name in COLUMNS})
