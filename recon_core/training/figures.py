"""How well a prior denoises images that it has not seen."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from recon_core.metrics import psnr
from recon_core.priors.prior import Prior
from recon_core.training.augmentation import Augmentation, patches
from recon_core.training.corpus import Corpus
from recon_core.training.objectives import stein_estimate

LEVELS = (0.05, 0.1, 0.2)
_AS_THEY_ARE = Augmentation(smallest=1.0, contrast=0.0, gain=1.0)


def held_out(corpus: Corpus, count: int, edge: int = 192) -> tuple[Tensor, Tensor]:
    """The same patches of a corpus each time, complex `[count, y, x]` of at most `edge`, and the noise in each."""
    edge = min(edge, *(size for image in corpus.images for size in image.shape[:2]))
    channels, noise = patches(corpus, count, edge, _AS_THEY_ARE, Generator().manual_seed(0))
    return torch.view_as_complex(channels.movedim(1, -1).contiguous()), noise


def with_noise(images: Tensor, sigma: float) -> Tensor:
    """Complex images and white noise of `sigma` per real channel, the same draw each time."""
    noise = torch.randn((*images.shape, 2), generator=Generator().manual_seed(1))
    return images + sigma * torch.view_as_complex(noise).to(images.device)


def denoising_figures(
    prior: Prior, corpus: Corpus, device: torch.device | str = "cpu", count: int = 16
) -> dict[str, float]:
    """PSNR of denoised clean images in dB, and how far the predicted noise is from being calibrated.

    At those of three levels that the prior knows.

    Args:
        prior: on `device`.
        corpus: of images that it has not seen.
        device: to compute on.
        count: patches to take.
    """
    clean = held_out(corpus, count)[0].to(device)
    figures = {}
    known = prior.convention
    for sigma in (level for level in LEVELS if known.lowest <= level <= known.highest):
        noisy = with_noise(clean, sigma)
        with torch.no_grad():
            denoised = prior.denoise(noisy, sigma)
        figures[f"PSNR at noise {sigma:g}, noisy"] = _mean_psnr(noisy, clean)
        figures[f"PSNR at noise {sigma:g}, denoised"] = _mean_psnr(denoised, clean)
        figures[f"calibration at noise {sigma:g}"] = calibration(noisy - clean, noisy - denoised)
    return figures


def stein_figures(
    prior: Prior, corpus: Corpus, device: torch.device | str = "cpu", count: int = 16
) -> dict[str, float]:
    """Root mean square error of denoised noisy images without the truth, by Stein's unbiased estimate.

    Args and returns as of `denoising_figures`; `corpus` knows the noise in its images.
    """
    noisy, noise = held_out(corpus, count)
    channels = torch.view_as_real(noisy).movedim(-1, 1).contiguous().to(device)
    with torch.no_grad():
        estimate, _ = stein_estimate(prior.denoiser, channels, noise.to(device), Generator().manual_seed(2))
    return {
        "noise of the images, per channel": float(noise.mean()),
        "estimated error of the denoised images, per channel": math.sqrt(max(float(estimate.mean()), 0.0)),
    }


def calibration(noise: Tensor, predicted: Tensor) -> float:
    """Slope of complex noise over its prediction, through the origin; one for the posterior mean."""
    return float(torch.vdot(predicted.flatten(), noise.flatten()).real / predicted.abs().square().sum())


def _mean_psnr(images: Tensor, truth: Tensor) -> float:
    return sum(psnr(image, clean) for image, clean in zip(images, truth, strict=True)) / len(truth)
