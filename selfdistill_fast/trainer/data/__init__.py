"""Training data: images and their augmentation, data sets, sources of batches."""

from __future__ import annotations

from selfdistill_fast.trainer.data.images import CropFlip, ImageSet
from selfdistill_fast.trainer.data.sets import (
    CIFAR10_MEAN,
    CIFAR10_STD,
    load_cifar10,
    load_digits,
    load_folder,
)
from selfdistill_fast.trainer.data.sources import Source, as_source

__all__ = [
    "CIFAR10_MEAN",
    "CIFAR10_STD",
    "CropFlip",
    "ImageSet",
    "Source",
    "as_source",
    "load_cifar10",
    "load_digits",
    "load_folder",
]
