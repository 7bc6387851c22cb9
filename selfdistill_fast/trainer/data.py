"""Training data where the network is: sources of batches, augmentation, CIFAR-10, digits.

A source hands out batches by row numbers, so that order, targets and predictions belong
together whatever the data are:

* arrays, tensors, ``TensorDataset``, :class:`ImageSet` and subsets of these are *resident*: on
  the device as they are (images as uint8, rows × height × width × channels, so that a gathered
  batch is channels-last without a copy), converted and augmented there a batch at a time;
* any other map-style ``Dataset`` is read through torch's ``DataLoader``.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from selfdistill_fast.trainer.checkpoint import read, write

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

CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.2023, 0.1994, 0.2010)
_CACHE = ".selfdistill_fast-images.pt"


# ------------------------------------------------------------------ what a user holds
class ImageSet(Dataset):
    """Images as bytes with their labels; kept on the device by the trainer.

    Parameters
    ----------
    images : uint8 array or tensor of shape (n, H, W, C)
    labels : integer array or tensor of shape (n,)
    classes : sequence of str
        Names of the classes 0, 1, ….
    mean, std : sequences of C floats
        The network sees (image / 255 − mean) / std.

    Raises
    ------
    ValueError
        Wrong shapes or types, or labels that are no class.

    Examples
    --------
    >>> images = np.zeros((5, 8, 8, 3), dtype=np.uint8)
    >>> data = ImageSet(images, [0, 1, 0, 1, 0], ["cat", "dog"], (0.5,) * 3, (0.25,) * 3)
    >>> len(data), data[0][0].shape, data.take([1, 3]).labels.tolist()
    (5, torch.Size([3, 8, 8]), [1, 1])
    """

    def __init__(
        self,
        images: Any,
        labels: Any,
        classes: Sequence[str],
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        self.images = torch.as_tensor(images)
        self.labels = torch.as_tensor(labels)
        self.classes = list(classes)
        self.mean, self.std = tuple(mean), tuple(std)
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise ValueError(
                "images must be uint8 of shape (n, H, W, C), got "
                f"{self.images.dtype} of shape {tuple(self.images.shape)}"
            )
        channels = self.images.shape[3]
        if not len(self.mean) == len(self.std) == channels:
            raise ValueError(
                f"images have {channels} channel(s), mean {len(self.mean)} and std {len(self.std)}"
            )
        if self.labels.shape != self.images.shape[:1] or self.labels.is_floating_point():
            raise ValueError(
                f"{len(self.images)} images need as many integer labels, got labels of shape "
                f"{tuple(self.labels.shape)}, {self.labels.dtype}"
            )
        self.labels = self.labels.long()
        _check_labels(self.labels, len(self.classes), "labels")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        scale, shift = self.normaliser()
        x = self.images[i].permute(2, 0, 1) * scale[:, None, None] + shift[:, None, None]
        return x.float(), int(self.labels[i])

    def take(self, rows: Any) -> ImageSet:
        """The images of these rows, as an ImageSet."""
        rows = torch.as_tensor(rows)
        return ImageSet(self.images[rows], self.labels[rows], self.classes, self.mean, self.std)

    def normaliser(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale and shift of each channel, (C,) each: the network sees byte · scale + shift."""
        mean, std = (torch.tensor(v, dtype=torch.float64) for v in (self.mean, self.std))
        return 1.0 / (255.0 * std), -mean / std


