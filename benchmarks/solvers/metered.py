"""A prior that tells how often it was asked, and how long it took."""

from __future__ import annotations

import time
from dataclasses import replace

import torch
from torch import Tensor, nn

from recon_core.priors.prior import Prior


class Meter(nn.Module):
    """A denoiser and what it has cost so far: calls, each of all samples at once, and seconds."""

    def __init__(self, denoiser: nn.Module) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.calls, self.seconds = 0, 0.0

    def forward(self, channels: Tensor, sigma: Tensor) -> Tensor:
        """As the denoiser."""
        began = _now(channels)
        denoised: Tensor = self.denoiser(channels, sigma)
        self.seconds += _now(channels) - began
        self.calls += 1
        return denoised


def metered(prior: Prior) -> tuple[Prior, Meter]:
    """The same prior, and its meter."""
    meter = Meter(prior.denoiser)
    return Prior(meter, replace(prior.convention), prior.name), meter


def _now(x: Tensor) -> float:
    if x.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter()
