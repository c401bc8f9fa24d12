"""What every implementation of the non-uniform Fourier transform offers."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor


class Plan(Protocol):
    """The transform of one precision: images `[batch, *shape]`, samples `[batch, sample]`, without scale."""

    def __init__(self, trajectory: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None: ...

    @property
    def nbytes(self) -> int:
        """Memory held."""

    def forward(self, images: Tensor) -> Tensor:
        """From images to samples, with exp(-i omega r)."""

    def adjoint(self, samples: Tensor) -> Tensor:
        """From samples to images, with exp(i omega r)."""


def radians_per_pixel(trajectory: Tensor, shape: tuple[int, ...]) -> Tensor:
    """`[axis, sample]` in double precision, from cycles per field of view `[axis, shot, sample]`."""
    sizes = torch.tensor(shape, dtype=torch.float64, device=trajectory.device)
    return 2 * math.pi * trajectory.double().flatten(1) / sizes[:, None]
