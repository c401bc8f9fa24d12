"""Off-resonance of test scans: polynomials, simulated cavities, and measured maps as they are."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from recon_core.object_mask import object_mask
from recon_core.simulation.field import smooth_field

_ORDER = 5
_CENTRE, _SCALE = 3.3, 95.1  # of paper 000's coefficients; the field is scaled to its percentile afterwards
_SMOOTHING = 3.0  # pixels of the measured map, of what is put around it
_LEAST_PIXELS = 1500
_MEASURED = ("sdcflows_topup_head", "ge3t_head")


def polynomial_field(mask: Tensor, percentile_hz: float, generator: torch.Generator) -> Tensor:
    """A polynomial of order 5 in x and y from -1 to 1, with coefficients as paper 000 draws them.

    Args:
        mask: of the object, `[y, x]`.
        percentile_hz: 99th percentile of |field| within it; the mean is zero there.
        generator: of the coefficients.

    Returns:
        Hz, `[y, x]`.
    """
    y, x = torch.meshgrid(*(torch.linspace(-1, 1, n, dtype=torch.float64) for n in mask.shape), indexing="ij")
    field = torch.zeros_like(x)
    for p in range(_ORDER + 1):
        for q in range(_ORDER + 1 - p):
            uniform = torch.rand((), generator=generator, dtype=torch.float64) - 0.5
            laplace = _CENTRE - _SCALE * uniform.sign() * torch.log1p(-2 * uniform.abs())
            field += laplace * y**p * x**q
    return _scaled(field, mask, percentile_hz)


def sinus_field(mask: Tensor, fov_m: float, percentile_hz: float, generator: torch.Generator) -> Tensor:
    """What shims leave and the dipoles of air-filled cavities, scaled like `polynomial_field`."""
    axes = ((torch.arange(n, dtype=torch.float64) - n // 2) * (fov_m / n) for n in mask.shape)
    y, x = torch.meshgrid(*axes, indexing="ij")
    positions = torch.stack([x, y, torch.zeros_like(x)], -1)[None]
    return smooth_field(mask[None], positions, percentile_hz, generator)[0].double()


def measured_field(folder: Path, number: int, mask: Tensor) -> Tensor:
    """A slice of a measured map, laid over the object: its mask's box onto the box of the object's.

    Around the measured head the field is what is smoothly next to it. Nothing within it is smoothed.

    Args:
        folder: of the maps, which have the opposite sign, and axes (x, y, z) with y to the face.
        number: of the slice, counted through those of all heads with enough in them, again and again.
        mask: of the object, `[y, x]`; in an axial slice, the face is in the first row.

    Returns:
        Hz, `[y, x]`, with the mean that was measured.
    """
    slices = _slices(folder)
    field, known = slices[number % len(slices)]
    nearest = ndimage.distance_transform_edt(~known, return_distances=False, return_indices=True)
    filled = np.where(known, field, ndimage.gaussian_filter(field[tuple(nearest)], _SMOOTHING))
    places = [_onto(_extent(mask.numpy(), axis), _extent(known, axis), mask.shape[axis]) for axis in (0, 1)]
    grid = np.meshgrid(*places, indexing="ij")
    return torch.from_numpy(ndimage.map_coordinates(filled, grid, order=1, mode="nearest"))


def head_mask(image: Tensor) -> Tensor:
    """Where the head is."""
    return object_mask(image.abs()[None])[0]


def _scaled(field: Tensor, mask: Tensor, percentile_hz: float) -> Tensor:
    field = field - field[mask].mean()
    return field * (percentile_hz / float(np.quantile(field[mask].abs().numpy(), 0.99)))


@cache
def _slices(folder: Path) -> list[tuple[NDArray[np.float64], NDArray[np.bool_]]]:
    """Fields in our sign, and where they were measured, `[y, x]` with y to the back."""
    found = []
    for name in _MEASURED:
        with np.load(folder / f"{name}.npz", allow_pickle=False) as held:
            fields, masks = (held[key].T[:, ::-1] for key in ("b0_hz", "mask"))
        found += [(-f.astype(float), m) for f, m in zip(fields, masks, strict=True) if m.sum() > _LEAST_PIXELS]
    return found


def _extent(mask: NDArray[np.bool_], axis: int) -> tuple[int, int]:
    """First and last index along the axis."""
    inside = np.flatnonzero(mask.any(1 - axis))
    return int(inside[0]), int(inside[-1])


def _onto(own: tuple[int, int], other: tuple[int, int], count: int) -> NDArray[np.float64]:
    """Where the first `count` indices lie if one extent is laid onto the other."""
    return other[0] + (np.arange(count) - own[0]) * (other[1] - other[0]) / (own[1] - own[0])
