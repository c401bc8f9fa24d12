"""What brings the mean of few samples, drawn in few steps, nearer to that of the posterior: pairs and momentum."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from recon_core.solvers.linear_problem import complex_normal

_MOST_MOMENTUM, _STEPS_WITHOUT = 0.5, 40


def opposite_pairs(samples: Tensor, generator: Generator) -> Tensor:
    """White noise for `[sample, ...]`, the same with the other sign for the second half of the samples.

    What it does to them cancels in their mean but for what is not linear.
    """
    first = complex_normal(((len(samples) + 1) // 2, *samples.shape[1:]), samples, generator)
    return torch.cat([first, -first])[: len(samples)]


def usual_momentum(steps: int, samples: int) -> float:
    """The part of the last step that is added to each denoised image.

    What the data do not see moves farther by the factor `1 / (1 - momentum)`, as in so many times more steps: 40, where
    momentum is not above one half. Many more make errors of a network grow (benchmarks/RESULTS.md). A single sample has
    no momentum, as nothing cancels the noise that it adds too.
    """
    return min(max(1 - steps / _STEPS_WITHOUT, 0.0), _MOST_MOMENTUM) if samples > 1 else 0.0


def require_momentum(momentum: float) -> None:
    """That a step ends.

    Raises:
        ValueError: it is not from zero to below one.
    """
    if not 0 <= momentum < 1:
        raise ValueError(f"expected a momentum from zero to below one, got {momentum:g}")


def deviation_factor(samples: int, momentum: float) -> float:
    """From the standard deviation among several samples to that of the posterior, for a Gaussian prior and many steps.

    Samples of the variance V about their true mean are `1 / (2 (1 - momentum))` of the posterior's. Where they are
    n / 2 pairs of the correlation -1, among n (n - 1) / 2 pairs in all, their variance about their own mean is
    `1 + 1 / (n - 1)` of V; where one more is alone, of n in all, `1 + 1 / n`. So it is where noise of the other sign
    has the opposite effect: it has but in part where a network denoises, in phases that differ.
    """
    odd = (samples - 1) | 1
    return math.sqrt(2 * (1 - momentum) / (1 + 1 / odd))
