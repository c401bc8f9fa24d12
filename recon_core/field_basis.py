"""Functions whose sums are field maps: what a field may look like, and how probable it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MEASURED_HEADS = ((100.0, 60.0), (30.0, 15.0))
"""Deviation in Hz and length in mm of the two parts of a head's field at 3 T, for `smooth_basis`.

The short part is what two measured heads have within their slices, mean removed: a variance of 611 Hz^2 of which half
is left at 20 mm, and 1267 Hz^2 and 14 mm. The long part is for shims, and is wider than what theirs had left.
"""

_LEAST_HZ = 0.3
"""Root mean square over the mask that a function must hold to be worth it."""

_LEAST_PIXELS = 32
"""Of a mask in which a smooth field can be estimated."""


@dataclass(frozen=True)
class FieldBasis:
    """psi = B theta for the fields psi of one slice.

    Attributes:
        functions: B, real `[function, y, x]`, orthonormal over the mask: each has a mean square of one there, so that
            theta is in Hz, root mean square.
        deviation_hz: how large each coefficient may be expected to be, standard deviation, `[function]`; infinite where
            nothing is known.
        mask: where the object is, bool `[y, x]`.
    """

    functions: Tensor
    deviation_hz: Tensor
    mask: Tensor

    def field(self, coefficients: Tensor) -> Tensor:
        """psi in Hz: from theta `[..., function]` to `[..., y, x]`."""
        # A plain product: einsum copies all of B at each call.
        return (coefficients @ self.functions.flatten(1)).view(*coefficients.shape[:-1], *self.mask.shape)

    def transpose(self, images: Tensor) -> Tensor:
        """B^T v, from a gradient for the field to that for the coefficients: `[..., y, x]` to `[..., function]`."""
        return images.flatten(-2) @ self.functions.flatten(1).T

    def fit(self, field_hz: Tensor) -> Tensor:
        """The coefficients of the nearest sum within the mask, `[..., y, x]` to `[..., function]`."""
        return self.transpose(field_hz * self.mask) / self.mask.sum()

    def first(self, count: int | None) -> FieldBasis:
        """So many of the functions, the smoothest ones, or all."""
        return FieldBasis(self.functions[:count], self.deviation_hz[:count], self.mask)

    @property
    def halved(self) -> FieldBasis:
        """The same functions on pixels of twice the size."""
        y, x = (halved(n) for n in self.mask.shape)
        return FieldBasis(self.functions[:, y, x].contiguous(), self.deviation_hz, self.mask[y, x].contiguous())

    @property
    def precision(self) -> Tensor:
        """Of the coefficients, 1 / deviation^2, `[function]`."""
        return self.deviation_hz**-2


def halved(pixels: int) -> slice:
    """Every other pixel of so many, so that the pixel n // 2 stays in the centre."""
    return slice((pixels // 2) % 2, None, 2)


def polynomial_basis(mask: Tensor, order: int) -> FieldBasis:
    """Polynomials in y and x up to an order; zero outside the mask, where they would grow without bound.

    Paper 000 takes the order 5, 21 monomials, of which sums that are orthonormal over the mask are made (QR): with the
    monomials themselves, steps of the same length would mean very different fields.

    Args:
        mask: where the object is, bool `[y, x]`.
        order: largest sum of the powers.

    Raises:
        ValueError: the mask is not bool `[y, x]`, or its pixels are too few, or in too few lines, to tell the monomials
            apart.
    """
    _check(mask, least=(order + 1) * (order + 2) // 2)
    columns = monomials(mask, order)
    if int(torch.linalg.matrix_rank(columns)) < columns.shape[1]:
        raise ValueError(f"expected a mask more than {order} pixels wide and high for polynomials of order {order}")
    orthonormal = torch.linalg.qr(columns)[0] * math.sqrt(len(columns))
    functions = torch.zeros(columns.shape[1], *mask.shape, dtype=torch.float32, device=mask.device)
    functions[:, mask] = orthonormal.T.float()
    unknown = torch.full((len(functions),), math.inf, dtype=torch.float32, device=mask.device)
    return FieldBasis(functions, unknown, mask)


def monomials(mask: Tensor, order: int) -> Tensor:
    """y^p x^q, p + q <= order, at the pixels of the mask, double `[pixel, monomial]`.

    Coordinates are from -1 to 1 over the field of view, and 0 in pixel n // 2: the same field has the same coefficients
    on any grid.
    """
    y, x = _positions(mask, (2.0, 2.0))[mask].unbind(-1)
    return torch.stack([y**p * x ** (total - p) for total in range(order + 1) for p in range(total + 1)], -1)


def smooth_basis(
    mask: Tensor, fov_mm: Sequence[float], scales: Sequence[tuple[float, float]] = MEASURED_HEADS
) -> FieldBasis:
    """The fields of a Gaussian process, as many of its principal functions as matter (Karhunen and Loeve).

    The covariance is `sum_i deviation_i^2 exp(-distance^2 / (2 length_i^2))`. It is decomposed at points half the
    shortest length apart, which miss nothing of such a field, and what is likely there is continued from them to all
    pixels (Nystroem), smoothly across the mask's edge. The cost grows with the sixth power of one over that length.

    Args:
        mask: where the object is, bool `[y, x]`.
        fov_mm: field of view, (y, x).
        scales: deviation in Hz and length in mm of each part of the covariance.

    Raises:
        ValueError: the mask is not bool `[y, x]`, or has fewer than 32 pixels; a number is not positive; or no function
            of such fields would be worth it.
    """
    _check(mask, _LEAST_PIXELS)
    if len(fov_mm) != 2 or min(fov_mm) <= 0:
        raise ValueError(f"expected a field of view of two lengths in mm, got {tuple(fov_mm)}")
    if not scales or min(number for scale in scales for number in scale) <= 0:
        raise ValueError(f"expected positive deviations and lengths of the field, got {list(scales)}")
    everywhere = _positions(mask, fov_mm)
    points = _points(everywhere[mask], min(length for _, length in scales) / 2)
    # Of the points more functions than of the pixels, so that the last of these have all their parts.
    variances, vectors = _principal(_covariance(points, points, scales) / len(points), _LEAST_HZ / 4)
    weights = (vectors / (variances * len(points)).sqrt()).float()
    # Independent fields of unit variance each, whose sum is the process.
    parts = _covariance(everywhere.flatten(0, 1).float(), points.float(), scales) @ weights
    inside = parts[mask.flatten()].double()
    variances, turn = _principal(inside.T @ inside / len(inside), _LEAST_HZ)
    if not len(variances):
        raise ValueError(f"expected fields of more than {_LEAST_HZ} Hz, got deviations and lengths {list(scales)}")
    functions = (turn / variances.sqrt()).T.float() @ parts.T
    return FieldBasis(functions.reshape(-1, *mask.shape), variances.sqrt().float(), mask)


def _points(inside: Tensor, spacing: float) -> Tensor:
    """The centres of all squares with a pixel in them, `[point, 2]`."""
    squares: Tensor = torch.unique((inside / spacing).floor(), dim=0)
    return (squares + 0.5) * spacing


def _principal(second_moments: Tensor, least: float) -> tuple[Tensor, Tensor]:
    """The eigenvalues above least^2, largest first, and their vectors in columns."""
    values, vectors = torch.linalg.eigh(second_moments)
    kept = values > least**2
    return values[kept].flip(0), vectors[:, kept].flip(1)


def _covariance(some: Tensor, others: Tensor, scales: Sequence[tuple[float, float]]) -> Tensor:
    # By way of a matrix product, distances in single precision would be off by a tenth of a mm.
    square = torch.cdist(some, others, compute_mode="donot_use_mm_for_euclid_dist").square_()
    covariance = torch.zeros_like(square)
    for deviation, length in scales:
        covariance += deviation**2 * torch.exp(square / (-2 * length**2))
    return covariance


def _positions(mask: Tensor, extent: Sequence[float]) -> Tensor:
    """Of all pixels from the pixel n // 2, double `[y, x, 2]`, in the unit of the extent."""
    y, x = (
        (torch.arange(n, dtype=torch.float64, device=mask.device) - n // 2) * (length / n)
        for n, length in zip(mask.shape, extent, strict=True)
    )
    return torch.stack(torch.meshgrid(y, x, indexing="ij"), -1)


def _check(mask: Tensor, least: int) -> None:
    if mask.ndim != 2 or mask.dtype != torch.bool:
        raise ValueError(f"expected a mask bool [y, x], got {mask.dtype} {tuple(mask.shape)}")
    pixels = int(mask.sum())
    if pixels < least:
        raise ValueError(f"expected a mask of at least {least} pixels to estimate a field in, got {pixels}")
