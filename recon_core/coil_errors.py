"""Smooth functions whose sums are the errors of coil maps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from recon_core.field_basis import halved

DEVIATION, LENGTH_MM = 0.1, 24.0
"""Of the errors of maps of unit norm, each coil's, and the distance over which they change: maps of a blurred centre.

All coils' together were off by 0.02 to 0.03 in eight heads, by 0.06 where the head fills the field of view. More is
allowed for, since with less freedom wrong maps keep the field wrong.
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

    def maps(self, coefficients: Tensor) -> Tensor:
        """dS: from q, complex `[coil, function]`, to `[coil, y, x]`."""
        functions = self.functions.flatten(1).to(coefficients.real.dtype)
        parts = torch.complex(coefficients.real @ functions, coefficients.imag @ functions)
        return parts.view(-1, *self.functions.shape[1:])

    def transpose(self, images: Tensor) -> Tensor:
        """From complex `[coil, y, x]` to `[coil, function]`."""
        functions = self.functions.flatten(1).T.to(images.real.dtype)
        return torch.complex(images.real.flatten(1) @ functions, images.imag.flatten(1) @ functions)


def _cosines(pixels: int, fov_mm: float) -> tuple[Tensor, Tensor]:
    """cos(pi p (n + 1/2) / N) with a mean square of one, `[function, pixel]`, and the deviation of each."""
    highest = min(pixels, 1 + math.ceil(2 * fov_mm / LENGTH_MM))
    order, place = torch.arange(highest)[:, None], torch.arange(pixels) + 0.5
    functions = torch.cos(math.pi * order * place / pixels) * torch.where(order > 0, math.sqrt(2), 1.0)
    frequency = order[:, 0] / (2 * fov_mm)
    return functions, torch.exp(-((math.pi * frequency * LENGTH_MM) ** 2))
