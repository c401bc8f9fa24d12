"""The one Fourier transform of this project: orthonormal, with the origin at index N // 2 on both sides."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad


def fft_centred(x: Tensor, axes: Sequence[int]) -> Tensor:
    """From image to k-space over `axes`, with exp(-2 pi i k r); any other axes are batch axes."""
    return _centred(torch.fft.fftn, x, tuple(axes))


def ifft_centred(x: Tensor, axes: Sequence[int]) -> Tensor:
    """From k-space to image over `axes`: inverse and adjoint of `fft_centred`."""
    return _centred(torch.fft.ifftn, x, tuple(axes))


def resize_centred(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Crops or zero-pads the last `len(shape)` axes to `shape`, so that index N // 2 stays the centre.

    Raises:
        ValueError: `x` has fewer axes than `shape`, or a size below one is asked for.
    """
    if len(shape) > x.ndim or min(shape, default=1) < 1:
        raise ValueError(f"cannot resize a tensor of shape {tuple(x.shape)} to {tuple(shape)}")
    margins = []
    for old, new in zip(reversed(x.shape[x.ndim - len(shape) :]), reversed(shape), strict=True):
        before = new // 2 - old // 2
        margins += [before, new - old - before]
    return pad(x, margins)


def _centred(transform: Callable[..., Tensor], x: Tensor, axes: tuple[int, ...]) -> Tensor:
    centred: Tensor = torch.fft.fftshift(transform(torch.fft.ifftshift(x, axes), dim=axes, norm="ortho"), axes)
    return centred
