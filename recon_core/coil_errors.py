"""Smooth functions whose sums are the errors of coil maps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from recon_core.field_basis import halved

DEVIATION, LENGTH_MM = 0.1, 30.0
"""Of the errors of maps of unit norm, each coil's, and the distance over which they change: maps of a blurred centre.

All coils' together were off by 0.02 to 0.03 in eight heads, by 0.06 where the head fills the field of view, half of
which `continued` mends. More is allowed for, since with less freedom wrong maps keep the field wrong.
"""

_EDGE, _WEIGHT_AT_THE_EDGE = 0.075, 0.01
"""Part of the field of view at each of its edges where maps of k-space's centre are hardly believed, and how much."""

_ERROR = 0.1
"""Deviation of a pixel of maps that are continued, each by itself; a few hundredths, alike over some pixels, are more
like it.
"""

_LEAST = 0.03
"""Deviation of a function, relative to the largest, that it must have to be worth it."""


@dataclass(frozen=True)
class CoilErrors:
    """dS_c = sum_k q_ck phi_k for the maps of all coils c.

    Attributes:
        functions: phi, real `[function, y, x]`, each with a mean square of one.
        deviation: how large each complex coefficient may be expected to be, standard deviation, `[function]`.
    """

    functions: Tensor
    deviation: Tensor

    @staticmethod
    def smooth(shape: Sequence[int], fov_mm: Sequence[float]) -> CoilErrors:
        """Products of cosines, with the spectrum of a Gaussian process.

        Args:
            shape: of the maps, (y, x).
            fov_mm: field of view, (y, x).
        """
        (y, weight_y), (x, weight_x) = (_cosines(n, mm) for n, mm in zip(shape, fov_mm, strict=True))
        deviation = (weight_y[:, None] * weight_x).flatten()
        functions = (y[:, None, :, None] * x[None, :, None, :]).flatten(0, 1)
        kept = deviation > _LEAST * deviation.max()
        scale = DEVIATION / float(deviation[kept].square().sum().sqrt())
        return CoilErrors(functions[kept], scale * deviation[kept])

    @staticmethod
    def none(shape: Sequence[int]) -> CoilErrors:
        """Of maps that are right."""
        return CoilErrors(torch.zeros(0, *shape), torch.zeros(0))

    def to(self, device: torch.device) -> CoilErrors:
        """There."""
        return CoilErrors(self.functions.to(device), self.deviation.to(device))

    @property
    def halved(self) -> CoilErrors:
        """The same functions on pixels of twice the size."""
        y, x = (halved(n) for n in self.functions.shape[1:])
        return CoilErrors(self.functions[:, y, x].contiguous(), self.deviation)

    def continued(self, maps: Tensor, mask: Tensor) -> Tensor:
        """Maps of unit norm that are sums of these functions too, and go on smoothly to the edges.

        Those from a few central points of k-space, as ESPIRiT's, repeat beyond the field of view: at its edge they mix
        what the coils see on either side. Where a head reaches as far, that is most of their error
        (benchmarks/RESULTS.md), and sharper than errors that may be expected elsewhere.

        Args:
            maps: `[coil, y, x]`; where they are zero they stay so.
            mask: where they are to be as they were but for that, bool `[y, x]`.
        """
        held = maps.abs().sum(0) > 0
        weights = (mask & held) * _trust(maps.shape[1:]).to(maps.device)
        flat = self.functions.flatten(1).double()
        weighted = flat * weights.flatten()
        expected = self.deviation.double() / (DEVIATION * math.sqrt(len(maps)))
        normal = weighted @ flat.T + torch.diag((_ERROR / expected).square())
        sides = weighted.to(torch.complex128) @ maps.flatten(1).T.to(torch.complex128)
        coefficients = torch.linalg.solve(normal.to(sides.dtype), sides).T.to(maps.dtype)
        smooth = self.maps(coefficients) * held
        norm = smooth.abs().square().sum(0).sqrt()
        return smooth / torch.where(norm > 0, norm, 1)

    def maps(self, coefficients: Tensor) -> Tensor:
        """dS: from q, complex `[coil, function]`, to `[coil, y, x]`."""
        functions = self.functions.flatten(1).to(coefficients.real.dtype)
        parts = torch.complex(coefficients.real @ functions, coefficients.imag @ functions)
        return parts.view(-1, *self.functions.shape[1:])

    def transpose(self, images: Tensor) -> Tensor:
        """From complex `[coil, y, x]` to `[coil, function]`."""
        functions = self.functions.flatten(1).T.to(images.real.dtype)
        return torch.complex(images.real.flatten(1) @ functions, images.imag.flatten(1) @ functions)


def _trust(shape: Sequence[int]) -> Tensor:
    """In maps that repeat, `[y, x]`: little near an edge."""
    y, x = ((torch.arange(n) + 0.5 - n / 2).abs() < (0.5 - _EDGE) * n for n in shape)
    return torch.where(y[:, None] & x, 1.0, _WEIGHT_AT_THE_EDGE).double()


def _cosines(pixels: int, fov_mm: float) -> tuple[Tensor, Tensor]:
    """cos(pi p (n + 1/2) / N) with a mean square of one, `[function, pixel]`, and the deviation of each."""
    highest = min(pixels, 1 + math.ceil(2 * fov_mm / LENGTH_MM))
    order, place = torch.arange(highest)[:, None], torch.arange(pixels) + 0.5
    functions = torch.cos(math.pi * order * place / pixels) * torch.where(order > 0, math.sqrt(2), 1.0)
    frequency = order[:, 0] / (2 * fov_mm)
    return functions, torch.exp(-((math.pi * frequency * LENGTH_MM) ** 2))
