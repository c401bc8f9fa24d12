"""Band-limited interpolation between centred grids of any size and spacing."""

from __future__ import annotations

import torch
from torch import Tensor

# Frequencies this close to the band edge count as on it, in cycles per field of view: headers give rounded sizes.
_EDGE = 1e-3


def resample_centred(x: Tensor, axis: int, size: int, step: float) -> Tensor:
    """Values of an image at the pixels of another grid with the same centre, along one axis.

    The image is taken as one period of its own Fourier series, so that this is cropping or zero-filling in k-space
    followed by cropping in image space, without asking that either comes to whole pixels. Values are kept (a constant
    stays that constant). A coarser grid drops the frequencies that it cannot hold.

    Args:
        x: image, complex; the pixel `N // 2` of `axis` is the centre.
        axis: to resample.
        size: number of new pixels; the pixel `size // 2` is the centre.
        step: new pixel size in old pixels.

    Returns:
        Complex image with `size` pixels along `axis`.

    Raises:
        ValueError: the size or the step is not positive.
    """
    if size < 1 or step <= 0:
        raise ValueError(f"expected a positive size and step, got {size} and {step}")
    old = x.shape[axis]
    if (size, step) == (old, 1.0):
        return x
    weights = _weights(old, size, step).to(x.device, x.dtype)
    return (x.movedim(axis, -1) @ weights).movedim(-1, axis)


def _weights(old: int, size: int, step: float) -> Tensor:
    """Complex128 `[old, size]`: the Fourier series of each old pixel, at the new pixels."""
    band = old / max(step, 1.0)
    frequency = _centred(old)
    frequency = frequency[(2 * frequency >= -band - _EDGE) & (2 * frequency < band - _EDGE)]
    analysis = _waves(torch.outer(-_centred(old), frequency / old))
    synthesis = _waves(torch.outer(frequency / old, step * _centred(size)))
    return analysis @ synthesis / old


def _centred(size: int) -> Tensor:
    return torch.arange(size, dtype=torch.float64) - size // 2


def _waves(cycles: Tensor) -> Tensor:
    return torch.polar(torch.ones_like(cycles), 2 * torch.pi * cycles)
