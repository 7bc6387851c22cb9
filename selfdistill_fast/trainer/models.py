"""Networks of the command line: a small convolutional net, and torchvision's ResNets."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

__all__ = ["MODELS", "model_factory"]


def cnn(n_classes: int, n_channels: int = 3) -> nn.Module:
    """Two convolutions and a linear head, for images of 8 × 8 pixels and more.

    Parameters
    ----------
    n_classes, n_channels : int

    Returns
    -------
    torch.nn.Module
        (b, n_channels, H, W) → (b, n_classes) logits.
    """
    return nn.Sequential(
        nn.Conv2d(n_channels, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(64 * 16, n_classes),
    )


def _resnet(name: str, n_classes: int, n_channels: int = 3) -> nn.Module:
    from torchvision import models

    net = getattr(models, name)(weights=None, num_classes=n_classes)
    if n_channels != 3:
        net.conv1 = nn.Conv2d(n_channels, 64, 7, stride=2, padding=3, bias=False)
    return net


MODELS: dict[str, Callable[..., nn.Module]] = {
    "cnn": cnn,
    **{name: partial(_resnet, name) for name in ("resnet18", "resnet34", "resnet50")},
}


def model_factory(name: str, n_classes: int, n_channels: int = 3) -> Callable[[], nn.Module]:
    """``model_fn`` of a named network, randomly initialised at each call.

    Parameters
    ----------
    name : "cnn", "resnet18", "resnet34" or "resnet50"
    n_classes, n_channels : int

    Returns
    -------
    callable without arguments that returns a torch.nn.Module

    Raises
    ------
    ValueError
        Unknown name.
    ImportError
        A ResNet without torchvision.

    Examples
    --------
    >>> import torch
    >>> model_factory("cnn", n_classes=10, n_channels=1)()(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}; known: {', '.join(MODELS)}")
    if name != "cnn":
        _need_torchvision()
    return partial(MODELS[name], n_classes, n_channels)


def _need_torchvision() -> None:
    try:
        import torchvision  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "ResNets need torchvision; install the extra: pip install 'selfdistill_fast[torch]'"
        ) from error
