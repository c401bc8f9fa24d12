"""Spiral scans of held-out heads in inhomogeneous fields, simulated by the exact sum on a finer grid.

No inverse crime: as in `benchmarks.solvers.problems` the object is the mosaic of the slice's own pixels, the field lies
on that grid, and every sample is the plain sum over it at its own time. Coil maps come from the centre of the same
noisy, undersampled data, which spirals visit early, while the field has hardly acted.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.blind.fields import head_mask, measured_field, polynomial_field, sinus_field
from benchmarks.solvers.problems import FOV_M, UNIT, combined, estimated_maps, mosaic, whitened_maps
from pipelines.simulated_readouts import Readouts, spiral
from recon_core.fourier import fft_centred, ifft_centred, resize_centred
from recon_core.simulation import exact_signal

SHOTS, ACCELERATION, READOUT_MS, DWELL_S = 16, 2, 15.6, 4e-6
COILS = 8
FIELDS = ("order5_60", "order5_120", "order5_200", "sinus_120", "measured")


@dataclass(frozen=True)
class BlindScan:
    """What the reconstruction gets, and what it should find.

    Attributes:
        kspace: prewhitened, `[coil, shot, sample]`.
        trajectory: `[2, shot, sample]` in cycles per field of view.
        times: of the samples, in seconds from the start of the readout, `[shot, sample]`.
        coil_maps: estimated, `[coil, y, x]`.
        truth: complex `[y, x]`.
        field_hz: at the centres of the pixels, `[y, x]`, also where there is no object.
        mask: of the true object, bool `[y, x]`.
    """

    kspace: Tensor
    trajectory: Tensor
    times: Tensor
    coil_maps: Tensor
    truth: Tensor
    field_hz: Tensor
    mask: Tensor


@lru_cache(maxsize=2)
def readouts(matrix: int) -> Readouts:
    """Of the seed: 8 of 16 interleaves, denser at the centre."""
    return spiral((matrix, matrix), (FOV_M, FOV_M), SHOTS, ACCELERATION, READOUT_MS, DWELL_S)


def scanned(image: Tensor, kind: str, matrix: int, snr: float, seed: int, maps: Path) -> BlindScan:
    """The scan of a slice `[y, x]`, always the same for the same seed.

    Args:
        image: the slice, finer than the matrix.
        kind: of field, one of `FIELDS`.
        matrix: edge of the reconstructed image.
        snr: 99th percentile of the fully sampled magnitude over the standard deviation per complex pixel.
        seed: of noise and field.
        maps: folder of measured fields.

    Raises:
        ValueError: the matrix is odd or does not divide the object's edge, so that pixels have no point as centre,
            or the field is none of them.
    """
    generator = torch.Generator().manual_seed(seed)
    fine = mosaic(image, 2 * matrix)
    step, rest = divmod(len(fine), matrix)
    if rest or matrix % 2:
        raise ValueError(f"expected an even matrix that divides an object of {len(fine)} points, got {matrix}")
    field = field_of(kind, head_mask(fine), seed, maps).to(torch.float32)
    whitened = whitened_maps(fine, COILS)
    coil_images = whitened(len(fine)) * fine * (matrix / len(fine))
    full = ifft_centred(resize_centred(fft_centred(coil_images, (-2, -1)), (matrix, matrix)), (-2, -1))
    directions = whitened(matrix)
    gain = snr / UNIT.unit(combined(full, directions))
    shots = readouts(matrix)
    trajectory, times = shots.trajectory.float(), (shots.times - shots.times[0]).float()
    ones = torch.ones(fine.shape, dtype=coil_images.dtype)
    signal = gain * exact_signal(ones, coil_images, field, trajectory, times)
    kspace = signal + torch.randn(signal.shape, generator=generator, dtype=signal.dtype)
    maps_found = estimated_maps(kspace, trajectory, matrix)
    truth = combined(gain * full, directions)
    # Both grids have the pixel n // 2 in the centre, so every step-th point of the fine one is the centre of a pixel.
    at_pixels = field[::step, ::step].contiguous()
    every_shot = times.expand(trajectory.shape[1], -1)
    return BlindScan(kspace, trajectory, every_shot, maps_found, truth, at_pixels, head_mask(truth))


def field_of(kind: str, mask: Tensor, seed: int, maps: Path) -> Tensor:
    """In Hz, on the grid of the mask.

    Raises:
        ValueError: there is no such kind.
    """
    if kind not in FIELDS:
        raise ValueError(f"expected a field among {', '.join(FIELDS)}, got {kind}")
    generator = torch.Generator().manual_seed(10_000 + seed)
    name, _, percentile = kind.partition("_")
    if name == "order5":
        return polynomial_field(mask, float(percentile), generator)
    if name == "sinus":
        return sinus_field(mask, FOV_M, float(percentile), generator)
    return measured_field(maps, 7 * seed, mask)
