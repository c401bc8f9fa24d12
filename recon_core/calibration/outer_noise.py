"""How strong the noise of k-space is, where nobody measured it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

OUTERMOST = 0.1
"""Part of the samples, those farthest from the centre of k-space."""

ROUNDING = 1e-8
"""Power, relative to the mean of all samples, up to which samples hold no noise but rounding errors."""


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
