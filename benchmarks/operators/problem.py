"""The problem that every row of the table solves: one slice of a head, spiral interleaves, coils, a field."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor

from recon_core.operators.off_resonance import LowRank
from recon_core.simulation import coil_maps, head, smooth_field, smooth_phase
from recon_core.trajectories import variable_density_spiral

T = TypeVar("T")

FOV_M = 0.22
FINE = 1e-4  # errors below this one ask for the finer settings of everybody


@dataclass(frozen=True, kw_only=True)
class Size:
    """How large a problem is; what the issue asks for, but for the matrix, is the default."""

    matrix: int = 128
    coils: int = 8
    shots: int = 8
    samples: int = 3900
    readout_s: float = 15.6e-3
    reach_hz: float = 150.0
    error: float = 1e-3

    def either(self, coarse: T, fine: T) -> T:
        """What suits the error of the time functions that all rows share."""
        return coarse if self.error >= FINE else fine

    @property
    def dwell_s(self) -> float:
        """Sampling time in seconds."""
        return self.readout_s / self.samples


class Problem:
    """Every second interleaf of a variable-density spiral-out, single precision.

    Attributes:
        size: what it was made from.
        image: what the operators are applied to, complex64 `[y, x]`.
        head: what was measured, complex64 `[y, x]`.
        coil_maps: complex64 `[coil, y, x]`.
        field_hz: float32 `[y, x]`, within +-`size.reach_hz`, which it reaches.
        trajectory: float64 `[2, shot, sample]` in cycles per field of view, axes (y, x).
        times: float64 `[sample]` in seconds from the first sample.
    """

    def __init__(self, size: Size) -> None:
        self.size = size
        n, generator = size.matrix, torch.Generator().manual_seed(0)
        along = (torch.arange(n, dtype=torch.float64) - n // 2) * (FOV_M / n)
        y, x = torch.meshgrid(along, along, indexing="ij")
        positions = torch.stack([x, y, torch.full_like(x, 0.03)], -1)
        magnitude, mask = head((n, n), 1e3 * FOV_M / n, [30.0], generator)
        phase = smooth_phase(positions, generator)
        field = smooth_field(mask, positions[None], size.reach_hz, generator)[0]
        low, high = field.quantile(0.01), field.quantile(0.99)

        self.coil_maps = coil_maps(size.coils, positions)
        self.field_hz = size.reach_hz * (2 * (field.clamp(low, high) - low) / (high - low) - 1)
        self.head = magnitude[0] * phase
        self.image = self.head + 0.1 * torch.randn(n, n, generator=generator, dtype=torch.complex64)
        every_second = 2 * torch.arange(size.shots)
        self.trajectory = variable_density_spiral(2 * size.shots, size.samples, (n, n), 1.5, every_second)
        self.times = size.dwell_s * torch.arange(size.samples, dtype=torch.float64)

    @property
    def sample_times(self) -> Tensor:
        """Times of all samples, float64 `[shot, sample]`."""
        return self.times.expand(self.trajectory.shape[1:])

    @cached_property
    def terms(self) -> Terms:
        """The low-rank factorisation that all rows share which do not bring their own."""
        functions = LowRank(self.sample_times, -self.size.reach_hz, self.size.reach_hz, self.size.error)
        coefficients = functions.coefficients(self.field_hz.double()).movedim(-1, 0)
        return Terms(functions.weights[:, 0].real.float(), coefficients.to(torch.complex64).contiguous())


@dataclass(frozen=True)
class Terms:
    """exp(-2 pi i psi t) ~ sum_l w_l(t) c_l(psi).

    Attributes:
        weights: w, float32 `[term, sample]`, the same for every shot.
        coefficients: c of each pixel, complex64 `[term, y, x]`.
    """

    weights: Tensor
    coefficients: Tensor

    def __len__(self) -> int:
        return len(self.weights)
