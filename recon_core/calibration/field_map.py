"""Off-resonance from the phase that grows between echoes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from recon_core.calibration.phase_unwrapping import unwrapped

ALIASES = 4
"""Fields of up to so many times 1 / (shortest echo spacing) are told apart, where the echo times can do so."""

DISTINCT = 0.02
"""Aliases whose agreement with the echoes differs by less are not told apart: the one nearest to 0 is taken."""

BRIGHT = 0.99  # of the pixels are darker than the magnitude that counts as full signal
ABOVE_NOISE = 4.0
"""Times the noise that a pixel needs in order to have signal: dimmer ones would lead the unwrapping astray."""


class FieldEstimate(NamedTuple):
    """What the echoes say, pixel by pixel.

    Attributes:
        field_hz: psi `[*shape]` with signal ~ exp(-2 pi i psi t), zero where there is no signal.
        deviation_hz: its standard deviation if the echo images have noise of unit variance, infinite where there is no
            signal. Noise of another strength scales it.
        regions: connected regions of signal, int64 `[*shape]`, numbered from 1; 0 where there is no signal.
        resolved: whether the echoes tell the field of the largest region from the next ones that are
            1 / (shortest echo spacing) lower or higher; if not, its mean was taken nearest to 0.
    """

    field_hz: Tensor
    deviation_hz: Tensor
    regions: Tensor
    resolved: bool


def field_from_echoes(echoes: Tensor, times: Sequence[float], threshold: float = 0.1) -> FieldEstimate:
    """Off-resonance psi of x(t) = x(0) exp(-2 pi i psi t).

    The phase differences of neighbouring echoes are those of their inner products over coils, so that no coil's phase
    matters. That of the shortest spacing is unwrapped in space. Whole turns of a region, which space cannot tell, are
    chosen so that all other differences agree, which unevenly spaced echoes do for one choice only. The other
    differences are unwrapped by what is known by then, and a straight line is fitted to the phases of all echoes, each
    weighted with its squared magnitude, the inverse of its phase's variance.

    Args:
        echoes: complex `[echo, coil, *shape]` with any phase per coil and pixel, the same for all echoes.
        times: of the echoes, in seconds, rising.
        threshold: magnitude from which a pixel has signal, relative to the 99th percentile. It must stand out of the
            noise as well, which is measured from the images.

    Raises:
        ValueError: there are fewer than two echoes, the times do not fit or do not rise, the last axis has fewer than 4
            pixels, the threshold is not from 0 to 1, or the echoes are not finite.
    """
    _check(echoes, times, threshold)
    strength = echoes.abs().square().sum(1)
    magnitude = strength.mean(0).sqrt()
    signal = _signal(magnitude, _noise(echoes), threshold)
    spacings = [after - before for before, after in itertools.pairwise(times)]
    products = (echoes[1:] * echoes[:-1].conj()).sum(1)
    shortest = min(range(len(spacings)), key=spacings.__getitem__)
    phase, regions = unwrapped(products[shortest].angle(), products[shortest].abs().sqrt(), signal)
    field = -phase / (2 * math.pi * spacings[shortest])
    shifts, resolved = _aliases(field, products * signal, spacings, shortest, regions)
    field = (field + shifts[regions]) * signal
    field, spread = _line_fit(field, products, strength, times, spacings)
    deviation = torch.where(signal, 1 / (2 * math.pi * (2 * spread).sqrt()), torch.inf)
    return FieldEstimate(field * signal, deviation, regions, resolved)


def _check(echoes: Tensor, times: Sequence[float], threshold: float) -> None:
    if echoes.ndim < 3 or not echoes.is_complex():
        raise ValueError(f"expected complex echoes [echo, coil, *shape], got {echoes.dtype} {list(echoes.shape)}")
    if len(echoes) < 2 or len(times) != len(echoes):
        raise ValueError(f"expected two echoes or more and a time of each, got {len(echoes)} and {len(times)} time(s)")
    if not all(before < after for before, after in itertools.pairwise(times)):
        listed = ", ".join(f"{time * 1e3:g}" for time in times)
        raise ValueError(f"expected echo times that rise from echo to echo, got {listed} ms")
    if echoes.shape[-1] < 4:
        raise ValueError(f"expected at least 4 pixels along the last axis, got {list(echoes.shape[2:])}")
    if not 0 <= threshold <= 1:
        raise ValueError(f"expected a threshold from 0 to 1, got {threshold:g}")
    if not torch.isfinite(echoes).all():
        raise ValueError("the echo images hold values that are not finite")


def _signal(magnitude: Tensor, noise: float, threshold: float) -> Tensor:
    full = float(magnitude.flatten().kthvalue(max(round(BRIGHT * magnitude.numel()), 1)).values)
    return (magnitude >= max(threshold * full, ABOVE_NOISE * noise)) & (magnitude > 0)


def _noise(echoes: Tensor) -> float:
    """Root mean square over the echoes of the noise of all coils: third differences hold little else.

    Their median magnitude is that of complex noise but for the few pixels with edges.
    """
    gain = 20 * math.log(2)  # sum of squared coefficients, and from mean square to squared median
    medians = torch.diff(echoes, n=3, dim=-1).flatten(2).abs().median(-1).values
    return float((medians.square().sum(1).mean() / gain).sqrt())


def _aliases(
    field: Tensor, products: Tensor, spacings: Sequence[float], shortest: int, regions: Tensor
) -> tuple[Tensor, bool]:
    """What to add to the field of each region, in Hz `[region]` with 0 for no region; and whether the echoes tell it.

    A shift by n / (shortest spacing) turns all phases of a region alike, so that the agreement of n with a difference
    of echoes follows from a single complex sum per region.
    """
    count = int(regions.max()) + 1
    step = 1 / spacings[shortest]
    shifts = step * torch.arange(-ALIASES, ALIASES + 1, device=field.device)
    agreement, total = torch.zeros(count, len(shifts)).to(field), torch.zeros(count).to(field)
    for product, spacing in zip(products, spacings, strict=True):
        coherent = _per_region(product * _turn(field * spacing).to(product.dtype), regions, count)
        agreement += (coherent[:, None] * _turn(shifts * spacing)).real
        total += _per_region(product.abs(), regions, count)
    agreement = agreement / total.clamp(min=torch.finfo(total.dtype).tiny)[:, None]
    likely = agreement > agreement.amax(1, keepdim=True) - DISTINCT
    weight = products[shortest].abs()
    means = _per_region(weight * field, regions, count) / _per_region(weight, regions, count).clamp(min=1e-38)
    chosen = torch.where(likely, (means[:, None] + shifts).abs(), torch.inf).argmin(1)
    largest = int(regions.flatten().bincount(minlength=2)[1:].argmax()) + 1 if count > 1 else 0
    middle = int(chosen[largest])
    return shifts[chosen], int(likely[largest, max(middle - 1, 0) : middle + 2].sum()) == 1


def _per_region(values: Tensor, regions: Tensor, count: int) -> Tensor:
    return values.new_zeros(count).index_add(0, regions.flatten(), values.flatten())


def _turn(cycles: Tensor) -> Tensor:
    """exp(2 pi i cycles)."""
    return torch.polar(torch.ones_like(cycles), 2 * math.pi * cycles)


def _line_fit(
    field: Tensor, products: Tensor, strength: Tensor, times: Sequence[float], spacings: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Least squares over all echoes, near a field that is known: in Hz, and sum of w (t - mean t)^2 per pixel."""
    # What the known field leaves is less than half a turn between echoes, so the turns need not be counted.
    left = [
        (product * _turn(field * spacing).to(product.dtype)).angle()
        for product, spacing in zip(products, spacings, strict=True)
    ]
    phase = torch.cat([torch.zeros_like(field)[None], torch.stack(left).cumsum(0)])
    along = (len(times),) + (1,) * field.ndim
    t = torch.tensor(times, dtype=torch.float64).sub(times[0]).to(field).view(along)
    weight = strength.clamp(min=torch.finfo(strength.dtype).tiny)
    from_mean = t - (weight * t).sum(0) / weight.sum(0)
    spread = (weight * from_mean.square()).sum(0)
    return field - (weight * from_mean * phase).sum(0) / (2 * math.pi * spread), spread
