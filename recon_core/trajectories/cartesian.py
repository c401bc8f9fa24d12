"""Cartesian lines."""

from __future__ import annotations

import torch
from torch import Tensor


def cartesian_lines(steps: Tensor, samples: int, centre_sample: int, spacing: float = 1.0) -> Tensor:
    """Lines along the last axis, one for each set of encoding steps.

    Args:
        steps: `[phase axis, line]`, encoding steps counted from the centre of k-space, (y) or (z, y).
        samples: number of samples of a line.
        centre_sample: the sample at the centre of k-space; may lie outside the line.
        spacing: distance of samples in cycles per field of view: 1 for the encoded field of view, 1 / oversampling for
            the field of view that is kept.

    Returns:
        float64 `[phase axis + 1, line, sample]` in cycles per field of view.

    Raises:
        ValueError: `steps` has another number of dimensions.
    """
    if steps.ndim != 2:
        raise ValueError(f"expected encoding steps [phase axis, line], got the shape {tuple(steps.shape)}")
    lines = steps.shape[1]
    readout = (torch.arange(samples, dtype=torch.float64) - centre_sample) * spacing
    phase_axes = steps.to(torch.float64)[:, :, None].expand(-1, -1, samples)
    return torch.cat([phase_axes, readout.expand(1, lines, samples)])
