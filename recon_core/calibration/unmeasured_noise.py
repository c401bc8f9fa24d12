"""How strong the noise of k-space is, where nobody measured it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

OUTERMOST = 0.1
"""Part of the samples, those farthest from the centre of k-space."""

ROUNDING = 1e-8
"""Power, relative to the mean of all samples, up to which samples hold no noise but rounding errors."""

MODELS_MISS = 0.01
"""What good models of a scan miss, relative to the root mean square of all samples.

Of JEMRIS's simulation of a spiral, with the true image and field, ours misses 0.6 to 1.8 %.
"""

_LENGTH = 64
"""Samples of a readout whose spectrum is looked at."""

_SHARPNESS = 12.0
"""Of the Kaiser window: what leaks out of its main lobe is 5e-5 of a line's amplitude."""

_MAIN_LOBE = math.sqrt(1 + (_SHARPNESS / math.pi) ** 2) / _LENGTH
"""Half of its width, in cycles per sample."""

_PASSED = 0.4
"""Frequency, in cycles per sample, that receivers are taken to pass: their nominal bandwidth ends at one half."""

_STRONG = 0.75
"""Quantile over frequencies: some of them may have been filtered out, as where readouts were interpolated."""

_ENOUGH = 32
"""Pieces of readouts that tell the noise at one frequency."""


def unmeasured_noise(kspace: Tensor, trajectory: Tensor) -> float:
    """Standard deviation of what is not signal, per complex sample, from the samples themselves.

    The least of what the outermost samples say, which may hold signal, and the frequencies that no object can make,
    where the readouts leave any; but not less than models of a scan miss anyway: data taken for more exact than their
    model bend the image to its errors.

    Args:
        kspace: complex `[coil, shot, sample]`.
        trajectory: `[axis, shot, sample]` in cycles per field of view.

    Raises:
        ValueError: the outermost samples hold no noise.
    """
    outer, beyond = outer_noise(kspace, trajectory), out_of_band_noise(kspace, trajectory)
    least = MODELS_MISS * float(kspace.abs().square().mean().sqrt())
    return max(outer if beyond is None else min(outer, beyond), least)


def out_of_band_noise(kspace: Tensor, trajectory: Tensor) -> float | None:
    """Standard deviation of the noise per complex sample, from frequencies along the readouts that hold nothing else.

    The signal of a point at r, in fields of view, has the frequency k'(t) r while a readout passes k-space at the speed
    k'(t): within the field of view at most half the sum of |k'| over the axes. Readouts of spirals and spokes are often
    sampled more densely than that asks for, and what lies beyond is noise, or signal from beyond the field of view,
    which makes it too large. Frequencies that receivers may filter out hardly count.

    Args:
        kspace: complex `[coil, shot, sample]`.
        trajectory: `[axis, shot, sample]` in cycles per field of view.

    Returns:
        None where readouts are too short or too fast to leave such frequencies.
    """
    if kspace.shape[-1] < _LENGTH:
        return None
    window = torch.kaiser_window(_LENGTH, periodic=False, beta=_SHARPNESS, device=kspace.device)
    pieces = kspace.unfold(-1, _LENGTH, _LENGTH)
    power = torch.fft.fft(window * pieces).abs().square() / window.square().sum()
    speed = trajectory.diff(dim=-1).abs().sum(0).unfold(-1, _LENGTH - 1, _LENGTH).amax(-1)
    frequency = torch.fft.fftfreq(_LENGTH, device=kspace.device).abs()
    beyond = (frequency > speed[..., None] / 2 + _MAIN_LOBE) & (frequency < _PASSED)
    measured = (pieces != 0).all(-1)
    power = torch.where(beyond & measured[..., None], power, torch.nan).flatten(1, 2)
    told = power.isfinite().sum(1) >= _ENOUGH
    medians = torch.where(told, power.nanmedian(1).values, torch.nan)
    if not bool(told.any()):
        return None
    return math.sqrt(float(medians.nanquantile(_STRONG, dim=1).nanmean()) / math.log(2))


def outer_noise(kspace: Tensor, trajectory: Tensor) -> float:
    """Standard deviation of the noise per complex sample, from the samples farthest from the centre of k-space.

    Of Gaussian noise alone, the median of the squared magnitudes is ln 2 times the variance, and signal in less than
    half of the samples moves it little. Where signal still reaches all of them, the noise comes out too large: of
    simulated heads by a tenth at a signal-to-noise ratio of 20, and 2 (lines) to 5 times (spirals, spokes) at 200.
    Samples that are exactly zero were not measured and do not count. Zeros that filled up readouts are so no longer
    once the oversampling is removed, and make the noise too small: a fifth of each readout by about a third. Of several
    coils, the mean variance counts.

    Args:
        kspace: complex `[coil, shot, sample]`.
        trajectory: `[axis, shot, sample]`, in any unit.

    Raises:
        ValueError: the outermost samples hold no noise.
    """
    reach = trajectory.abs().flatten(1).amax(1).clamp_min(torch.finfo(trajectory.dtype).tiny)
    distance = (trajectory / reach[:, None, None]).square().sum(0)
    edge = distance.flatten().kthvalue(math.ceil((1 - OUTERMOST) * distance.numel())).values
    power = kspace.abs().square()
    outer = power[:, distance >= edge]
    medians = torch.where(outer > 0, outer, torch.nan).nanmedian(1).values
    variance = float(medians.nanmean()) / math.log(2)
    if not variance > ROUNDING * float(power.mean()):
        raise ValueError(
            f"expected noise in the {OUTERMOST:.0%} of the samples that are farthest from the centre of k-space, got "
            "none: they are zero, or nearly so"
        )
    return math.sqrt(variance)