class CropFlip:
    """Random crop after zero padding, and random horizontal flip, of a batch on its device.

    Each image of the batch draws its own crop and flip.

    Parameters
    ----------
    padding : int
        Zeros around the image; the crop has its original size.
    flip : bool

    Examples
    --------
    >>> x = torch.arange(2 * 3 * 8 * 8).reshape(2, 3, 8, 8)
    >>> CropFlip(padding=2)(x, torch.Generator().manual_seed(0)).shape
    torch.Size([2, 3, 8, 8])
    """

    def __init__(self, padding: int = 4, flip: bool = True) -> None:
        self.padding, self.flip = padding, flip

    def __repr__(self) -> str:
        return f"CropFlip(padding={self.padding}, flip={self.flip})"

    def __call__(self, x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Augment (b, C, H, W), of any dtype, with random numbers of ``generator``."""
        b, _, height, width = x.shape
        p, device = self.padding, x.device
        top, left = torch.randint(2 * p + 1, (2, b, 1), generator=generator, device=device)
        rows = top + torch.arange(height, device=device)
        columns = left + torch.arange(width, device=device)
        if self.flip:
            mirrored = torch.rand((b, 1), generator=generator, device=device) < 0.5
            columns = torch.where(mirrored, columns.flip(1), columns)
        # one gather, in the channels-last order of the stored images
        padded = functional.pad(x.permute(0, 2, 3, 1), (0, 0, p, p, p, p))
        images = torch.arange(b, device=device)
        cropped = padded[images[:, None, None], rows[:, :, None], columns[:, None, :]]
        return cropped.permute(0, 3, 1, 2)


# ------------------------------------------------------------------ sources of batches
def _check_labels(labels: torch.Tensor, n_classes: int, name: str) -> None:
    if len(labels) and not (int(labels.min()) >= 0 and int(labels.max()) < n_classes):
        raise ValueError(
            f"{name} out of range: with {n_classes} classes labels are 0 to {n_classes - 1}, found "
            f"{int(labels.min())} to {int(labels.max())}"
        )


class Source:
    """Batches of one data set; made by :func:`as_source`.

    Attributes
    ----------
    n : int
    name : str
        What error messages call it.
    sample_shape : tuple
        Shape of one input, as the network sees it.
    classes : int or None
        Number of classes where the data know it.
    labelled : bool
        Integer labels (set by :meth:`bind`), else rows of numbers.
    classification : bool
        The largest of the targets is the class: accuracy means something.
    channels_last : bool
    """

    n: int
    name: str
    sample_shape: tuple[int, ...]
    classes: int | None = None
    channels_last = False
    labelled = False
    classification = False
    one_target = False

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype

    def batches(
        self, rows: Sequence[torch.Tensor]
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Raw inputs, targets (b, p) and row numbers, on the device, of each batch of rows."""
        raise NotImplementedError

    def inputs_at(self, rows: torch.Tensor) -> torch.Tensor:
        """Raw inputs of these rows, on the device."""
        raise NotImplementedError

    def labels(self) -> torch.Tensor | None:
        """Integer targets (n,), where they are that and at hand."""
        raise NotImplementedError

    def bind(self, width: int, output: str) -> None:
        """Settle how targets are encoded for a network with ``width`` outputs."""
        raise NotImplementedError

    def network_input(self, x: torch.Tensor) -> torch.Tensor:
        """Raw inputs as the network takes them."""
        return x.to(self.dtype)

    def fingerprint(self) -> str:
        """Tells data sets apart, for checkpoints."""
        raise NotImplementedError

    def _encode(self, y: torch.Tensor, width: int) -> torch.Tensor:
        """Targets (b, width) of a batch of raw targets."""
        if self.labelled:
            return functional.one_hot(y, width).to(self.dtype)
        return y.to(self.dtype).reshape(len(y), width)

    def _kind(self, y: torch.Tensor, width: int, output: str) -> None:
        """Labels or numbers? y holds targets of all rows, or of some."""
        name = f"targets of the {self.name} set"
        integers = not y.is_floating_point() and not y.is_complex() and y.ndim == 1
        self.labelled = integers and (output == "softmax" or width > 1)
        self.classification = self.labelled or output == "softmax"
        self.one_target = not self.labelled and y.ndim == 1
        if self.labelled:
            return
        if y.ndim not in (1, 2) or y.is_complex():
            raise ValueError(
                f"{name} must be labels (n,) or numbers (n,) or (n, p), got shape {tuple(y.shape)}"
            )
        columns = 1 if y.ndim == 1 else y.shape[1]
        if columns != width:
            raise ValueError(
                f"the model has {width} output(s), {name} have {columns} column(s); "
                "they must be as many"
            )


class Resident(Source):
    """Data that stay on the device."""

    def __init__(
        self,
        inputs: torch.Tensor,
        targets: torch.Tensor | None,
        name: str,
        device: torch.device,
        dtype: torch.dtype,
        *,
        normaliser: tuple[torch.Tensor, torch.Tensor] | None = None,
        images: bool = False,
        classes: int | None = None,
    ) -> None:
        super().__init__(device, dtype)
        if inputs.ndim == 0:
            raise ValueError(f"inputs of the {name} set must be an array, got one number")
        self.n, self.name, self.classes = len(inputs), name, classes
        self._host = inputs, targets
        for what, tensor in (("inputs", inputs), ("targets", targets)):
            if tensor is not None and not bool(torch.isfinite(tensor).all()):
                raise ValueError(f"{what} of the {name} set contain NaN or infinity")
        if targets is not None and (targets.ndim == 0 or len(targets) != self.n):
            raise ValueError(
                f"the {name} set has {self.n} inputs and targets of shape {tuple(targets.shape)}"
            )
        self.images = images
        shape = tuple(inputs.shape[1:])
        self.sample_shape = (shape[2], *shape[:2]) if images else shape
        self.channels_last = images or (device.type == "cuda" and len(shape) == 3)
        # more than half of the free memory stays on the host, and batches travel
        place = device
        if device.type == "cuda":
            free = torch.cuda.mem_get_info(device)[0]
            if inputs.numel() * inputs.element_size() > free // 2:
                place = torch.device("cpu")
        if inputs.is_floating_point():
            inputs = inputs.to(dtype)
        self.inputs = inputs.to(place)
        if normaliser is None and inputs.dtype == torch.uint8:
            normaliser = tuple(torch.tensor([1.0 / 255.0, 0.0], dtype=torch.float64))
        self.normaliser = normaliser
        if normaliser is not None:
            lift = (slice(None), None, None) if normaliser[0].ndim else ()
            self._scale, self._shift = (v.to(device, dtype)[lift] for v in normaliser)

    def bind(self, width: int, output: str) -> None:
        self.width = width
        y = self._host[1]
        if y is None:
            return
        self._kind(y, width, output)
        if self.labelled:
            _check_labels(y, width, f"labels of the {self.name} set")
            y = y.long()
        self.targets = y.to(self.device) if self.labelled else y.to(self.device, self.dtype)

    def labels(self) -> torch.Tensor | None:
        y = self._host[1]
        return y if y is not None and y.ndim == 1 and not y.is_floating_point() else None

    def batches(
        self, rows: Sequence[torch.Tensor]
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        sizes = [len(batch) for batch in rows]
        order = torch.cat(list(rows)).to(self.inputs.device)
        on_device = order.to(self.device)
        for here, batch in zip(order.split(sizes), on_device.split(sizes), strict=True):
            if self._host[1] is None:
                y = torch.empty(0)
            else:
                y = self._encode(self.targets[batch], self.width)
            yield self.inputs_at(here), y, batch

    def inputs_at(self, rows: torch.Tensor) -> torch.Tensor:
        x = self.inputs[rows].to(self.device)
        return x.permute(0, 3, 1, 2) if self.images else x

    def network_input(self, x: torch.Tensor) -> torch.Tensor:
        x = x.to(self.dtype)
        if self.normaliser is not None:
            x = torch.addcmul(self._shift, x, self._scale)
        if self.channels_last and x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        return x

    def fingerprint(self) -> str:
        digest = hashlib.blake2b(digest_size=16)
        for tensor in self._host:
            if tensor is not None:
                array = tensor.detach().cpu().contiguous().numpy()
                digest.update(f"{array.dtype}{array.shape}".encode())
                digest.update(array.reshape(-1).view(np.uint8).data)
        return digest.hexdigest()


class Stream(Source):
    """Any map-style Dataset of (input, target), through a DataLoader."""

    def __init__(
        self,
        dataset: Any,
        name: str,
        device: torch.device,
        dtype: torch.dtype,
        num_workers: int,
        with_targets: bool,
    ) -> None:
        super().__init__(device, dtype)
        self.dataset, self.num_workers, self.name = dataset, num_workers, name
        self.with_targets = with_targets
        self.n = len(dataset)
        classes = getattr(dataset, "classes", None)
        self.classes = None if classes is None else len(classes)
        if self.n:
            x, _ = self._pair(dataset[0])
            self.sample_shape = tuple(torch.as_tensor(x).shape)
            self.channels_last = device.type == "cuda" and len(self.sample_shape) == 3

    def _pair(self, sample: Any) -> tuple[Any, Any]:
        if not isinstance(sample, (tuple, list)):
            if self.with_targets:
                raise TypeError(
                    f"the {self.name} set must yield (input, target), got {type(sample).__name__}"
                )
            sample = sample, torch.empty(0)
        if not isinstance(sample[0], (torch.Tensor, np.ndarray)):
            raise TypeError(
                f"inputs of the {self.name} set must be tensors or arrays, got "
                f"{type(sample[0]).__name__}; give the data set a transform that ends in a tensor"
            )
        return sample[0], sample[1]

    def inputs_at(self, rows: torch.Tensor) -> torch.Tensor:
        samples = [torch.as_tensor(self._pair(self.dataset[i])[0]) for i in rows.tolist()]
        return torch.stack(samples).to(self.device)

    def labels(self) -> torch.Tensor | None:
        targets = getattr(self.dataset, "targets", None)
        if targets is None:
            return None
        y = torch.as_tensor(targets)
        return y if y.ndim == 1 and not y.is_floating_point() else None

    def bind(self, width: int, output: str) -> None:
        self.width = width
        if self.with_targets:
            y = torch.as_tensor(self._pair(self.dataset[0])[1])
            self._kind(y[None], width, output)

    def batches(
        self, rows: Sequence[torch.Tensor]
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        loader = DataLoader(
            self.dataset,
            batch_sampler=[batch.tolist() for batch in rows],  # type: ignore[arg-type]
            num_workers=self.num_workers,
            pin_memory=self.device.type == "cuda",
            # never drawn from, but a loader without one takes a number from the global stream
            generator=torch.Generator().manual_seed(torch.initial_seed() % 2**63),
        )
        for batch, sample in zip(rows, loader, strict=True):
            x, y = self._pair(sample)
            x, batch = torch.as_tensor(x), batch.to(self.device)
            y = torch.as_tensor(y)
            if self.with_targets:
                if self.labelled:
                    _check_labels(y, self.width, f"labels of the {self.name} set")
                elif not bool(torch.isfinite(y).all()):
                    raise ValueError(f"targets of the {self.name} set contain NaN or infinity")
                y = self._encode(y.to(self.device, non_blocking=True), self.width)
            yield x.to(self.device, non_blocking=True), y, batch

    def network_input(self, x: torch.Tensor) -> torch.Tensor:
        if x.dtype == torch.uint8:
            return x.to(self.dtype) / 255.0
        x = x.to(self.dtype)
        return x.contiguous(memory_format=torch.channels_last) if self.channels_last else x

    def fingerprint(self) -> str:
        # its rows may be random or large: kind, size and shape must do
        return f"{type(self.dataset).__name__} {self.n} {self.sample_shape}"


def as_source(
    data: Any,
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    *,
    num_workers: int = 0,
    like: Source | None = None,
    with_targets: bool = True,
) -> Source:
    """A source of the batches of whatever a user gives.

    Parameters
    ----------
    data : (X, y), ImageSet, TensorDataset, Dataset, or X alone without targets
    name : str
        What error messages call it.
    device, dtype
        Where and in what the network computes.
    num_workers : int
        Of a DataLoader.
    like : Source, optional
        The training set: inputs are brought to the same scale and must have its shape.
    with_targets : bool
        False: only inputs are wanted.

    Returns
    -------
    Source

    Raises
    ------
    TypeError, ValueError
        Not data, of no rows, not finite, or of another shape than ``like``.
    """
    rows: Any = None
    dataset = data
    while isinstance(dataset, Subset):
        indices = torch.as_tensor(dataset.indices)
        rows = indices if rows is None else indices[rows]
        dataset = dataset.dataset
    normaliser = like.normaliser if isinstance(like, Resident) else None
    source: Source
    if isinstance(dataset, IterableDataset):
        raise TypeError(
            f"the {name} set is an IterableDataset, whose rows have no numbers; "
            "give one with __len__ and __getitem__"
        )
    if isinstance(dataset, ImageSet):
        x, y = dataset.images, dataset.labels
        options: dict[str, Any] = {
            "normaliser": dataset.normaliser(),
            "images": True,
            "classes": len(dataset.classes),
        }
    elif isinstance(dataset, TensorDataset):
        if len(dataset.tensors) != 2 and with_targets:
            raise ValueError(
                f"the {name} set must hold inputs and targets, got {len(dataset.tensors)} tensors"
            )
        x, y = dataset.tensors[0], dataset.tensors[-1]
        options = {"normaliser": normaliser}
    elif isinstance(data, (tuple, list)) and len(data) == 2:
        x, y = (_tensor(part, name) for part in data)
        options = {"normaliser": normaliser}
    elif isinstance(data, (np.ndarray, torch.Tensor)) and not with_targets:
        x = y = _tensor(data, name)
        options = {"normaliser": normaliser}
    elif isinstance(data, (np.ndarray, torch.Tensor, str, dict, list, tuple)) or not (
        hasattr(data, "__getitem__") and hasattr(data, "__len__")
    ):
        raise TypeError(
            f"the {name} set must be (X, y) or a Dataset with __len__ and __getitem__, got "
            f"{type(data).__name__}"
        )
    else:
        x = None
    if x is None:
        source = Stream(data, name, device, dtype, num_workers, with_targets)
    else:
        if rows is not None:
            x, y = x[rows], y[rows]
        source = Resident(x, y if with_targets else None, name, device, dtype, **options)
    if source.n == 0:
        raise ValueError(f"the {name} set is empty: it must have at least one row")
    if like is not None and source.sample_shape != like.sample_shape:
        raise ValueError(
            f"inputs of the {name} set have shape {source.sample_shape}, those of the training "
            f"set {like.sample_shape}"
        )
    return source


def _tensor(part: Any, name: str) -> torch.Tensor:
    if isinstance(part, torch.Tensor):
        return part.detach()
    array = np.asarray(part)
    if array.dtype == bool:
        array = array.astype(np.int64)
    if array.dtype.kind not in "iuf":
        raise TypeError(f"the {name} set must be made of numbers, got dtype {array.dtype}")
    if array.dtype.kind == "u" and array.dtype != np.uint8:
        array = array.astype(np.int64)
    if not array.flags.writeable or any(stride < 0 for stride in array.strides):
        array = array.copy()  # torch shares writable memory only
    return torch.from_numpy(array)


# ------------------------------------------------------------------ data sets
def load_digits(*, seed: int = 0) -> tuple[TensorDataset, TensorDataset]:
    """scikit-learn's handwritten digits, a stand-in where there is no CIFAR-10.

    Parameters
    ----------
    seed : int
        Of the stratified split.

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
        Where the data are, or go to.
    source : "torchvision" or "folder"
        "torchvision": its own files below ``root``, downloaded and checked where they are
        missing. "folder": a tree ``root/train/CLASS/*.jpg``, ``root/test/CLASS/*.jpg``, as
        :func:`load_folder` takes it.

    Returns
    -------
    train, val : ImageSet
        50,000 and 10,000 images of 32 × 32 pixels; the test set is the validation set, as in
        the paper.

    Raises
    ------
    FileNotFoundError
        The data are not there and cannot be downloaded.
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

    The decoded images are kept in one file in ``root`` and read from there as long as the tree has
    the same files; where ``root`` cannot be written they are decoded every time.

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
        There is no such tree, or a class without images.
    ValueError
        Images of different sizes, other classes in the two parts, a file that is no image.
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
            warnings.warn(f"the decoded images are not kept: {error}", stacklevel=2)
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
