"""Where the object is in an image."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn.functional import max_pool2d


def object_mask(magnitude: Tensor, threshold: float = 0.06) -> Tensor:
    """Where there is an object: everything inside the outline of what gives signal, bool `[slice, y, x]`.

    Args:
        magnitude: `[slice, y, x]`.
        threshold: of the signal, relative to its 99.5th percentile.
    """
    signal = magnitude.cpu().numpy()
    bright = signal > threshold * np.quantile(signal, 0.995)
    filled = [ndimage.binary_fill_holes(ndimage.binary_closing(s, iterations=2) | s) for s in bright]
    return torch.stack([torch.from_numpy(s) for s in filled]).to(magnitude.device)


def dilated(mask: Tensor, radii: Sequence[float]) -> Tensor:
    """A mask bool `[y, x]` that is wider by so many pixels, rounded up, on each side of either axis."""
    size = [2 * math.ceil(radius) + 1 for radius in radii]
    grown = max_pool2d(mask.float()[None, None], size, 1, [n // 2 for n in size])
    return grown[0, 0] > 0
