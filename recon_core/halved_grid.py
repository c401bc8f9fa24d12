"""The same scan on pixels of twice the size, of which there are a quarter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from recon_core.field_basis import halved

LEAST_SAMPLES = 0.1
"""Part of the samples that must lie on the new grid."""


@dataclass(frozen=True)
class HalvedGrid:
    """Where samples and pixels of a scan lie on the new grid.

    Attributes:
        pixels: which of them are kept, along y and along x.
        shape: how many these are.
        readout: which samples of all readouts are kept: those in a row around the centre of k-space.
        trajectory: theirs, `[axis, shot, sample]` in cycles per field of view of the new grid, which may be a pixel
            smaller or larger.
    """

    pixels: tuple[slice, slice]
    shape: tuple[int, int]
    readout: slice
    trajectory: Tensor

    @staticmethod
    def of(trajectory: Tensor, shape: Sequence[int]) -> HalvedGrid | None:
        """None where readouts hold few samples in a row that lie on such a grid.

        Args:
            trajectory: `[axis, shot, sample]` in cycles per field of view, axes in the order y, x.
            shape: of the image, (y, x).
        """
        ny, nx = shape
        y, x = halved(ny), halved(nx)
        few_y, few_x = len(range(ny)[y]), len(range(nx)[x])
        scale = torch.tensor([2 * few_y / ny, 2 * few_x / nx])
        scaled = trajectory * scale[:, None, None].to(trajectory)
        largest = torch.tensor([few_y / 2, few_x / 2]).to(scaled)[:, None, None]
        inside = (scaled.abs() < largest).all(0).all(0)
        centre = int(scaled.square().sum(0).mean(0).argmin())
        outside = (~inside).nonzero().flatten()
        first = int(outside[outside < centre].max()) + 1 if bool((outside < centre).any()) else 0
        last = int(outside[outside > centre].min()) if bool((outside > centre).any()) else len(inside)
        if not bool(inside[centre]) or last - first < LEAST_SAMPLES * len(inside):
            return None
        return HalvedGrid((y, x), (few_y, few_x), slice(first, last), scaled[..., first:last].contiguous())
