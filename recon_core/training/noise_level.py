"""The noise level of an image, from the image alone."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d, max_pool2d

# Second differences in both directions leave nothing of what is smooth; the factor keeps white noise as it is
# (Immerkaer, Comput Vis Image Underst 64:300, 1996).
_CURVATURE = (1.0, -2.0, 1.0)
_GAIN = 6.0
# Median of the magnitude of a standard normal variable.
_MEDIAN = 0.6745
_NEIGHBOURHOOD = 7


def estimate_noise(image: Tensor) -> float:
    """Standard deviation per real channel of white noise in an image.

    The median magnitude of the second differences of real and imaginary part, where the neighbourhood is darker than
    in the other half of the image: there are few edges there, and a median does not mind few. Pixels that are exactly
    zero were filled in, not measured, and do not count.

    Args:
        image: complex `[y, x]`.

    Raises:
        ValueError: the image is real, so that its noise is not white Gaussian, or has too few pixels that count.
    """
    if not image.is_complex():
        raise ValueError(f"expected a complex image: magnitudes have no white Gaussian noise, got {image.dtype}")
    if min(image.shape) < _NEIGHBOURHOOD:
        raise ValueError(f"expected an image of {_NEIGHBOURHOOD} pixels and more each way, got {list(image.shape)}")
    line = torch.tensor(_CURVATURE, device=image.device)
    channels = torch.view_as_real(image.to(torch.complex64)).movedim(-1, 0)[:, None]
    curvature = conv2d(channels, (line[:, None] * line)[None, None], padding=1)[:, 0].abs() / _GAIN
    brightness = avg_pool2d(image.abs().float()[None], _NEIGHBOURHOOD, stride=1, padding=_NEIGHBOURHOOD // 2)[0]
    measured = -max_pool2d(-image.ne(0).float()[None], 3, stride=1, padding=1)[0] > 0
    if not bool(measured.any()):
        raise ValueError(f"cannot estimate the noise of an image of zeros {list(image.shape)}")
    dark = measured & (brightness <= brightness[measured].median())
    return float(curvature[:, dark].median()) / _MEDIAN
