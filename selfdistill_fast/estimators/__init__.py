"""scikit-learn estimators on top of spectrum, distill and leave_one_out."""

from selfdistill_fast.estimators.classifier import (
    SelfDistilledKernelRidgeClassifier,
    SelfDistilledKernelRidgeClassifierCV,
)
from selfdistill_fast.estimators.cross_validated import SelfDistilledKernelRidgeCV
from selfdistill_fast.estimators.regressor import SelfDistilledKernelRidge

__all__ = [
    "SelfDistilledKernelRidge",
    "SelfDistilledKernelRidgeCV",
    "SelfDistilledKernelRidgeClassifier",
    "SelfDistilledKernelRidgeClassifierCV",
]
