"""Diffusion that brings every denoised image to the data before noise is added again."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Generator, Tensor

from recon_core.priors.prior import Prior
from recon_core.solvers.linear_problem import LinearProblem, complex_normal
from recon_core.solvers.run import Estimate, Run
from recon_core.solvers.schedule import falling_levels
from recon_core.solvers.stopped import without_noise

_FIRST_ITERATIONS = 20
_MOST_MOMENTUM, _STEPS_WITHOUT = 0.5, 40


def decomposed_diffusion(
    problem: LinearProblem,
    prior: Prior,
    run: Run,
    *,
    steps: int = 20,
    highest: float = 1.0,
    lowest: float = 0.01,
    iterations: int = 5,
    momentum: float | None = None,
) -> Estimate:
    """DDS with all of the noise renewed at every step (Chung, Lee, Ye, ICLR 2024, arXiv 2303.05754; eta = 1).

    At each noise level the prior denoises, conjugate gradients find the image that both the data and the denoised image
    allow, each with its own noise, and white noise of the next level is added to it. The weight of the data is that of
    their noise, where the paper has a constant. Few steps do: each is exact for the data. Where they are stopped before
    the end, the noise that the data leave in the image is denoised once more.

    Three changes bring the mean of the samples nearer to that of the posterior in as few steps. Each image is denoised
    in a random phase if that is all the same to the prior, so that errors of a network that depend on it average out
    over steps and samples. Samples are pairs whose noise differs in its sign alone, so that what it does to them
    cancels in their mean but for what is not linear. And a part of the last step, `momentum`, is added to each denoised
    image: what the data do not see moves farther by the factor `1 / (1 - momentum)`, as in so many times more steps. By
    default these are 40, where momentum is not above one half; many more make errors of the network grow
    (benchmarks/RESULTS.md). A single sample has no momentum, as nothing cancels the noise that it adds too.

    For a Gaussian prior, in the limit of many steps, the mean of the samples is that of the posterior, and their
    variance is its variance with a momentum of one half, and half of it with none; the deviation is given with this
    factor. With few steps and priors of heads it is still too small (benchmarks/RESULTS.md).

    Args:
        problem: in the units of the prior (`LinearProblem.scaled_for`).
        prior: of the images.
        run: what may be drawn and spent.
        steps: noise levels.
        highest: noise level to begin with, of the unit image: the undersampled image must be lost in it.
        lowest: noise level to end with.
        iterations: of conjugate gradients in each step.
        momentum: from zero to below one; by default one half for up to 20 steps, less for more, zero from 40 on and
            for a single sample.

    Raises:
        ValueError: the levels do not fall, or the momentum is not from zero to below one.
    """
    levels = falling_levels(prior, highest, lowest, steps)
    if momentum is None:
        momentum = min(max(1 - steps / _STEPS_WITHOUT, 0.0), _MOST_MOMENTUM) if run.samples > 1 else 0.0
    if not 0 <= momentum < 1:
        raise ValueError(f"expected a momentum from zero to below one, got {momentum:g}")
    nothing = torch.zeros_like(problem.adjoint).expand(run.samples, *problem.adjoint.shape)
    clean = problem.tempered(nothing, levels[0], None, _FIRST_ITERATIONS)
    before = clean
    for done, level in enumerate(levels):
        if not run.go_on(done, steps):
            return _estimate(without_noise(problem, prior, clean, level), momentum, done, steps)
        noisy = clean + math.sqrt(2) * level * _opposite_pairs(clean, run.generator)
        centre = prior.denoise_in_any_phase(noisy, level, run.generator) + momentum * (clean - before)
        before, clean = clean, problem.tempered(centre, level, centre, iterations)
    return _estimate(clean, momentum, steps, steps)


def _opposite_pairs(samples: Tensor, generator: Generator) -> Tensor:
    """White noise for `[sample, ...]`, the same with the other sign for the second half of the samples."""
    first = complex_normal(((len(samples) + 1) // 2, *samples.shape[1:]), samples, generator)
    return torch.cat([first, -first])[: len(samples)]


def _estimate(samples: Tensor, momentum: float, done: int, planned: int) -> Estimate:
    """With the deviation of the posterior, if noise of the other sign has the opposite effect.

    Samples of the variance V about their true mean are `1 / (2 (1 - momentum))` of the posterior's. Where they are
    n / 2 pairs of the correlation -1, among n (n - 1) / 2 pairs in all, their variance about their own mean is
    `1 + 1 / (n - 1)` of V; where one more is alone, of n in all, `1 + 1 / n`.
    """
    found = Estimate.of(samples, done, planned)
    if found.deviation is None:
        return found
    odd = (len(samples) - 1) | 1
    return replace(found, deviation=math.sqrt(2 * (1 - momentum) / (1 + 1 / odd)) * found.deviation)
