"""Chains × seeds in one directory: what ``selfdistill-fast train`` runs.

::

    RUN/config.json                        the configuration; any other one is rejected
    RUN/seed-0/first/step-1/               the first fit, which all chains of a seed share
    RUN/seed-0/alpha-0.3/step-2/           … and the fits of each chain: fit.pt, log.csv,
    RUN/seed-0/alpha-optimal/step-2/           checkpoint.pt while it is trained
    RUN/seed-0/alpha-optimal/step-2-student/
    RUN/seed-0/alpha-0.3/chain.json        accuracies of its steps

More chains, seeds or steps may be added to a run; existing fits are not trained again.
"""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import TensorDataset

from selfdistill_fast._files import locked
from selfdistill_fast._validation import exact_text
from selfdistill_fast.trainer.chain import SelfDistillation
from selfdistill_fast.trainer.checkpoint import claim, write_json
from selfdistill_fast.trainer.data import (
    CropFlip,
    ImageSet,
    load_cifar10,
    load_digits,
    load_folder,
)
from selfdistill_fast.trainer.models import model_factory
from selfdistill_fast.trainer.parallel import World, join

__all__ = ["ALPHA_HAT", "accuracies", "chain_name", "run"]

ALPHA_HAT = "α̂"


def chain_name(alpha: Any) -> str:
    """Name of a chain's directory.

    Examples
    --------
    >>> chain_name("optimal"), chain_name(0.3), chain_name([0.1, 0.25])
    ('alpha-optimal', 'alpha-0.3', 'alpha-0.1,0.25')
    >>> chain_name(1 / 3)
    'alpha-0.3333333333333333'
    """
    if isinstance(alpha, str):
        return f"alpha-{alpha}"
    return "alpha-" + ",".join(map(exact_text, np.atleast_1d(alpha).tolist()))


def load_data(
    name: str, root: Any = "data", *, n_train: int | None = None, n_val: int | None = None
) -> tuple[Any, Any]:
    """Training and validation set of the command line.

    Parameters
    ----------
    name : "digits", "cifar10", or the path of a tree of images
    root : path
        Where torchvision keeps CIFAR-10.
    n_train, n_val : int, optional
        Use only this many rows, drawn once for all runs.

    Returns
    -------
    train, val : TensorDataset or ImageSet
    """
    sets: tuple[Any, Any]
    if name == "digits":
        sets = load_digits()
    elif name == "cifar10":
        sets = load_cifar10(root)
    else:
        sets = load_folder(name)
    cut: list[Any] = []
    data: Any
    for data, count in zip(sets, (n_train, n_val), strict=True):
        if count is not None:
            if not 1 <= count <= len(data):
                raise ValueError(f"{count} rows requested, but the data set has {len(data)}")
            rows = torch.from_numpy(np.random.default_rng(0).permutation(len(data))[:count])
            data = data.take(rows) if isinstance(data, ImageSet) else TensorDataset(*data[rows])
        cut.append(data)
    return cut[0], cut[1]


def run(
    out: Path,
    *,
    model: str,
    data: str,
    alphas: Sequence[Any],
    n_steps: int,
    seeds: Sequence[int],
    root: Any = "data",
    n_train: int | None = None,
    n_val: int | None = None,
    augment: bool | None = None,
    callbacks: Sequence[Callable[[dict[str, Any]], None]] = (),
    **options: Any,
) -> None:
    """Train every chain for every seed, except those that are already trained.

    Parameters
    ----------
    out : Path
        The run's directory.
    model : str
        See :func:`~selfdistill_fast.trainer.models.model_factory`.
    data, root, n_train, n_val
        See :func:`load_data`.
    alphas : sequence
        One chain for each: "optimal", a number or a sequence.
    n_steps : int
    seeds : sequence of int
    augment : bool, optional
        Random crops and flips; by default for colour images.
    callbacks : sequence of callables
        As in :class:`SelfDistillation`; the dict also has "seed" and "chain" and, for the event
        "plan", "fits", the number of fits of the run.
    **options
        Of :class:`SelfDistillation`.

    Raises
    ------
    ValueError, OSError, FloatingPointError
        As for :meth:`SelfDistillation.fit`; the directory belongs to another run, or is in use.
    """
    world = join()
    if options.get("precision") is None:
        device = torch.device(
            options.get("device") or ("cuda" if torch.cuda.is_available() else "cpu")
        )
        options["precision"] = "bf16" if device.type == "cuda" else "float32"
    known = data in ("digits", "cifar10")
    config = {
        "model": model,
        "data": data if known else str(Path(data).resolve()),
        "n_train": n_train,
        "n_val": n_val,
        "augment": augment,
        "processes": world.size,
        **{k: v for k, v in options.items() if k not in ("device", "compile")},
    }
    with _alone(out, world):
        world.first(lambda: claim(out, config, "config.json"))
        train, val = _after_the_first(
            world, lambda: load_data(data, root, n_train=n_train, n_val=n_val)
        )
        images = isinstance(train, ImageSet)
        shape = tuple(train[0][0].shape)
        classes = len(train.classes) if images else 10
        colour = images and shape[0] == 3
        tell = [*callbacks, *_tensorboard(out, world)]
        common: dict[str, Any] = {
            "n_classes": classes,
            "augment": CropFlip() if (colour if augment is None else augment) else None,
            **options,
        }
        factory = model_factory(model, classes, shape[0])
        fits = len(seeds) * (1 + sum((n_steps - 1) * (1 + (a == "optimal")) for a in alphas))
        if world.rank == 0:
            for callback in tell:
                callback({"event": "plan", "fits": fits, "epochs": options["epochs"]})

        def chain(seed: int, name: str, alpha: Any, steps: int) -> SelfDistillation:
            def with_place(callback: Any) -> Any:
                return lambda about: callback(about | {"seed": seed, "chain": name})

            return SelfDistillation(
                factory,
                alpha=alpha,
                n_steps=steps,
                seed=seed,
                checkpoint_dir=out / f"seed-{seed}" / name,
                callbacks=[with_place(callback) for callback in tell],
                **common,
            )

        for seed in seeds:
            first = chain(seed, "first", 1.0, 1).fit(train, val)
            for alpha in alphas:
                name = chain_name(alpha)
                fitted = chain(seed, name, alpha, n_steps)
                try:
                    fitted.fit(train, val, first=first)
                finally:  # save the completed steps
                    if getattr(fitted, "steps_", None) and world.rank == 0:
                        write_json(out / f"seed-{seed}" / name / "chain.json", _summary(fitted))


