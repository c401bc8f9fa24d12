"""What a denoiser is asked to make small: from clean images, or from noisy images alone."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Generator, Tensor

# The weight of Stein's estimate, which paper 002 does not state, and every which image it is taken of.
STEIN_WEIGHT = 0.1
STEIN_IMAGES = 8


class Denoiser(Protocol):
    """What can be trained: see `recon_core.priors.unet.UNet`."""

    def __call__(self, image: Tensor, sigma: Tensor) -> Tensor:
        """Mean of the clean images `[n, 2, y, x]` given noisy ones at levels `[n]`."""
        ...

    def weight(self, sigma: Tensor) -> Tensor:
        """Weight `[n]` of the squared error at noise levels `[n]`."""
        ...


def clean_loss(denoiser: Denoiser, clean: Tensor, sigma: Tensor, generator: Generator) -> Tensor:
    """Weighted mean square error of denoising: score matching (Vincent, Neural Comput 23:1661, 2011).

    Args:
        denoiser: to be trained.
        clean: channels `[n, 2, y, x]`.
        sigma: noise levels to train at, `[n]`.
        generator: of the noise.
    """
    noisy = clean + sigma[:, None, None, None] * _noise(clean, generator)
    return (denoiser.weight(sigma) * _square(denoiser(noisy, sigma) - clean)).mean()


def sure_loss(denoiser: Denoiser, noisy: Tensor, noise: Tensor, sigma: Tensor, generator: Generator) -> Tensor:
    """Score matching without clean images, from images with white noise of a known level (SURE-score, paper 002).

    At the level of the images themselves Stein's estimate replaces the error (paper 002, eq. 9). At greater levels the
    images get the noise that is missing, and the denoiser's mean of the *noisy* image, which Tweedie's formula gives
    exactly, is compared with it: unbiased too, and its gradient is ten times less noisy than that of Stein's estimate,
    which therefore counts less and is taken of some images only.

    Of lower levels such images tell nothing, and nothing is learnt: they count as the level of the images. (The paper
    trains all levels on images that the denoiser itself has denoised. Noise that it leaves is then learnt as texture,
    and left again: in trials up to 40 % of it.)

    Args:
        denoiser: to be trained.
        noisy: channels `[n, 2, y, x]`.
        noise: standard deviation per channel of the noise in each image, `[n]`.
        sigma: noise levels to train at, `[n]`.
        generator: of the added noise and of the divergence's probe.
    """
    sigma = torch.maximum(sigma, noise)
    added = (sigma**2 - noise**2).sqrt()
    noisier = noisy + added[:, None, None, None] * _noise(noisy, generator)
    # E[noisy | noisier] = noisier + added^2 score, and the score is (denoised - noisier) / sigma^2 (Tweedie).
    share = (added / sigma) ** 2
    predicted = noisier + share[:, None, None, None] * (denoiser(noisier, sigma) - noisier)
    some = slice(0, -(-len(noisy) // STEIN_IMAGES))
    estimate, _ = stein_estimate(denoiser, noisy[some], noise[some], generator)
    stein = (denoiser.weight(noise[some]) * estimate).mean()
    return (denoiser.weight(sigma) * _square(predicted - noisy)).mean() + STEIN_WEIGHT * stein


def stein_estimate(
    denoiser: Callable[[Tensor, Tensor], Tensor], noisy: Tensor, sigma: Tensor, generator: Generator
) -> tuple[Tensor, Tensor]:
    """Unbiased estimate of each image's mean square error without the truth, and the denoised images.

    The divergence is that of one random probe of signs (Ramani et al., IEEE Trans Image Process 17:1540, 2008), with
    the exact directional derivative instead of a finite difference.

    Args:
        denoiser: `(noisy, sigma) -> denoised`.
        noisy: channels `[n, c, y, x]`.
        sigma: noise level of each, `[n]`.
        generator: of the probe.

    Returns:
        Per channel and pixel `[n]`, and `[n, c, y, x]`.
    """
    probe = torch.randint(2, noisy.shape, generator=generator).to(noisy) * 2 - 1
    with warnings.catch_warnings():
        # torch compiles some of its forward derivatives by what it has itself deprecated.
        warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", DeprecationWarning)
        derivative = torch.func.jvp(lambda x: denoiser(x, sigma), (noisy,), (probe,))
    denoised, divergence = derivative[0], (probe * derivative[1]).flatten(1).mean(1)
    return _square(denoised - noisy) + sigma**2 * (2 * divergence - 1), denoised


def _noise(like: Tensor, generator: Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, dtype=like.dtype).to(like.device)


def _square(error: Tensor) -> Tensor:
    """Mean square of each image, `[n]`."""
    return error.square().flatten(1).mean(1)
