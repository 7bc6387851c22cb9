"""Data sets: digits, CIFAR-10, a tree of images."""

from __future__ import annotations

import hashlib
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import TensorDataset

from selfdistill_fast.trainer.checkpoint import read, write
from selfdistill_fast.trainer.data.images import ImageSet

__all__ = ["load_cifar10", "load_digits", "load_folder"]

CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.2023, 0.1994, 0.2010)
_CACHE = ".selfdistill_fast-images.pt"


def load_digits(*, seed: int = 0) -> tuple[TensorDataset, TensorDataset]:
    """scikit-learn's handwritten digits, a substitute where CIFAR-10 is not available.

    Parameters
    ----------
    seed : int
        Seed of the stratified split.

    Returns
    -------
    train, val : TensorDataset
        1347 and 450 images, float32 of shape (n, 1, 8, 8) in [0, 1], with labels 0 to 9.

    Examples
    --------
    >>> train, val = load_digits()
    >>> len(train), len(val), train[0][0].shape
    (1347, 450, torch.Size([1, 8, 8]))
    """
    from sklearn import datasets
    from sklearn.model_selection import train_test_split

    digits = datasets.load_digits()
    X = (digits.images[:, None] / 16.0).astype(np.float32)
    parts = train_test_split(
        X, digits.target, test_size=0.25, random_state=seed, stratify=digits.target
    )
    X_train, X_val, y_train, y_val = (torch.from_numpy(np.ascontiguousarray(a)) for a in parts)
    return TensorDataset(X_train, y_train.long()), TensorDataset(X_val, y_val.long())


def load_cifar10(root: Any, source: str = "torchvision") -> tuple[ImageSet, ImageSet]:
    """CIFAR-10 as bytes in memory.

    Parameters
    ----------
    root : path
        Location of the data, existing or to be downloaded.
    source : "torchvision" or "folder"
        "torchvision": torchvision's files below ``root``, downloaded and verified if they are
        missing. "folder": a tree ``root/train/CLASS/*.jpg``, ``root/test/CLASS/*.jpg``, as for
        :func:`load_folder`.

    Returns
    -------
    train, val : ImageSet
        50,000 and 10,000 images of 32 × 32 pixels; the test set is the validation set, as in
        the paper.

    Raises
    ------
    FileNotFoundError
        The data do not exist and cannot be downloaded.
    ValueError
        Unknown ``source``, or a tree that is not CIFAR-10.
    """
    if source == "folder":
        train, val = load_folder(root)
        for data in (train, val):
            if len(data.classes) != 10 or data.images.shape[1:] != (32, 32, 3):
                raise ValueError(
                    f"{root} is not CIFAR-10: {len(data.classes)} classes of images of shape "
                    f"{tuple(data.images.shape[1:])}, expected 10 of (32, 32, 3)"
                )
        return train, val
    if source != "torchvision":
        raise ValueError(f"source must be 'torchvision' or 'folder', got {source!r}")
    _need_torchvision()
    from torchvision.datasets import CIFAR10

    sets = []
    for train_part in (True, False):
        try:
            raw = CIFAR10(str(root), train=train_part, download=True)
        except (OSError, RuntimeError) as error:
            raise FileNotFoundError(
                f"no CIFAR-10 in {root}, and it cannot be downloaded ({error}). Put torchvision's "
                "cifar-10-batches-py there, or unpack the images as train/CLASS/*.jpg and "
                "test/CLASS/*.jpg and use source='folder'"
            ) from error
        sets.append(ImageSet(raw.data, raw.targets, raw.classes, CIFAR10_MEAN, CIFAR10_STD))
    return sets[0], sets[1]


def load_folder(root: Any) -> tuple[ImageSet, ImageSet]:
    """Images of ``root/train/CLASS/*`` and ``root/val/CLASS/*`` (or ``test``), as bytes.

    The decoded images are cached in one file in ``root`` and read from there as long as the tree
    has the same files. If ``root`` is not writable, they are decoded every time.

    Parameters
    ----------
    root : path

    Returns
    -------
    train, val : ImageSet
        Normalised by the mean and deviation of the paper's CIFAR-10 experiment.

    Raises
    ------
    FileNotFoundError
        The tree does not exist, or a class has no images.
    ValueError
        Images of different sizes, different classes in the two parts, a file that is not an image.
    """
    _need_torchvision()
    from torchvision.datasets import ImageFolder

    root = Path(root)
    parts = [root / "train", root / ("val" if (root / "val").is_dir() else "test")]
    for part in parts:
        if not part.is_dir():
            raise FileNotFoundError(
                f"no images in {root}: expected the directories train/CLASS/* and val/CLASS/* "
                "(or test/CLASS/*)"
            )
    folders = [ImageFolder(str(part)) for part in parts]
    if folders[0].classes != folders[1].classes:
        raise ValueError(
            f"{parts[0]} and {parts[1]} have different classes: "
            f"{sorted(set(folders[0].classes) ^ set(folders[1].classes))}"
        )
    listing = hashlib.blake2b(digest_size=16)
    for folder in folders:
        for file, _ in folder.samples:
            about = os.stat(file)
            name = os.path.relpath(file, root)
            listing.update(f"{name}\0{about.st_size}\0{about.st_mtime_ns}\n".encode())
    cache, key = root / _CACHE, listing.hexdigest()
    try:
        stored = read(cache)
    except ValueError:  # damaged: made again
        stored = None
    if stored is None or stored.get("listing") != key:
        images = [_decode([file for file, _ in folder.samples]) for folder in folders]
        stored = {
            "listing": key,
            "images": images,
            "labels": [torch.tensor(folder.targets) for folder in folders],
        }
        try:
            write(cache, stored)
        except OSError as error:
            warnings.warn(f"the decoded images are not cached: {error}", stacklevel=2)
    sets = [
        ImageSet(images, labels, folders[0].classes, CIFAR10_MEAN, CIFAR10_STD)
        for images, labels in zip(stored["images"], stored["labels"], strict=True)
    ]
    return sets[0], sets[1]


def _decode(files: list[str]) -> torch.Tensor:
    """(n, H, W, 3) bytes of image files of one size."""
    from PIL import Image, UnidentifiedImageError

    def decode(file: str) -> np.ndarray:
        try:
            with Image.open(file) as image:
                return np.asarray(image.convert("RGB"))
        except (UnidentifiedImageError, OSError) as error:
            raise ValueError(f"{file} cannot be read as an image: {error}") from error

    first = decode(files[0])
    out = np.empty((len(files), *first.shape), dtype=np.uint8)
    with ThreadPoolExecutor() as pool:  # decoding releases the interpreter lock
        for i, image in enumerate(pool.map(decode, files, chunksize=256)):
            if image.shape != first.shape:
                raise ValueError(
                    f"images must have one size: {files[0]} is {first.shape[:2]}, "
                    f"{files[i]} is {image.shape[:2]}"
                )
            out[i] = image
    return torch.from_numpy(out)


def _need_torchvision() -> None:
    try:
        import torchvision  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "images need torchvision; install the extra: pip install 'selfdistill_fast[torch]'"
        ) from error
