"""Self-distillation of networks: fit, estimate α̂, fit again (Algorithm 1 with eq. (18))."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from selfdistill_fast._html import number, table
from selfdistill_fast.alpha import check_alphas, optimal_alpha
from selfdistill_fast.trainer.checkpoint import claim
from selfdistill_fast.trainer.data import Source, as_source
from selfdistill_fast.trainer.fit import Fit, Task
from selfdistill_fast.trainer.identity import data_fingerprint, describe, taken_over
from selfdistill_fast.trainer.loop import Fitter
from selfdistill_fast.trainer.objective import evaluate
from selfdistill_fast.trainer.parallel import World, join
from selfdistill_fast.trainer.settings import PRECISIONS, Settings, derive, initial, squared
from selfdistill_fast.trainer.targets import bind, truth_of, width_of

__all__ = ["SelfDistillation", "step_seed"]


def step_seed(seed: int, step: int) -> int:
    """Seed of a step of the chain: the chain's own at step 1, a different one at each later step.

    It seeds the initial weights (``torch.manual_seed(step_seed)`` before ``model_fn()``) and,
    together with the epoch number, the order of the rows, augmentation and dropout. Step t with
    α = 1 equals plain training, that is, a chain with ``n_steps=1`` and this seed.

    Examples
    --------
    >>> step_seed(3, 1), step_seed(3, 2) == step_seed(3, 3)
    (3, False)
    """
    return seed if step == 1 else derive(seed, step)


class SelfDistillation:
    r"""A chain of networks, each trained on the outputs of the one before and the ground truth.

    Step t minimises eq. (18) of the paper,

    .. math:: \frac1n \Big[ \sum_i \frac{α_t}{2} ‖f(x_i) - y_i‖^2
              + \frac{1 - α_t}{2} ‖f(x_i) - f_{t-1}(x_i)‖^2 + \frac{λ}{2} ‖θ‖^2 \Big],

    in minibatches (the sum becomes a mean over the batch). With ``alpha="optimal"`` each step
    t ≥ 2 first fits a student with α = 0 and estimates α̂ from its validation predictions and
    those of the first step by eq. (16): 2(T − 1) + 1 fits in all.

    Parameters
    ----------
    model_fn : callable
        Returns a new, randomly initialised ``torch.nn.Module``: (b, ...) → (b, p), or (b,) for
        one target.
    alpha : "optimal", float, or sequence of T − 1
        Weight of the ground truth at the steps 2..T.
    n_steps : int
        Number of steps T ≥ 1; step 1 is plain training.
    output : "softmax" or "identity"
        The outputs that enter the loss. "softmax": classification, against one-hot labels.
        "identity": regression; or labels as one-hot numbers if the network has several outputs.
    loss : "squared" or callable
        ½‖f − y‖², or a function of outputs and targets, (b, p) each, that returns (b,).
    optimizer : "adam", "sgd" or callable
        A callable receives the list of parameters and returns a ``torch.optim.Optimizer``, which
        may evaluate the loss several times per step (L-BFGS).
    lr : float
        Learning rate of "adam" and "sgd"; the paper's experiment used 1e-4.
    epochs, batch_size : int
        ``batch_size`` rows in each process.
    lam : float
        λ ≥ 0 of eq. (18), over all parameters: an L2 weight decay of λ/n.
    seed : int
        See :func:`step_seed`. The first step is the same for every α.
    clip : bool
        Restrict α̂ to [0, 1].
    teacher : "augmented" or "cached"
        "augmented": the teacher sees the augmented batch, as in the authors' experiment.
        "cached": its outputs on the original training inputs, computed once, are used.
    augment : callable, optional
        A function of a batch of stored inputs, (b, C, H, W) for images, and a
        ``torch.Generator`` on its device; see :class:`~selfdistill_fast.trainer.CropFlip`.
    n_classes : int, optional
        Needed if the data do not determine it. Default: the data set's ``classes``, else the
        largest label + 1.
    precision : "float32", "float64" or "bf16"
        "bf16": float32 weights, forward passes under autocast.
    device : str or torch.device, optional
        By default the process's GPU if there is one.
    compile : bool or str
        Whether to run the networks through ``torch.compile``; a string is its mode
        ("reduce-overhead" uses CUDA graphs, for small batches).
    deterministic : bool
        Use cuDNN's deterministic algorithms: bit-identical on the same GPU, slightly slower.
    num_workers : int
        Processes that read a Dataset that is not in memory.
    checkpoint_dir : path, optional
        Save each epoch here; after a kill, the same call continues from there.
    callbacks : sequence of callables
        Called with a dict whose "event" is "begin", "batch" (at most twice a second), "epoch" or
        "done" of a fit, or "restored" for a fit read from ``checkpoint_dir``.

    Attributes
    ----------
    alphas_ : ndarray of shape (T,)
        α of each step; ``alphas_[0]`` is NaN.
    steps_ : list of T :class:`~selfdistill_fast.trainer.Fit`
    fits_ : list of Fit
        All fits, including the students with α = 0, in the order of training.
    n_fits_ : int
        Number of fits of this chain, including a shared first one and restored ones.
    n_outputs_ : int

    Examples
    --------
    >>> from torch import nn
    >>> from selfdistill_fast.trainer import SelfDistillation, load_digits
    >>> train, val = load_digits()
    >>> net = lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    >>> chain = SelfDistillation(net, n_steps=2, epochs=3, batch_size=64, lr=0.01).fit(train, val)
    >>> chain.n_fits_, chain.predict(val).shape
    (3, (450, 10))
    """

    def __init__(
        self,
        model_fn: Callable[[], nn.Module],
        *,
        alpha: Any = "optimal",
        n_steps: int = 2,
        output: str = "softmax",
        loss: Any = "squared",
        optimizer: Any = "adam",
        lr: float = 1e-3,
        epochs: int = 75,
        batch_size: int = 128,
        lam: float = 1e-4,
        seed: int = 0,
        clip: bool = False,
        teacher: str = "augmented",
        augment: Callable[[torch.Tensor, torch.Generator], torch.Tensor] | None = None,
        n_classes: int | None = None,
        precision: str = "float32",
        device: Any = None,
        compile: bool | str = False,
        deterministic: bool = False,
        num_workers: int = 0,
        checkpoint_dir: Any = None,
        callbacks: Sequence[Callable[[dict[str, Any]], None]] = (),
    ) -> None:
        self.model_fn = model_fn
        self.alpha = alpha
        self.n_steps = n_steps
        self.output = output
        self.loss = loss
        self.optimizer = optimizer
        self.lr = lr
        self.epochs = epochs
        self.batch_size = batch_size
        self.lam = lam
        self.seed = seed
        self.clip = clip
        self.teacher = teacher
        self.augment = augment
        self.n_classes = n_classes
        self.precision = precision
        self.device = device
        self.compile = compile
        self.deterministic = deterministic
        self.num_workers = num_workers
        self.checkpoint_dir = checkpoint_dir
        self.callbacks = callbacks

    # ---------------------------------------------------------------- fit
    def fit(
        self, train: Any, val: Any = None, *, first: SelfDistillation | None = None
    ) -> SelfDistillation:
        """Train the chain.

        Parameters
        ----------
        train, val : (X, y) of arrays or tensors, ImageSet, TensorDataset or any Dataset
            X of shape (n, ...), uint8 (seen as X/255 by the network) or floating; y integer
            labels (n,), or numbers (n,) or (n, p). ``val`` is needed for ``alpha="optimal"``.
        first : SelfDistillation, optional
            A fitted chain with the same data and settings (except α, steps and directory), whose
            first step is reused instead of trained again.

        Returns
        -------
        self
            Also after an error, ``steps_`` holds the completed steps.

        Raises
        ------
        TypeError, ValueError
            Bad parameters or data, or a checkpoint directory of other settings.
        FloatingPointError
            The loss is not finite; the message says where.
        OSError
            A checkpoint cannot be written; the last good one is retained.
        """
        alphas = self._check()
        world = join()
        settings = self._settings()
        sources = self._sources(settings, train, val)
        template = initial(self.model_fn, self.seed)
        width = width_of(settings, sources[0], template)
        bind(sources, width, self.output, self.n_classes)
        source, held = sources[0], sources[1] if len(sources) > 1 else None
        about = describe(self, settings, sources, template, world)
        directory = None if self.checkpoint_dir is None else Path(self.checkpoint_dir)
        if directory is not None:
            world.first(lambda: claim(directory, about | {"data": data_fingerprint(sources)}))
        fitter = self._fitter = Fitter(settings, source, held, template, world)

        def train_one(step: int, role: str, alpha: float) -> Fit:
            name = f"step-{step}" + ("-student" if role == "student" else "")
            location = None if directory is None else directory / name
            task = Task(step, role, alpha, step_seed(self.seed, step), location)
            fit = fitter.fit(task, self.steps_[-1] if self.steps_ else None)
            self.fits_.append(fit)
            return fit

        self._about = about
        self.n_outputs_ = width
        self.fits_: list[Fit] = []
        self.steps_: list[Fit] = []
        self.alphas_ = np.full(self.n_steps, np.nan)
        if first is None:
            self.steps_.append(train_one(1, "step", math.nan))
        else:
            self.fits_.append(taken_over(first, about, sources))
            self.steps_.append(self.fits_[0])
        for step in range(2, self.n_steps + 1):
            if alphas is None:
                student = train_one(step, "student", 0.0)
                y_first = self.steps_[0].val_predictions
                alpha = optimal_alpha(truth_of(held), y_first, student.val_predictions)
                if self.clip:
                    alpha = min(max(alpha, 0.0), 1.0)
            else:
                alpha = float(alphas[step - 1])
            self.alphas_[step - 1] = alpha
            self.steps_.append(train_one(step, "step", alpha))
        return self

    def _repr_html_(self) -> str:
        steps = getattr(self, "steps_", [])
        rows = [
            (fit.step, *map(number, (fit.alpha, fit.train_loss, fit.val_loss, fit.train_accuracy,
                                     fit.val_accuracy, fit.seconds)))
            for fit in steps
        ]  # fmt: skip
        head = ["step", "α", "training loss", "validation loss", "training accuracy",
                "validation accuracy", "seconds"]  # fmt: skip
        return table(f"SelfDistillation: {len(rows)} of {self.n_steps} steps", head, rows)

    @property
    def n_fits_(self) -> int:
        """Number of fits so far."""
        return len(self.fits_)

    # ---------------------------------------------------------------- use
    def predict(self, X: Any, step: Any = None) -> np.ndarray:
        """Outputs of the network of a step.

        Parameters
        ----------
        X : array of shape (m, ...), ImageSet, TensorDataset or Dataset
            Inputs like those of the training set; targets are ignored.
        step : int or "all", optional
            1, …, T; by default the last.

        Returns
        -------
        ndarray of shape (m, p)
            Probabilities ("softmax") or numbers; (m,) if the targets were (n,). With "all",
            (T, m, p) or (T, m).

        Raises
        ------
        ValueError
            Not fitted, no such step, or inputs of another shape.
        """
        if not getattr(self, "steps_", None):
            raise ValueError("this SelfDistillation is not fitted yet: call fit first")
        if isinstance(step, str) and step == "all":
            return np.stack([self.predict(X, t) for t in range(1, len(self.steps_) + 1)])
        model = self.model(step)
        settings, train = self._fitter.settings, self._fitter.train
        inputs = as_source(
            X,
            "new",
            settings.device,
            settings.dtype,
            num_workers=self.num_workers,
            like=train,
            with_targets=False,
        )
        outputs = evaluate(settings, model, inputs, World())[0].numpy()
        return outputs[:, 0] if train.one_target else outputs

    def model(self, step: int | None = None) -> nn.Module:
        """The network of a step (by default the last), in evaluation mode.

        Parameters
        ----------
        step : int, optional
            1, …, T.

        Returns
        -------
        torch.nn.Module
            Its outputs are those before the softmax.
        """
        if not getattr(self, "steps_", None):
            raise ValueError("this SelfDistillation is not fitted yet: call fit first")
        step = len(self.steps_) if step is None else step
        if not isinstance(step, numbers.Integral) or not 1 <= step <= len(self.steps_):
            raise ValueError(f"step must be 1 to {len(self.steps_)}, got {step!r}")
        return self._fitter.load(self.steps_[step - 1])

    # ---------------------------------------------------------------- checks
    def _check(self) -> np.ndarray | None:
        """α of each step, or None if they are to be estimated."""
        for name in ("n_steps", "epochs", "batch_size"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
                raise ValueError(f"{name} must be a positive integer, got {value!r}")
        if isinstance(self.seed, bool) or not isinstance(self.seed, numbers.Integral):
            raise TypeError(f"seed must be an integer, got {self.seed!r}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be from 0 to 2^63 − 1, got {self.seed}")
        for name, sign in (("lam", "non-negative"), ("lr", "positive")):
            value = getattr(self, name)
            number = isinstance(value, numbers.Real) and not isinstance(value, bool)
            if not number or not math.isfinite(value) or value < 0 or (name == "lr" and not value):
                raise ValueError(f"{name} must be a {sign} number, got {value!r}")
        choices = {
            "output": ("softmax", "identity"),
            "teacher": ("augmented", "cached"),
            "precision": tuple(PRECISIONS),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name} must be one of {', '.join(map(repr, known))}; "
                    f"got {getattr(self, name)!r}"
                )
        if not callable(self.model_fn) or isinstance(self.model_fn, nn.Module):
            raise TypeError(
                "model_fn must be a function that returns a new network at each call, got "
                f"{type(self.model_fn).__name__}"
            )
        for name, known in (("loss", ("squared",)), ("optimizer", ("adam", "sgd"))):
            value = getattr(self, name)
            if not callable(value) and value not in known:
                raise ValueError(
                    f"{name} must be {' or '.join(map(repr, known))} or a callable, got {value!r}"
                )
        if self.augment is not None and not callable(self.augment):
            raise TypeError(f"augment must be a callable or None, got {self.augment!r}")
        if isinstance(self.alpha, str):
            if self.alpha != "optimal":
                raise ValueError(
                    f"alpha must be 'optimal', a number or a sequence of {self.n_steps - 1} "
                    f"numbers, got {self.alpha!r}"
                )
            return None
        return check_alphas(self.alpha, int(self.n_steps))

    def _settings(self) -> Settings:
        device = self.device
        if device is None:
            device = "cpu"
            if torch.cuda.is_available():
                device = f"cuda:{torch.cuda.current_device()}"
        return Settings(
            model_fn=self.model_fn,
            output=self.output,
            loss=self.loss if callable(self.loss) else squared,
            optimizer=self.optimizer,
            lr=float(self.lr),
            epochs=int(self.epochs),
            batch_size=int(self.batch_size),
            lam=float(self.lam),
            teacher=self.teacher,
            augment=self.augment,
            precision=self.precision,
            device=torch.device(device),
            compile=self.compile,
            deterministic=self.deterministic,
            callbacks=tuple(self.callbacks),
        )

    def _sources(self, settings: Settings, train: Any, val: Any) -> list[Source]:
        """Training set and, if there is one, validation set."""
        how: dict[str, Any] = {"num_workers": self.num_workers}
        source = as_source(train, "training", settings.device, settings.dtype, **how)
        if val is None:
            if self.n_steps > 1 and isinstance(self.alpha, str):
                raise ValueError(
                    "alpha='optimal' is estimated on validation data: give val, or alpha as a "
                    "number"
                )
            return [source]
        held = as_source(val, "validation", settings.device, settings.dtype, like=source, **how)
        return [source, held]
