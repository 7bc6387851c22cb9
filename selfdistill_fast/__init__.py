"""The fast, exact engine for self-distillation.

Data flows one way; modules that begin with an underscore are not public::

    kernels → _gram → _solvers → _chain → estimators · _sweep → cli
       └─ _backend: reference | cpu | gpu ─┘      alpha ← _chain, trainer

Every self-distilled kernel ridge regression is a filter on one eigendecomposition (Borup &
Andersen 2021). Factorise once with :func:`spectrum`; every λ, every ground-truth weight α and
every number of steps then costs only a few vector operations.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from selfdistill_fast._chain.assembly import distill
from selfdistill_fast._chain.constrained import constrained_path
from selfdistill_fast._chain.filters import limit_shrinkage, shrinkage_path
from selfdistill_fast._chain.leave_out import leave_fold_out, leave_one_out
from selfdistill_fast._chain.path import DistillationPath, load
from selfdistill_fast._gram import gram, gram_matmul, gram_sweep
from selfdistill_fast._solvers import Plan, Spectrum, plan, spectrum
from selfdistill_fast._sweep.result import SweepResult
from selfdistill_fast._sweep.run import sweep
from selfdistill_fast.alpha import (
    alphas_to_weights,
    joint_weights,
    optimal_alpha,
    weights_to_alphas,
)
from selfdistill_fast.kernels import (
    NTK,
    RBF,
    Features,
    Kernel,
    Laplacian,
    Linear,
    Matern,
    Polynomial,
)

__all__ = [
    "NTK",
    "RBF",
    "DistillationPath",
    "Features",
    "Kernel",
    "Laplacian",
    "Linear",
    "Matern",
    "Plan",
    "Polynomial",
    "SelfDistilledKernelRidge",
    "SelfDistilledKernelRidgeCV",
    "SelfDistilledKernelRidgeClassifier",
    "SelfDistilledKernelRidgeClassifierCV",
    "Spectrum",
    "SweepResult",
    "alphas_to_weights",
    "constrained_path",
    "distill",
    "gram",
    "gram_matmul",
    "gram_sweep",
    "joint_weights",
    "leave_fold_out",
    "leave_one_out",
    "limit_shrinkage",
    "load",
    "optimal_alpha",
    "plan",
    "show_config",
    "shrinkage_path",
    "spectrum",
    "sweep",
    "weights_to_alphas",
]

if TYPE_CHECKING:  # what _LAZY imports, for editors
    from selfdistill_fast._config import show_config
    from selfdistill_fast.estimators import (
        SelfDistilledKernelRidge,
        SelfDistilledKernelRidgeClassifier,
        SelfDistilledKernelRidgeClassifierCV,
        SelfDistilledKernelRidgeCV,
    )

#: names that need more than NumPy and SciPy; imported on first use
_LAZY = {
    "SelfDistilledKernelRidge": "selfdistill_fast.estimators",
    "SelfDistilledKernelRidgeCV": "selfdistill_fast.estimators",
    "SelfDistilledKernelRidgeClassifier": "selfdistill_fast.estimators",
    "SelfDistilledKernelRidgeClassifierCV": "selfdistill_fast.estimators",
    "show_config": "selfdistill_fast._config",
}


if not TYPE_CHECKING:  # a type checker would take any name for one of ours

    def __getattr__(name: str) -> Any:
        if name == "__version__":
            from importlib.metadata import version

            return version("selfdistill_fast")
        if name in _LAZY:
            from importlib import import_module

            value = getattr(import_module(_LAZY[name]), name)
            globals()[name] = value
            return value
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY, "__version__"])
