"""Random complex patches of images: what a prior sees while it learns."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn.functional import interpolate

from recon_core.training.corpus import Corpus


@dataclass(frozen=True)
class Augmentation:
    """How images are varied, so that the prior learns more than the images of one scanner.

    Args:
        smallest: images are shrunk by factors from this to one: other pixel sizes.
        contrast: share of magnitude images whose intensities go through a random curve: other weightings.
        gain: intensities are multiplied by up to this or its inverse: scales are only estimated at the scanner.
        phase: greatest excursion of the smooth phase that magnitude images get, in radians; off-resonance and fat add
            to it in some images. The constant part is uniform for all images.
    """

    smallest: float = 0.5
    contrast: float = 0.5
    gain: float = 1.25
    phase: float = math.pi


# Noise stays white and of its level only where pixels are neither averaged nor pushed through a curve.
KEEPS_NOISE = Augmentation(smallest=1.0, contrast=0.0)


def patches(
    corpus: Corpus, count: int, edge: int, augmentation: Augmentation, generator: Generator
) -> tuple[Tensor, Tensor]:
    """Random patches of random images.

    Args:
        corpus: to draw from.
        count: number of patches.
        edge: of a patch in pixels.
        augmentation: how they are varied.
        generator: of every random draw.

    Returns:
        Channels `[count, 2, edge, edge]` on the scale of the corpus, and the noise in each, `[count]`.
    """
    drawn = torch.randint(len(corpus), (count,), generator=generator)
    gain = augmentation.gain ** (2 * torch.rand(count, generator=generator) - 1)
    images = torch.stack(
        [_patch(corpus[i], float(corpus.noise[i]), edge, augmentation, generator) for i in drawn.tolist()]
    )
    channels = torch.view_as_real(images * gain[:, None, None]).movedim(-1, 1)
    return channels.contiguous(), corpus.noise[drawn] * gain


def _patch(image: Tensor, noise: float, edge: int, augmentation: Augmentation, generator: Generator) -> Tensor:
    patch = _turned(_crop(image, noise, edge, augmentation.smallest, generator), generator)
    if not patch.is_complex():
        if _uniform(0, 1, generator) < augmentation.contrast:
            patch = _other_contrast(patch, generator)
        magnitude = patch.clamp_min(0)
        patch = torch.polar(magnitude, _phase(magnitude, augmentation.phase, generator))
    angle = torch.tensor(_uniform(-math.pi, math.pi, generator))
    return patch * torch.polar(torch.ones(()), angle)


def _crop(image: Tensor, noise: float, edge: int, smallest: float, generator: Generator) -> Tensor:
    """A random window of the image, shrunk to `edge` pixels by a random factor."""
    window = round(edge / _uniform(smallest, 1, generator))
    if min(image.shape) < window:
        image = _amid_air(image, noise, window, generator)
    top, left = (int(torch.randint(n - window + 1, (), generator=generator)) for n in image.shape)
    cut = image[top : top + window, left : left + window]
    if window == edge:
        return cut
    channels = torch.view_as_real(cut).movedim(-1, 0) if cut.is_complex() else cut[None]
    small = interpolate(channels[None], (edge, edge), mode="bilinear", antialias=True)[0]
    return torch.view_as_complex(small.movedim(0, -1).contiguous()) if cut.is_complex() else small[0]


def _amid_air(image: Tensor, noise: float, edge: int, generator: Generator) -> Tensor:
    """The image continued to at least `edge` pixels each way by air, which is as noisy as the image."""
    shape = [max(n, edge) for n in image.shape]
    air = torch.zeros(shape, dtype=image.dtype)
    if noise:
        air += noise * torch.view_as_complex(torch.randn(*shape, 2, generator=generator))
    top, left = ((whole - n) // 2 for whole, n in zip(shape, image.shape, strict=True))
    air[top : top + image.shape[0], left : left + image.shape[1]] = image
    return air


def _turned(patch: Tensor, generator: Generator) -> Tensor:
    quarter, mirrored = int(torch.randint(4, (), generator=generator)), _uniform(0, 1, generator) < 0.5
    patch = torch.rot90(patch, quarter, (-2, -1))
    return patch.flip(-1) if mirrored else patch


def _other_contrast(magnitude: Tensor, generator: Generator, knots: int = 6) -> Tensor:
    """Intensities through a random piecewise linear curve, as another weighting would show them.

    The curve may fall and rise, but never steeply, least of all at zero: the noise of the images must not come out
    as texture, nor air as tissue. Dark curves are made brighter, by a factor of two at most for the same reason.
    """
    slopes = torch.cat([torch.rand(1, generator=generator), 4 * torch.rand(knots - 1, generator=generator) - 2])
    heights = torch.cat([torch.zeros(1), slopes.cumsum(0).abs() / knots])
    heights = heights / heights.max().clamp_min(0.5)
    position = magnitude.clamp(0, 1) * knots
    below = position.floor().clamp(max=knots - 1)
    index = below.long()
    curve = heights[index] + (position - below) * (heights[index + 1] - heights[index])
    # What is brighter than the scale goes on as the curve ends.
    return curve * magnitude.clamp_min(1)


def _phase(magnitude: Tensor, greatest: float, generator: Generator) -> Tensor:
    """What coils, off-resonance and fat leave in gradient echoes, in radians, as the magnitude `[edge, edge]`."""
    edge = len(magnitude)
    phase = _smooth_phase(edge, greatest, generator)
    if _uniform(0, 1, generator) < 0.5:
        phase = phase + _bump(edge, 3 * greatest, generator)
    if _uniform(0, 1, generator) < 0.3:
        phase = phase + _of_tissue(magnitude, greatest, generator)
    return phase


def _smooth_phase(edge: int, greatest: float, generator: Generator) -> Tensor:
    """A random cubic over the patch, `[edge, edge]` in radians, as coils leave it."""
    line = torch.linspace(-1, 1, edge)
    powers = torch.stack([line**n for n in range(4)])
    order = torch.arange(4)
    coefficients = torch.randn(4, 4, generator=generator) * (order[:, None] + order <= 3)
    phase = powers.T @ coefficients @ powers
    return phase / phase.abs().max() * _uniform(0, greatest, generator)


def _bump(edge: int, greatest: float, generator: Generator) -> Tensor:
    """Off-resonance about an air cavity: a Gaussian of any place, in or near the patch, and of any width and ratio."""
    line = torch.linspace(-1, 1, edge)
    along_y, along_x = (
        ((line - _uniform(-1.3, 1.3, generator)) / _uniform(0.2, 0.8, generator)).square() for _ in range(2)
    )
    return _uniform(-greatest, greatest, generator) * torch.exp(-(along_y[:, None] + along_x) / 2)


def _of_tissue(magnitude: Tensor, greatest: float, generator: Generator) -> Tensor:
    """A phase of its own for what is brighter than some level, as fat has it."""
    level = _uniform(0.2, 0.9, generator)
    return _uniform(-greatest, greatest, generator) * torch.sigmoid((magnitude - level) / 0.03)


def _uniform(low: float, high: float, generator: Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator))
