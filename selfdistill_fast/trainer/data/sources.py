"""Sources of batches: training data on the network's device.

A source returns batches by row numbers, so that order, targets and predictions correspond for
every kind of data:

* arrays, tensors, ``TensorDataset``, :class:`ImageSet` and subsets of these are *resident*: on
  the device in their original form (images as uint8, rows × height × width × channels, so that a
  gathered batch is channels-last without a copy), converted and augmented there batch by batch;
* any other map-style ``Dataset`` is read through torch's ``DataLoader``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset

from selfdistill_fast.trainer.data.images import ImageSet, check_labels

__all__ = ["Source", "as_source"]


class Source:
    """Batches of one data set; made by :func:`as_source`.

    Attributes
    ----------
    n : int
    name : str
        Its name in error messages.
    sample_shape : tuple
        Shape of one input, as the network sees it.
    classes : int or None
        Number of classes, if the data specify it.
    labelled : bool
        Whether targets are integer labels (set by :meth:`bind`), else rows of numbers.
    classification : bool
        Whether the largest target is the class, so that accuracy is meaningful.
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
        """Integer targets (n,), if targets are integers and in memory."""
        raise NotImplementedError

    def bind(self, width: int, output: str) -> None:
        """Determine the encoding of targets for a network with ``width`` outputs."""
        raise NotImplementedError

    def network_input(self, x: torch.Tensor) -> torch.Tensor:
        """Raw inputs converted to the network's inputs."""
        return x.to(self.dtype)

    def fingerprint(self) -> str:
        """A digest that distinguishes data sets, for checkpoints."""
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
    """Data held on the device."""

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
        # data larger than half of the free memory stay on the host; batches are transferred
        home = device
        if device.type == "cuda":
            free = torch.cuda.mem_get_info(device)[0]
            if inputs.numel() * inputs.element_size() > free // 2:
                home = torch.device("cpu")
        if inputs.is_floating_point():
            inputs = inputs.to(dtype)
        self.inputs = inputs.to(home)
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
            check_labels(y, width, f"labels of the {self.name} set")
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
            # never used, but a loader without one draws a number from the global stream
            generator=torch.Generator().manual_seed(torch.initial_seed() % 2**63),
        )
        for batch, sample in zip(rows, loader, strict=True):
            x, y = self._pair(sample)
            x, batch = torch.as_tensor(x), batch.to(self.device)
            y = torch.as_tensor(y)
            if self.with_targets:
                if self.labelled:
                    check_labels(y, self.width, f"labels of the {self.name} set")
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
        # its rows may be random or large: identify it by kind, size and shape only
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
    """A source of batches for any kind of user data.

    Parameters
    ----------
    data : (X, y), ImageSet, TensorDataset, Dataset, or X alone without targets
    name : str
        Its name in error messages.
    device, dtype
        Device and dtype of the network's computations.
    num_workers : int
        Number of workers of a DataLoader.
    like : Source, optional
        The training set: inputs are scaled in the same way and must have its shape.
    with_targets : bool
        False: only inputs are needed.

    Returns
    -------
    Source

    Raises
    ------
    TypeError, ValueError
        Not data, no rows, not finite, or a shape different from that of ``like``.
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
