"""RED-diff and decomposed diffusion as one usually writes them: from the papers, slice by slice, in single precision.

The operator visits the samples in every step, and RED-diff leaves its gradient to autograd. The network computes in
single precision too (`in_single_precision`), where our priors take bfloat16 on devices that have it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from typing import Protocol

import torch
from torch import Tensor, nn

from recon_core.priors.prior import Prior
from recon_core.priors.unet import UNet

_TIMES, _BETAS = 1000, (1e-4, 0.02)


class Operator(Protocol):
    """A, and what is to be inverted by it."""

    def forward(self, image: Tensor) -> Tensor:
        """A image."""

    def adjoint(self, kspace: Tensor) -> Tensor:
        """A^H kspace."""


class MaskedFft:
    """Coil maps, Fourier transform, mask: A of a Cartesian scan on full grids `[coil, y, x]`."""

    def __init__(self, coil_maps: Tensor, mask: Tensor) -> None:
        self._coil_maps, self._mask = coil_maps, mask

    def forward(self, image: Tensor) -> Tensor:
        """A image."""
        shifted = torch.fft.ifftshift(self._coil_maps * image, (-2, -1))
        return self._mask * torch.fft.fftshift(torch.fft.fft2(shifted, norm="ortho"), (-2, -1))

    def adjoint(self, kspace: Tensor) -> Tensor:
        """A^H kspace."""
        shifted = torch.fft.ifft2(torch.fft.ifftshift(self._mask * kspace, (-2, -1)), norm="ortho")
        return (self._coil_maps.conj() * torch.fft.fftshift(shifted, (-2, -1))).sum(0)


class _SinglePrecision(nn.Module):
    """A network that no autocast around it reaches."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor, noise: Tensor) -> Tensor:
        with torch.autocast(image.device.type, enabled=False):
            result: Tensor = self.network(image, noise)
        return result


def in_single_precision(prior: Prior) -> Prior:
    """The same prior, its U-Net in single precision; other priors compute in that of their weights already."""
    if not isinstance(prior.denoiser, UNet):
        return prior
    denoiser = deepcopy(prior.denoiser)
    denoiser.network = _SinglePrecision(denoiser.network)
    return Prior(denoiser, prior.convention, prior.name)


def red_diff(
    operator: Operator, kspace: Tensor, prior: Prior, go_on: Callable[[int, int], bool], weight: float = 0.25
) -> Tensor:
    """Paper 001 to the letter: 1000 times, Adam at 0.1, the adjoint as the start, the last image as the result."""
    kept = (1 - torch.linspace(*_BETAS, _TIMES)).cumprod(0)
    image = torch.view_as_real(operator.adjoint(kspace).clone()).requires_grad_()
    descent = torch.optim.Adam([image], 0.1, betas=(0.9, 0.99))
    for done in range(_TIMES):
        if not go_on(done, _TIMES):
            break
        alpha, sigma = float(kept[-1 - done].sqrt()), float((1 - kept[-1 - done]).sqrt())
        noise = torch.randn_like(image)
        with torch.no_grad():
            noisy = torch.view_as_complex(alpha * image + sigma * noise)
            predicted = torch.view_as_real(prior.predicted_noise(noisy, alpha, sigma))
        descent.zero_grad()
        misfit = (operator.forward(torch.view_as_complex(image)) - kspace).abs().square().sum()
        loss = misfit + weight * sigma / alpha * ((predicted - noise) * image).sum()
        loss.backward()
        descent.step()
    return torch.view_as_complex(image.detach())


@torch.no_grad()
def decomposed_diffusion(
    operator: Operator,
    kspace: Tensor,
    prior: Prior,
    levels: list[float],
    go_on: Callable[[int, int], bool],
    iterations: int = 5,
) -> Tensor:
    """DDS with all of the noise renewed: conjugate gradients on A^H A through the samples."""
    data = operator.adjoint(kspace)
    clean = torch.zeros_like(data)
    for done, level in enumerate(levels):
        if not go_on(done, len(levels)):
            break
        noisy = clean + math.sqrt(2) * level * torch.randn_like(clean)
        denoised = prior.denoise(noisy, level)
        clean = _proximal(operator, data, denoised, 1 / (2 * level**2), iterations)
    return clean


def _proximal(operator: Operator, data: Tensor, image: Tensor, weight: float, iterations: int) -> Tensor:
    """Conjugate gradients from `image` on (A^H A + weight) x = data + weight image."""

    def normal(x: Tensor) -> Tensor:
        return operator.adjoint(operator.forward(x)) + weight * x

    residual = data + weight * image - normal(image)
    direction, energy = residual, torch.vdot(residual.flatten(), residual.flatten()).real
    for _ in range(iterations):
        ahead = normal(direction)
        step = energy / torch.vdot(direction.flatten(), ahead.flatten()).real
        image, residual = image + step * direction, residual - step * ahead
        last, energy = energy, torch.vdot(residual.flatten(), residual.flatten()).real
        direction = residual + energy / last * direction
    return image