def _after_the_first(world: World, work: Callable[[], Any]) -> Any:
    """The result of ``work``; process 0 runs first and fills the caches for the others."""
    done = []
    world.first(lambda: done.append(work()))
    return done[0] if done else work()


def _summary(chain: SelfDistillation) -> dict[str, Any]:
    keys = ("train_loss", "train_accuracy", "val_loss", "val_accuracy")
    alpha = chain.alpha if isinstance(chain.alpha, str) else np.asarray(chain.alpha).tolist()
    return {
        "alpha": alpha,
        "seed": chain.seed,
        "n_fits": chain.n_fits_,
        "steps": [
            {
                "step": fit.step,
                "alpha": None if math.isnan(fit.alpha) else fit.alpha,
                **{key: getattr(fit, key) for key in keys},
                "seconds": fit.seconds,
                "images_per_second": fit.images_per_second,
            }
            for fit in chain.steps_
        ],
    }


def accuracies(runs: Sequence[Path]) -> dict[str, dict[str, np.ndarray]]:
    """Accuracies of every chain of some runs, for Figure 5.

    Parameters
    ----------
    runs : sequence of Path
        Directories written by :func:`run`; the same α in several runs counts as more seeds.

    Returns
    -------
    chains : dict of label to {"alpha", "train", "val"}
        Arrays (seeds, T), NaN where a step is still missing; in the order of α, α̂ last.

    Raises
    ------
    FileNotFoundError
        No such directory, or no completed step in it.
    ValueError
        A damaged file.
    """
    by_label: dict[str, list[dict[str, Any]]] = {}
    order: dict[str, Any] = {}
    for directory in runs:
        files = sorted(Path(directory).glob("seed-*/alpha-*/chain.json"))
        if not files:
            raise FileNotFoundError(
                f"no trained chain in {directory}: give a directory that "
                "'selfdistill-fast train --out' wrote"
            )
        for file in files:
            try:
                chain = json.loads(file.read_text(encoding="utf-8"))
                alpha = chain["alpha"]
                label = (
                    ALPHA_HAT if alpha == "optimal" else chain_name(alpha).replace("alpha-", "α = ")
                )
                by_label.setdefault(label, []).append(chain)
                order[label] = math.inf if alpha == "optimal" else float(np.ravel(alpha)[0])
            except (ValueError, KeyError, TypeError, IndexError) as error:
                raise ValueError(
                    f"{file} is damaged ({error!r}); train that chain again"
                ) from error
    result = {}
    for label in sorted(by_label, key=lambda name: (order[name], name)):
        chains = by_label[label]
        longest = max(len(chain["steps"]) for chain in chains)

        def table(key: str, chains: Any = chains, longest: int = longest) -> np.ndarray:
            out = np.full((len(chains), longest), np.nan)
            for row, chain in zip(out, chains, strict=True):
                values = [step[key] for step in chain["steps"]]
                row[: len(values)] = [math.nan if v is None else v for v in values]
            return out

        result[label] = {
            "alpha": table("alpha"),
            "train": table("train_accuracy"),
            "val": table("val_accuracy"),
        }
    return result


@contextmanager
def _alone(out: Path, world: World) -> Iterator[None]:
    """Only one run at a time writes to a directory."""
    if world.rank > 0:
        yield
        return
    out.mkdir(parents=True, exist_ok=True)
    try:
        lock = locked(out / ".lock")
    except BlockingIOError:
        raise ValueError(
            f"another process is training in {out}: wait for it, or give another directory"
        ) from None
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


def _tensorboard(out: Path, world: World) -> list[Callable[[dict[str, Any]], None]]:
    """A callback that writes RUN/tensorboard, if tensorboard is installed."""
    if world.rank > 0 or importlib.util.find_spec("tensorboard") is None:
        return []
    from torch.utils.tensorboard import SummaryWriter

    writers: dict[str, Any] = {}

    def tell(about: Mapping[str, Any]) -> None:
        if about["event"] not in ("begin", "epoch", "done"):
            return
        role = "-student" if about["role"] == "student" else ""
        name = f"seed-{about['seed']}/{about['chain']}/step-{about['step']}{role}"
        if about["event"] == "begin":
            # entries that a killed run wrote after its last checkpoint are dropped
            writers[name] = SummaryWriter(
                str(out / "tensorboard" / name), purge_step=len(about["history"]) + 1
            )
        elif about["event"] == "epoch":
            for key in ("loss", "accuracy", "val_loss", "val_accuracy", "images_per_second"):
                writers[name].add_scalar(key, about[key], about["epoch"])
        else:
            writers.pop(name).close()

    return [tell]
