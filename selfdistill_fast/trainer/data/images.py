"""Images as bytes, and their augmentation, a batch at a time on the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional
from torch.utils.data import Dataset

__all__ = ["CropFlip", "ImageSet", "check_labels"]


class ImageSet(Dataset):
    """Images as bytes with their labels; the trainer holds them on the device.

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
        Wrong shapes or types, or labels without a class.

    Examples
    --------
    >>> import numpy as np
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
        check_labels(self.labels, len(self.classes), "labels")

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


def check_labels(labels: torch.Tensor, n_classes: int, name: str) -> None:
    """ValueError if a label is not a class."""
    if len(labels) and not (int(labels.min()) >= 0 and int(labels.max()) < n_classes):
        raise ValueError(
            f"{name} out of range: with {n_classes} classes labels are 0 to {n_classes - 1}, found "
            f"{int(labels.min())} to {int(labels.max())}"
        )
