"""The signal of an image as the plain sum over its pixels, with no approximation in it.

What data are simulated with, and what every operator of the reconstruction can be checked against.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_CHUNK = 2**20  # complex numbers of an intermediate result: small enough for the cache


def exact_signal(
    image: Tensor, coil_maps: Tensor, field_hz: Tensor | None, trajectory: Tensor, times: Tensor
) -> Tensor:
    """Signal s_c(k, t) = 1 / sqrt(N) sum_r S_c(r) x(r) exp(-2 pi i (k r + psi(r) t)), for N pixels.

    The sum over r = (index - N // 2) / N is exact to rounding. As exp(-2 pi i k r) is a product of one factor per axis,
    it costs two matrix products; the field's phase at one time is shared by all shots.

    Args:
        image: complex `[y, x]`.
        coil_maps: complex `[coil, y, x]`.
        field_hz: psi in Hz, `[y, x]`, or None where there is none.
        trajectory: `[2, shot, sample]` in cycles per field of view, axes (y, x).
        times: `[sample]` in seconds from the excitation, the same for all shots.

    Returns:
        `[coil, shot, sample]`, in the precision of the image.

    Raises:
        ValueError: shapes that do not go together.
    """
    _check(image, coil_maps, field_hz, trajectory, times)
    weighted = coil_maps * image / math.sqrt(image.numel())
    if field_hz is None:
        flat = trajectory.flatten(1)[:, None]
        step = max(1, _CHUNK // weighted[..., 0].numel())
        parts = [_encoded(weighted[None], flat[..., i : i + step])[:, 0] for i in range(0, flat.shape[-1], step)]
        return torch.cat(parts, dim=-1).reshape(-1, *trajectory.shape[1:])
    step = max(1, _CHUNK // weighted.numel())
    parts = []
    for now in (slice(i, i + step) for i in range(0, len(times), step)):
        phase = times[now].to(field_hz.dtype)[:, None, None] * field_hz
        parts.append(_encoded(weighted * _cis(phase, weighted.dtype)[:, None], trajectory[..., now].mT))
    return torch.cat(parts, dim=1).mT


def _encoded(images: Tensor, trajectory: Tensor) -> Tensor:
    """Samples `[coil, image, sample]` of images `[image, coil, y, x]`, each at its own `[2, image, sample]`."""
    along_y, along_x = (
        _cis(k[:, None] * _positions(n, k)[:, None], images.dtype)
        for k, n in zip(trajectory, images.shape[-2:], strict=True)
    )
    number, coils, ny, nx = images.shape
    rows = (images.reshape(number, coils * ny, nx) @ along_x).reshape(number, coils, ny, -1)
    samples: Tensor = (rows * along_y[:, None]).sum(2)
    return samples.movedim(1, 0)


def _positions(n: int, like: Tensor) -> Tensor:
    """Pixel positions in fields of view, from the pixel n // 2."""
    return (torch.arange(n, dtype=like.dtype, device=like.device) - n // 2) / n


def _cis(cycles: Tensor, dtype: torch.dtype) -> Tensor:
    """exp(-2 pi i cycles); the whole cycles are dropped first, which keeps single precision exact."""
    angle = ((cycles - cycles.round()) * (-2 * math.pi)).to(dtype.to_real())
    return torch.polar(torch.ones_like(angle), angle)


def _check(image: Tensor, coil_maps: Tensor, field_hz: Tensor | None, trajectory: Tensor, times: Tensor) -> None:
    if image.ndim != 2 or not image.is_complex():
        raise ValueError(f"expected a complex image [y, x], got {image.dtype} {tuple(image.shape)}")
    if coil_maps.ndim != 3 or coil_maps.shape[1:] != image.shape:
        raise ValueError(f"expected coil maps [coil, {image.shape[0]}, {image.shape[1]}], got {tuple(coil_maps.shape)}")
    if field_hz is not None and field_hz.shape != image.shape:
        raise ValueError(f"expected a field map {tuple(image.shape)}, got {tuple(field_hz.shape)}")
    if trajectory.ndim != 3 or trajectory.shape[0] != 2:
        raise ValueError(f"expected a trajectory [2, shot, sample], got {tuple(trajectory.shape)}")
    if times.shape != trajectory.shape[2:]:
        raise ValueError(f"expected times [{trajectory.shape[2]}], one per sample of a shot, got {tuple(times.shape)}")
