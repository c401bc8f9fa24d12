"""Where a sampler of Gaussian images is, exactly: its moves are linear, so that mean and covariance can be followed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from recon_core.solvers.run import Estimate

from gaussian_problem import Gaussian, Posterior, Scan


@dataclass(frozen=True)
class Chain:
    """What one sample of a chain is drawn from.

    Attributes:
        mean: complex `[pixel]`.
        covariance: E e e^H, `[pixel, pixel]`.
    """

    mean: Tensor
    covariance: Tensor

    def moved(self, keep: Tensor, shift: Tensor, noise: Tensor) -> Chain:
        """After `x <- keep x + shift + n`, with noise of a covariance."""
        return Chain(keep @ self.mean + shift, keep @ self.covariance @ keep.mH + noise)

    def denoised_and_tempered(self, given: Scan, prior: Gaussian, level: float) -> Chain:
        """After the prior denoised, and the data were weighed against that at the same level."""
        tempering = tempered_covariance(given, level)
        gain = prior.covariance() @ torch.linalg.inv(prior.covariance(level))
        rest = prior.mean.flatten() - gain @ prior.mean.flatten()
        shift = tempering @ (back(given) + rest / (2 * level**2))
        return self.moved(tempering @ gain / (2 * level**2), shift, torch.zeros_like(gain))


def tempered_covariance(given: Scan, level: float) -> Tensor:
    """(unit^2 A^H A + 1 / (2 level^2))^-1."""
    return torch.linalg.inv(given.precision + torch.eye(len(given.precision)) / (2 * level**2))


def back(given: Scan) -> Tensor:
    """unit A^H y, `[pixel]`."""
    return given.matrix.mH @ given.kspace


def require_mean(estimate: Estimate, samples: int, mean: Tensor, covariance: Tensor) -> None:
    """That a mean of so many samples is one of those that occur: whitened, its square norm is Gamma distributed."""
    error = estimate.image.flatten() - mean.flatten()
    norm = samples * float(torch.vdot(error, torch.linalg.solve(covariance, error)).real)
    assert abs(norm - len(error)) < 5 * math.sqrt(len(error))


def require_deviation(estimate: Estimate, samples: int, covariance: Tensor, slack: float = 0.0) -> None:
    """That deviations of so many samples are those of the covariance: on average, and nowhere far from it."""
    variances = covariance.diagonal().real
    ratios = estimate.deviation.flatten().square() / variances
    correlation = covariance / (variances[:, None] * variances).sqrt()
    spread = float(correlation.abs().square().mean() / (samples - 1)) ** 0.5
    assert abs(float(ratios.mean()) - 1) < 4 * spread + slack
    assert float((ratios - 1).abs().max()) < 5 / math.sqrt(samples - 1) + slack


def relative_to(posterior: Posterior, estimate: Estimate) -> float:
    """Root mean square error of an estimate, in deviations of the posterior."""
    return float(((estimate.image - posterior.mean).abs() / posterior.deviation).square().mean().sqrt())
