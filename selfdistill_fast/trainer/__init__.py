"""Self-distillation of neural networks with the optimal α of this package (Section 5).

Needs the extra ``torch``; nothing else in the package imports it. Data flows one way::

    data/ → loop (one fit) → chain (steps, α̂) → experiment (seeds × chains) → cli
      objective, settings ─┤       ├─ ../alpha: eq. (16)
      parallel, checkpoint ┘       └─ targets (outputs ↔ targets), identity (what may continue)
    models: networks of the command line      ntk: a network's own kernel, for the exact engine
"""

from __future__ import annotations

try:
    import torch  # noqa: F401
except ImportError as error:
    raise ImportError(
        "selfdistill_fast.trainer needs torch; install the extra: "
        "pip install 'selfdistill_fast[torch]'"
    ) from error

from selfdistill_fast.trainer.chain import SelfDistillation, step_seed
from selfdistill_fast.trainer.data import CropFlip, ImageSet, load_cifar10, load_digits, load_folder
from selfdistill_fast.trainer.fit import Fit
from selfdistill_fast.trainer.ntk import empirical_ntk_gram

__all__ = [
    "CropFlip",
    "Fit",
    "ImageSet",
    "SelfDistillation",
    "empirical_ntk_gram",
    "load_cifar10",
    "load_digits",
    "load_folder",
    "step_seed",
]
