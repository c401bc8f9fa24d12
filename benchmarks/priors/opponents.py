"""What denoised before there were learnt priors: total variation (see also `joint_tv`) and BM3D.

BM3D is the registry's package bm3d, whose licence allows no commercial use: it is only measured against.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from statistics import mean

import numpy as np
import torch
from skimage.restoration import denoise_tv_chambolle
from torch import Tensor

from benchmarks.priors.images import Sample, samples
from recon_core.metrics import psnr

try:
    import bm3d as bm3d_package
except ImportError:
    bm3d_package = None

TotalVariation = Callable[[Tensor, float], Tensor]


def channel_tv(noisy: Tensor, weight: float) -> Tensor:
    """scikit-image's, of the real and of the imaginary part."""
    return _of_channels(noisy, lambda x: denoise_tv_chambolle(x, weight, eps=1e-5, max_num_iter=300))


def bm3d(sample: Sample) -> Tensor:
    """Of the real and of the imaginary part, in the package's profile for low complexity.

    Its normal profile takes three times as long, for about 0.1 dB.
    """
    profile = bm3d_package.BM3DProfileLC()
    return _of_channels(sample.noisy, lambda x: bm3d_package.bm3d(x, sample.sigma, profile))


def tuned_weight(solver: TotalVariation, images: list[Tensor], sigma: float) -> float:
    """The weight with the highest mean PSNR, to a factor of 2^(1/4): better than both of its neighbours."""
    noisy = samples(images, sigma)

    @cache
    def quality(step: int) -> float:
        return mean(psnr(solver(s.noisy, sigma * 2 ** (step / 4)), s.clean) for s in noisy)

    best = 0
    while (better := max((best - 1, best, best + 1), key=quality)) != best:
        best = better
    return float(sigma * 2 ** (best / 4))


def _of_channels(image: Tensor, denoise: Callable[[np.ndarray], np.ndarray]) -> Tensor:
    real, imaginary = (torch.from_numpy(denoise(part.numpy())).float() for part in (image.real, image.imag))
    return torch.complex(real, imaginary)
