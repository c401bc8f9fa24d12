"""The one face that every prior shows to the solvers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor, nn

Scale = Literal["percentile99", "maximum"]


@dataclass(frozen=True)
class Convention:
    """How an image must be prepared for a prior.

    A prior that meets images on another scale than it learnt from sees another ratio of noise to signal, so this is
    kept with the weights.

    Args:
        scale: what is one in the images: the 99th percentile of their magnitudes, or the maximum.
        lowest: least noise level that the prior learnt, standard deviation per real channel of such an image.
        highest: greatest noise level that the prior learnt.
        any_phase: whether images times any constant phase are as likely, as they are for all that `spinstream train`
            makes.

    Raises:
        ValueError: an unknown scale, or levels that are not 0 < lowest < highest.
    """

    scale: Scale
    lowest: float
    highest: float
    any_phase: bool = False

    def __post_init__(self) -> None:
        if self.scale not in ("percentile99", "maximum"):
            raise ValueError(f'expected the scale "percentile99" or "maximum", got {self.scale!r}')
        if not 0 < self.lowest < self.highest:
            raise ValueError(f"expected noise levels 0 < lowest < highest, got {self.lowest} and {self.highest}")

    def unit(self, image: Tensor) -> Tensor:
        """What to divide each image by, `[...]` for images `[..., y, x]`, of any shape and real or complex.

        Raises:
            ValueError: an image is zero or not finite, so that it has no scale.
        """
        magnitude = image.abs().flatten(-2)
        unit = magnitude.amax(-1) if self.scale == "maximum" else _percentile99(magnitude)
        if not bool(torch.isfinite(magnitude).all() and (unit > 0).all()):
            raise ValueError("an image that is zero or not finite cannot be scaled for a prior")
        return unit


Denoiser = Callable[[Tensor, Tensor], Tensor]


class NotFiniteError(ValueError):
    """An image that a prior cannot judge: a method diverged, or its data were not finite."""


class Prior:
    """What images look like, told as the denoiser of white Gaussian noise at any level.

    The noise level is the standard deviation per real channel (real and imaginary part alike) of an image on the unit
    scale of `convention`. That is the variance exploding parametrisation; `predicted_noise` speaks the variance
    preserving one.

    Args:
        denoiser: mean of the clean image given the noisy one: `(channels, sigma) -> channels`, with channels
            `[n, 2, y, x]` (real, imaginary) and sigma `[n]`. A network, or any callable.
        convention: how images must be scaled, and the noise levels that the denoiser knows.
        name: what to call it in messages and histories.
    """

    def __init__(self, denoiser: Denoiser, convention: Convention, name: str) -> None:
        self.denoiser = denoiser
        self.convention = convention
        self.name = name

    @property
    def nbytes(self) -> int:
        """Memory held by the weights of a network."""
        if not isinstance(self.denoiser, nn.Module):
            return 0
        return sum(tensor.nbytes for tensor in (*self.denoiser.parameters(), *self.denoiser.buffers()))

    def denoise(self, image: Tensor, sigma: float | Tensor) -> Tensor:
        """Mean of the clean images given noisy ones.

        Args:
            image: complex, on the unit scale, `[..., y, x]`: any size, any batch.
            sigma: noise level, one for all or of the leading shape of `image`.

        Returns:
            Complex, as the image.

        Raises:
            NotFiniteError: the image is not finite.
            ValueError: the image is not complex or has no pixels, is on another device than the network, a level is
                outside of what the prior learnt, or the denoiser returns another shape than it was given.
        """
        if not image.is_complex() or image.ndim < 2 or not image.numel():
            raise ValueError(f"expected a complex image [..., y, x], got {image.dtype} {list(image.shape)}")
        # A sum is finite only if all of it is, and several times quicker than a look at each pixel.
        if not bool(torch.isfinite(image.sum())) and (broken := int((~torch.isfinite(image)).sum())):
            raise NotFiniteError(f"expected a finite image, got {broken} of {image.numel()} pixels that are not")
        levels = self._levels(sigma, image)
        images = image.flatten(0, -3) if image.ndim > 2 else image[None]
        channels = torch.view_as_real(images.resolve_conj()).movedim(-1, -3)
        dtype = self._dtype(channels)
        denoised = self.denoiser(channels.contiguous().to(dtype), levels.to(dtype))
        if denoised.shape != channels.shape:
            raise ValueError(
                f"{self.name}: expected the denoiser to return {list(channels.shape)}, got {list(denoised.shape)}"
            )
        return torch.view_as_complex(denoised.to(channels.dtype).movedim(-3, -1).contiguous()).reshape(image.shape)

    def denoise_in_any_phase(self, image: Tensor, sigma: float | Tensor, generator: Generator) -> Tensor:
        """As `denoise`, but of each image turned by a random phase, which is taken back from the result.

        A network knows only nearly that the phase does not matter: its errors change with it, and average out over
        the calls of a method that asks it anew in every step (as with mirror images: Terris et al., Equivariant
        plug-and-play image reconstruction, CVPR 2024). Where the phase does matter it is left alone.

        Args:
            image: complex, on the unit scale, `[..., y, x]`.
            sigma: noise level, one for all or of the leading shape of `image`.
            generator: of the phases, on the device of the image.
        """
        if not self.convention.any_phase:
            return self.denoise(image, sigma)
        cycles = torch.rand(image.shape[:-2], generator=generator, dtype=image.real.dtype, device=image.device)
        turn = torch.exp(2j * math.pi * cycles)[..., None, None]
        return turn.conj() * self.denoise(turn * image, sigma)

    def score(self, image: Tensor, sigma: float | Tensor) -> Tensor:
        """Gradient of the log density of noisy images, per real channel: `(denoised - image) / sigma^2` (Tweedie)."""
        return (self.denoise(image, sigma) - image) / _spread(sigma, image) ** 2

    def predicted_noise(self, image: Tensor, alpha: float, sigma: float) -> Tensor:
        """Unit noise in a variance preserving image `alpha x + sigma noise`, as the papers' networks give it.

        Args:
            image: complex `[..., y, x]`, `alpha` times the unit scale.
            alpha: what the clean image was multiplied by.
            sigma: noise level in `image`; the prior is asked at `sigma / alpha` (algorithms of RED-diff, paper 001).
        """
        unscaled = image / alpha
        return (unscaled - self.denoise(unscaled, sigma / alpha)) * (alpha / sigma)

    def _dtype(self, channels: Tensor) -> torch.dtype:
        """A network computes in the precision of its weights, any other callable in that of the image."""
        weights = self.denoiser.parameters() if isinstance(self.denoiser, nn.Module) else iter(())
        first = next(weights, channels)
        if first.device != channels.device:
            raise ValueError(
                f"{self.name} is on {first.device}, the image on {channels.device}: expected the same device"
            )
        return first.dtype

    def _levels(self, sigma: float | Tensor, image: Tensor) -> Tensor:
        """`sigma` for each image `[n]`, checked against what the prior knows."""
        leading = image.shape[:-2]
        levels = torch.as_tensor(sigma, dtype=image.real.dtype, device=image.device)
        if levels.ndim and levels.shape != leading:
            raise ValueError(f"expected one noise level or {list(leading)} of them, got {list(levels.shape)}")
        lowest, highest = float(levels.min()), float(levels.max())
        # A level computed in single precision may lie a rounding error beyond the end.
        known = self.convention
        if not (known.lowest * (1 - 1e-5) <= lowest and highest <= known.highest * (1 + 1e-5)):
            raise ValueError(
                f"{self.name} knows noise levels from {known.lowest:g} to {known.highest:g} of a unit image, "
                f"got {lowest:g} to {highest:g}"
            )
        return levels.expand(leading).flatten() if leading else levels.reshape(1)


def _spread(sigma: float | Tensor, image: Tensor) -> Tensor:
    levels = torch.as_tensor(sigma, dtype=image.real.dtype, device=image.device)
    return levels[..., None, None] if levels.ndim else levels


def _percentile99(magnitude: Tensor) -> Tensor:
    """The 99th percentile along the last axis: the nearest rank, because `quantile` refuses large inputs."""
    rank = round(0.99 * (magnitude.shape[-1] - 1)) + 1
    return magnitude.kthvalue(rank, dim=-1).values
