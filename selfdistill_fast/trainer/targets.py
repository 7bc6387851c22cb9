"""Matching the outputs of a network to the targets of the data, in number and kind."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import nn

from selfdistill_fast.trainer.data import Source
from selfdistill_fast.trainer.settings import Settings

__all__ = ["bind", "truth_of", "width_of"]


def width_of(settings: Settings, source: Source, template: nn.Module) -> int:
    """Number of outputs of a network, determined by trying it on two rows of data."""
    model = copy.deepcopy(template).to(settings.device, settings.dtype).eval()
    rows = torch.arange(min(2, source.n))
    raw = source.inputs_at(rows)
    try:
        with torch.inference_mode(), settings.autocast():
            out = model(source.network_input(raw))
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        raise ValueError(
            f"the model does not accept inputs of shape {source.sample_shape}, those of the "
            f"{source.name} set: {error}"
        ) from error
    if not isinstance(out, torch.Tensor) or out.ndim not in (1, 2) or len(out) != len(rows):
        shape = tuple(out.shape) if isinstance(out, torch.Tensor) else type(out).__name__
        raise ValueError(
            f"the model must return (b, p) for b inputs, or (b,); got {shape} for {len(rows)}"
        )
    return 1 if out.ndim == 1 else out.shape[1]


def bind(sources: list[Source], width: int, output: str, n_classes: int | None) -> None:
    """Determine the encoding of all sources' targets for a network with ``width`` outputs."""
    labels = [y for y in (s.labels() for s in sources) if y is not None]
    if labels and (output == "softmax" or width > 1):
        low = min(int(y.min()) for y in labels)
        if low < 0:
            raise ValueError(f"labels out of range: they count from 0, found {low}")
        known = n_classes or sources[0].classes
        highest = max(int(y.max()) for y in labels)
        if highest >= (known or width):
            why = f"there are {known} classes" if known else f"the model has {width} output(s)"
            raise ValueError(
                f"labels out of range: {why}, so labels are 0 to {(known or width) - 1}; found "
                f"{highest}"
            )
        classes = known or highest + 1
        if width != classes:
            raise ValueError(
                f"the model has {width} output(s), but there are {classes} classes (labels 0 "
                f"to {classes - 1}); give it as many outputs"
                + ("" if known else ", or n_classes if some do not occur")
            )
    for source in sources:
        source.bind(width, output)
    if output == "softmax" and width == 1:
        raise ValueError(
            "a softmax over one output is always 1; use output='identity' for regression, "
            "or a model with an output for each class"
        )
    if len({source.labelled for source in sources}) > 1:
        raise ValueError(
            "targets of the training and the validation set must both be labels, or both numbers"
        )


def truth_of(source: Source | None) -> np.ndarray:
    """Targets (m, p) of a source."""
    assert source is not None
    rows = torch.arange(source.n).split(1024)
    return torch.cat([y.cpu() for _, y, _ in source.batches(rows)]).numpy()
