"""Coil maps from fully sampled low-resolution k-space."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from recon_core.calibration.compression import principal_coils
from recon_core.calibration.eigenmaps import CHUNK, dominant_eigenpairs, with_reference


def espirit(
    calibration: Tensor, shape: Sequence[int], kernel: int = 6, threshold: float = 0.02, crop: float = 0.95
) -> Tensor:
    """Coil maps of ESPIRiT (Uecker et al., Magn Reson Med 71:990, 2014), the first set.

    Args:
        calibration: k-space `[coil, *size]` at whole cycles per field of view, centred, fully sampled.
        shape: of the maps.
        kernel: edge of the k-space neighbourhood, in samples.
        threshold: singular values of the calibration matrix below this fraction of the largest count as noise.
        crop: a pixel whose eigenvalue is not above this holds no signal.

    Returns:
        `[coil, *shape]` with a root sum of squares of one where there is signal, zero elsewhere. The strongest virtual
        coil is real and positive.

    Raises:
        ValueError: The shapes do not fit, or the calibration is smaller than the kernel, zero or not finite.
    """
    size = calibration.shape[1:]
    if len(size) != len(shape):
        raise ValueError(
            f"expected a map shape of {len(size)} axes, as the calibration {list(size)}, got {list(shape)}"
        )
    if kernel < 1 or min(size) < kernel:
        raise ValueError(f"a kernel of {kernel} samples does not fit the calibration region {list(size)}")
    _, virtual_coils = principal_coils(calibration)
    convolution = _as_convolution(_signal_space(calibration, kernel, threshold))
    values, maps = _eigenmaps(convolution, [_phases(n, kernel).to(calibration) for n in shape])
    return torch.where(values > crop, with_reference(maps, virtual_coils[0]), 0)


def _signal_space(calibration: Tensor, kernel: int, threshold: float) -> Tensor:
    """Projection on the neighbourhoods that occur in the calibration: `[coil, *kernel, coil, *kernel]`."""
    patches = calibration
    for axis in range(1, calibration.ndim):
        patches = patches.unfold(axis, kernel, 1)
    axes = tuple(range(1, calibration.ndim))
    patches = patches.movedim(axes, tuple(-axis for axis in axes))  # positions last
    matrix = patches.flatten(calibration.ndim).flatten(0, calibration.ndim - 1)
    energies, vectors = torch.linalg.eigh(matrix @ matrix.mH)
    signal = vectors[:, energies > threshold**2 * energies[-1]]
    projection: Tensor = signal @ signal.mH
    return projection.view(patches.shape[: calibration.ndim] * 2)


def _as_convolution(projection: Tensor) -> Tensor:
    """The projection of every neighbourhood, averaged where they overlap: `[*distance, coil, coil]`.

    Links (c, u) to (c', u') at the distance u - u', from 1 - kernel to kernel - 1 on each axis.
    """
    coils, *kernel = projection.shape[: projection.ndim // 2]
    steps = torch.stack(torch.meshgrid(*[torch.arange(n) for n in kernel], indexing="ij")).flatten(1)
    distances = steps[:, :, None] - steps[:, None, :]
    place = torch.zeros_like(distances[0])
    for distance, n in zip(distances, kernel, strict=True):
        place = place * (2 * n - 1) + distance + n - 1
    pairs = projection.reshape(coils, len(place), coils, len(place)).permute(1, 3, 0, 2).reshape(-1, coils, coils)
    sums = projection.new_zeros(math.prod(2 * n - 1 for n in kernel), coils, coils)
    sums.index_add_(0, place.flatten().to(sums.device), pairs)
    return sums.view(*[2 * n - 1 for n in kernel], coils, coils) / len(place)


def _phases(n: int, kernel: int) -> Tensor:
    """exp(2 pi i d r) at the pixels r and distances d of one axis: `[n, 2 kernel - 1]`."""
    r = (torch.arange(n, dtype=torch.float64) - n // 2) / n
    d = torch.arange(1 - kernel, kernel, dtype=torch.float64)
    return torch.exp(2j * math.pi * r[:, None] * d)


def _eigenmaps(convolution: Tensor, phases: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Dominant eigenvalue `[*shape]` and eigenvector `[coil, *shape]` of a convolution at each pixel."""
    row = convolution.shape[-1] ** 2 * math.prod(len(p) for p in phases[1:])
    parts = [
        dominant_eigenpairs(_at_pixels(convolution, [rows, *phases[1:]]))
        for rows in torch.split(phases[0], max(CHUNK // row, 1))
    ]
    return torch.cat([values for values, _ in parts]), torch.cat([maps for _, maps in parts], 1)


def _at_pixels(convolution: Tensor, phases: list[Tensor]) -> Tensor:
    """The matrices `[*shape, coil, coil]` by which a convolution over k-space multiplies the pixels."""
    for axis, phase in enumerate(phases):
        convolution = torch.tensordot(phase, convolution.movedim(axis, 0), 1).movedim(0, axis)
    return convolution
