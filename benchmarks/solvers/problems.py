"""Scans of held-out heads, simulated on a finer grid than they are reconstructed on.

No inverse crime: the object is the mosaic of the slice's own pixels, each a square of at least two by two points of the
fine grid, so that its k-space does not end where the samples end. Physical coils see it there, by the exact sum over
all points, and correlated noise of unit variance is made white. As on a scanner, the coils are then compressed to
fewer, and their maps come from the calibration region of the same undersampled, noisy data by ESPIRiT.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor

from benchmarks.solvers.masks import equispaced_lines, poisson_disc, random_lines
from pipelines.simulated_readouts import spiral
from recon_core.calibration.compression import compression_matrix
from recon_core.calibration.espirit import espirit
from recon_core.calibration.low_resolution import NotFullySampledError, calibration_kspace
from recon_core.calibration.noise import whitening_matrix
from recon_core.fourier import fft_centred, ifft_centred, resize_centred
from recon_core.object_mask import object_mask
from recon_core.operators.cartesian import CartesianSampling, is_on_grid
from recon_core.operators.encoding import Encoding
from recon_core.operators.linear_model import LinearModel
from recon_core.operators.sampling import sampling_operator
from recon_core.priors.prior import Convention
from recon_core.simulation import coil_covariance, coil_maps, exact_signal
from recon_core.trajectories import linear_angles, radial_spokes

FOV_M = 0.24
LEVEL_M = 0.02  # of the slice, above the middle of the coils
UNIT = Convention("percentile99", 0.005, 160.0)
HIGHEST, LOWEST, WIDTH = 24, 8, 48  # of the calibration region: lines, and samples along them
SPIRAL_EDGE = 9  # a spiral nine times too coarse at its edge is a fifth as long as the full one
SPIRAL_READOUT_MS, SPIRAL_DWELL_S = 15.6, 4e-6


@dataclass(frozen=True)
class Case:
    """One row of the issue's list.

    Attributes:
        name: of it.
        coils: that the reconstruction gets.
        physical_coils: that receive.
        trajectory: from a matrix size to `[2, shot, sample]`.
        full: samples, or shots, of the fully sampled trajectory, from a matrix size and the trajectory.
    """

    name: str
    coils: int
    physical_coils: int
    trajectory: Callable[[int], Tensor]
    full: Callable[[int, Tensor], float]

    def acceleration(self, matrix: int) -> float:
        """What was achieved, calibration counted in."""
        return self.full(matrix, self.trajectory(matrix))


def _grid(matrix: int, trajectory: Tensor) -> float:
    return matrix**2 / trajectory[0].numel()


def _spokes(matrix: int, trajectory: Tensor) -> float:
    return math.pi / 2 * matrix / trajectory.shape[1]


def _path(matrix: int, trajectory: Tensor) -> float:
    """Turns a cycle apart over a disc of radius N / 2 are pi N^2 / 4 long."""
    return math.pi / 4 * matrix**2 / float(trajectory.diff(dim=-1).norm(dim=0).sum())


def _spiral(matrix: int) -> Tensor:
    shots = SPIRAL_EDGE * max(1, round(matrix / 64))
    fov = (FOV_M, FOV_M)
    return spiral((matrix, matrix), fov, shots, SPIRAL_EDGE, SPIRAL_READOUT_MS, SPIRAL_DWELL_S).trajectory


def _radial(matrix: int) -> Tensor:
    return radial_spokes(linear_angles(round(math.pi / 2 * matrix / 6)), matrix, (matrix, matrix))


CASES = {
    case.name: case
    for case in (
        Case("cartesian_1d_r4", 15, 20, partial(equispaced_lines, acceleration=4), _grid),
        *(Case(f"poisson_r{r}", 8, 12, partial(poisson_disc, acceleration=r), _grid) for r in (12, 16)),
        *(Case(f"cartesian_r{r}", 8, 12, partial(random_lines, acceleration=r), _grid) for r in (2, 4, 8, 16)),
        Case("spiral_r5", 8, 12, _spiral, _path),
        Case("radial_r6", 8, 12, _radial, _spokes),
    )
}


@dataclass(frozen=True)
class Scan:
    """What the reconstruction gets, and what it should find.

    Attributes:
        model: with estimated coil maps.
        kspace: prewhitened, `[coil, shot, sample]`.
        truth: complex `[y, x]`; its phase is that of the true maps.
    """

    model: LinearModel
    kspace: Tensor
    truth: Tensor


class Scanner:
    """Scans slice after slice with the same trajectory."""

    def __init__(self, case: Case, matrix: int, snr: float) -> None:
        """Takes the signal-to-noise ratio of the fully sampled scan.

        Args:
            case: of the list.
            matrix: edge of the image, at most that of the slices.
            snr: 99th percentile of the magnitude over the standard deviation per complex pixel.
        """
        self.case, self.matrix, self._snr = case, matrix, snr
        self._trajectory = case.trajectory(matrix)
        self.encoding = Encoding(sampling_operator(self._trajectory.float(), (matrix, matrix)))

    def scan(self, image: Tensor, seed: int) -> Scan:
        """The scan of a slice `[y, x]`, which always has the same noise for the same seed."""
        generator = torch.Generator().manual_seed(seed)
        fine = mosaic(image, 2 * self.matrix)
        whitened = whitened_maps(fine, self.case.physical_coils)
        coil_images = whitened(len(fine)) * fine * (self.matrix / len(fine))
        full = self._full(coil_images)
        directions = whitened(self.matrix)
        # Noise has unit variance per complex sample, and so has the fully sampled image.
        gain = self._snr / UNIT.unit(combined(full, directions))
        signal = gain * self._signal(coil_images)
        kspace = signal + torch.randn(signal.shape, generator=generator, dtype=signal.dtype)
        compression = compression_matrix(kspace, 1.0, self.case.coils)
        full, directions = (torch.einsum("vc,cyx->vyx", compression, x) for x in (gain * full, directions))
        kspace = torch.einsum("vc,cab->vab", compression, kspace)
        maps = estimated_maps(kspace, self._trajectory.float(), self.matrix)
        return Scan(LinearModel(self.encoding, maps), kspace, combined(full, directions))

    def _full(self, coil_images: Tensor) -> Tensor:
        """Coil images of the full scan without noise, `[coil, y, x]`."""
        kspace = resize_centred(fft_centred(coil_images, (-2, -1)), (self.matrix, self.matrix))
        return ifft_centred(kspace, (-2, -1))

    def _signal(self, coil_images: Tensor) -> Tensor:
        """The exact sum over the fine grid, which an FFT of that grid gives for points on it."""
        shape = coil_images.shape[1:]
        if is_on_grid(self._trajectory, shape):
            return CartesianSampling(self._trajectory, shape).forward(coil_images)
        ones = torch.ones(shape, dtype=coil_images.dtype)
        times = torch.zeros(self._trajectory.shape[-1])
        return exact_signal(ones, coil_images, None, self._trajectory, times)


def estimated_maps(kspace: Tensor, trajectory: Tensor, matrix: int) -> Tensor:
    """Coil maps `[coil, y, x]` of the largest fully sampled centre of k-space, by ESPIRiT.

    Lines give a region that is longer than it is high, and few of them a smaller kernel, which more places have room
    for.

    Raises:
        NotFullySampledError: there are not even 8 lines.
    """
    for lines in range(HIGHEST, LOWEST - 1, -2):
        for width in (WIDTH, lines):
            try:
                centre = calibration_kspace(kspace, trajectory, (lines, width))
            except NotFullySampledError:
                continue
            return espirit(centre, (matrix, matrix), min(6, lines // 2), crop=0.0)
    raise NotFullySampledError(f"the central {LOWEST} lines of k-space are not fully sampled")


def whitened_maps(fine: Tensor, coils: int) -> Callable[[int], Tensor]:
    """Maps of the physical coils about an object after prewhitening, `[coil, n, n]`, for any edge n."""
    covariance = coil_covariance(_physical_maps(coils, len(fine))[None], object_mask(fine.abs()[None]))
    whitening = whitening_matrix(covariance)

    def at(edge: int) -> Tensor:
        return torch.einsum("vc,cyx->vyx", whitening, _physical_maps(coils, edge))

    return at


@cache
def _physical_maps(coils: int, edge: int) -> Tensor:
    return coil_maps(coils, _positions(edge))


def mosaic(image: Tensor, least: int) -> Tensor:
    """Each pixel a square of as many points as make the edge at least so long."""
    points = math.ceil(least / len(image))
    return image.repeat_interleave(points, 0).repeat_interleave(points, 1)


def _positions(edge: int) -> Tensor:
    """Of pixels, `[y, x, 3]` in metres, axes (x, y, z)."""
    along = (torch.arange(edge, dtype=torch.float64) - edge // 2) * (FOV_M / edge)
    y, x = torch.meshgrid(along, along, indexing="ij")
    return torch.stack([x, y, torch.full_like(x, LEVEL_M)], -1)


def combined(coil_images: Tensor, maps: Tensor) -> Tensor:
    """sum_c conj(s_c) image_c / |s|: brighter where the coils receive less noise, as maps of unit norm make it."""
    return (maps.conj() * coil_images).sum(0) / maps.abs().square().sum(0).sqrt()
