"""The grid on which one slice of the phantom is drawn, and the shapes it is drawn with."""

from __future__ import annotations

import itertools
import math

import torch
from scipy import ndimage
from torch import Tensor
from torch.nn.functional import interpolate

from recon_core.simulation.smooth_noise import smooth_noise

Point = tuple[float, float]


class SliceGrid:
    """A fine grid over one slice.

    Attributes:
        x, y: positions in mm, `[row, column]`; x runs to the left of the patient, y to the back.
        z: the level of the slice in mm.
        step: distance of the grid's points in mm.
        generator: the source of all randomness.
        side: distance from the midline in mm, which is not quite straight.
    """

    def __init__(
        self, matrix: tuple[int, int], pixel_mm: float, factor: int, level: float, generator: torch.Generator
    ) -> None:
        """A grid `factor` times as fine as that of the image, whose pixel matrix // 2 is at x = y = 0."""
        self.step = pixel_mm / factor
        self.generator = generator
        self.z = level
        self.y, self.x = torch.meshgrid(*(self._axis(n, factor) for n in matrix), indexing="ij")
        self._points = torch.stack([self.x, self.y, torch.full_like(self.x, level)], dim=-1)
        self.side = (self.x - self.noise(110)).abs()
        # Shapes are drawn in bent coordinates, so that the two sides differ a little.
        self._bent_side = self.side + 1.2 * self.noise(30) * (self.side / 10).clamp(max=1)
        self._bent_y = self.y + 1.5 * self.noise(45)

    def _axis(self, n: int, factor: int) -> Tensor:
        """Positions whose mean over a block of `factor` is the position of the image's pixel."""
        return (torch.arange(n * factor, dtype=torch.float64) - (n // 2 + 0.5) * factor + 0.5) * self.step

    def noise(self, wavelength: float) -> Tensor:
        """A random function, computed on as coarse a grid as its wavelength in mm allows."""
        stride = max(1, int(wavelength / self.step / 16))
        counts = [math.ceil((n - 1) / stride) + 1 for n in self.x.shape]
        corner = self._points[0, 0]
        y, x = (start + torch.arange(n) * stride * self.step for start, n in zip(corner[[1, 0]], counts, strict=True))
        points = torch.stack([*torch.meshgrid(x, y, indexing="xy"), corner[2].expand(counts)], dim=-1)
        coarse = smooth_noise(points, wavelength, self.generator)[None, None]
        size = [(n - 1) * stride + 1 for n in counts]
        fine = interpolate(coarse, size=size, mode="bicubic", align_corners=True)
        return fine[0, 0, : self.x.shape[0], : self.x.shape[1]]

    def depth(self, region: Tensor) -> Tensor:
        """Distance from the edge of a region in mm, 0 outside of it."""
        return torch.from_numpy(ndimage.distance_transform_edt(region.numpy())) * self.step

    def ellipse(self, centre: Point, half_axes: Point, degrees: float = 0) -> Tensor:
        """An ellipse on both sides: its centre (side, y), and how far its first axis is turned towards the back."""
        u, v = self._bent_side - centre[0], self._bent_y - centre[1]
        cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        return ((cos * u + sin * v) / half_axes[0]) ** 2 + ((cos * v - sin * u) / half_axes[1]) ** 2 < 1

    def stroke(self, *knots: tuple[float, float, float]) -> Tensor:
        """A line on both sides: through (side, y), with a half width that changes from knot to knot."""
        drawn = torch.zeros_like(self.x, dtype=torch.bool)
        for (u0, v0, w0), (u1, v1, w1) in itertools.pairwise(knots):
            u, v = self._bent_side - u0, self._bent_y - v0
            du, dv = u1 - u0, v1 - v0
            along = ((u * du + v * dv) / (du**2 + dv**2)).clamp(0, 1)
            drawn |= torch.hypot(u - along * du, v - along * dv) < w0 + along * (w1 - w0)
        return drawn
