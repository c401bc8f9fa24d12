"""A small convolutional network that removes white noise of any level from complex images of any size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from recon_core.priors.padding import mirrored
from recon_core.priors.precision import bfloat16_pays


@dataclass(frozen=True)
class UNetConfig:
    """How large a network is, and for which images.

    Args:
        channels: at each resolution, the finest first; every step halves the resolution.
        blocks: residual blocks per resolution, on the way down and on the way up.
        signal: standard deviation per real channel of clean images (`sigma_data` of Karras et al.).

    Raises:
        ValueError: there are no channels or blocks, or the signal is not positive.
    """

    channels: Sequence[int] = (32, 64, 128, 192)
    blocks: int = 1
    signal: float = 0.35

    def __post_init__(self) -> None:
        if not self.channels or min(self.channels) < 1 or self.blocks < 1 or not 0 < self.signal < math.inf:
            raise ValueError(f"expected channels, blocks and a signal above zero, got {self}")


SIZES = {"small": UNetConfig(), "large": UNetConfig(blocks=2)}


class UNet(nn.Module):
    """Denoiser with the preconditioning of Karras et al. (Elucidating the design space, NeurIPS 2022, table 1).

    There is no normalisation over pixels, so that what it makes of one part of an image depends neither on the size
    of the image nor on what else is in the batch.

    Args:
        config: how large it is.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        self.network = _Network(config)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, image: Tensor, sigma: Tensor) -> Tensor:
        """Mean of the clean images given the noisy ones.

        Args:
            image: `[n, 2, y, x]`, real and imaginary part.
            sigma: noise level of each, `[n]`.
        """
        level, signal = sigma[:, None, None, None], self.config.signal
        total = torch.sqrt(level**2 + signal**2)
        with torch.autocast(image.device.type, torch.bfloat16, enabled=bfloat16_pays(image.device, image.dtype)):
            residual = self.network(image / total, torch.log(sigma) / 4)
        denoised: Tensor = image * (signal / total) ** 2 + residual.to(image.dtype) * (level * signal / total)
        return denoised

    def weight(self, sigma: Tensor) -> Tensor:
        """Weight of the squared error that asks equally much of the network at every noise level, `[n]`."""
        signal = self.config.signal
        return (sigma**2 + signal**2) / (sigma * signal) ** 2


class _Network(nn.Module):
    """Residual U-Net; the noise level scales and shifts the features of each block."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        channels = config.channels
        self.noise = _NoiseEmbedding(channels[-1])
        self.first = nn.Conv2d(2, channels[0], 3, padding=1)
        self.down = nn.ModuleList(_Level(c, config.blocks, channels[-1]) for c in channels)
        self.up = nn.ModuleList(_Level(c, config.blocks, channels[-1]) for c in channels[:-1])
        pairs = list(pairwise(channels))
        self.coarser = nn.ModuleList(nn.Conv2d(fine, coarse, 2, stride=2) for fine, coarse in pairs)
        self.finer = nn.ModuleList(nn.ConvTranspose2d(coarse, fine, 2, stride=2) for fine, coarse in pairs)
        self.last = nn.Conv2d(channels[0], 2, 3, padding=1)
        nn.init.zeros_(self.last.weight)

    def forward(self, image: Tensor, noise: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        level = self.noise(noise)
        x = self.first(mirrored(image, 2 ** len(self.coarser)).contiguous(memory_format=torch.channels_last))
        skipped = []
        for i, blocks in enumerate(self.down):
            x = blocks(x, level)
            if i < len(self.coarser):
                skipped.append(x)
                x = self.coarser[i](x)
        for i in reversed(range(len(self.finer))):
            x = self.up[i](self.finer[i](x) + skipped[i], level)
        residual: Tensor = self.last(x)[..., :height, :width]
        return residual


class _Level(nn.ModuleList):
    """The blocks of one resolution."""

    def __init__(self, channels: int, blocks: int, noise_features: int) -> None:
        super().__init__(_Block(channels, noise_features) for _ in range(blocks))

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        for block in self:
            x = block(x, level)
        return x


class _Block(nn.Module):
    def __init__(self, channels: int, noise_features: int) -> None:
        super().__init__()
        self.inner = nn.Conv2d(channels, channels, 3, padding=1)
        self.outer = nn.Conv2d(channels, channels, 3, padding=1)
        self.film = nn.Linear(noise_features, 2 * channels)
        # Each block starts as the identity: without normalisation that is what keeps training stable.
        for parameter in (*self.outer.parameters(), *self.film.parameters()):
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        gain, shift = self.film(level)[:, :, None, None].chunk(2, dim=1)
        change: Tensor = self.outer(relu(self.inner(x) * (1 + gain) + shift))
        return x + change


class _NoiseEmbedding(nn.Module):
    """Features of the noise level: waves of its logarithm, then two dense layers."""

    def __init__(self, features: int, waves: int = 16) -> None:
        super().__init__()
        self.dense = nn.Sequential(nn.Linear(2 * waves, features), nn.SiLU(), nn.Linear(features, features), nn.SiLU())
        self.frequency: Tensor
        self.register_buffer("frequency", 2 * math.pi * 2.0 ** torch.linspace(-3, 2, waves), persistent=False)

    def forward(self, noise: Tensor) -> Tensor:
        angle = noise[:, None] * self.frequency
        features: Tensor = self.dense(torch.cat([angle.cos(), angle.sin()], dim=1))
        return features
