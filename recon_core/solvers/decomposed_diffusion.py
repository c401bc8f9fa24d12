"""Diffusion that brings every denoised image to the data before noise is added again."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from recon_core.priors.prior import Prior
from recon_core.solvers.linear_problem import LinearProblem
from recon_core.solvers.run import Estimate, Run
from recon_core.solvers.sample_pairs import deviation_factor, opposite_pairs, require_momentum, usual_momentum
from recon_core.solvers.schedule import falling_levels
from recon_core.solvers.stopped import without_noise

_FIRST_ITERATIONS = 20


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
    image, so that what the data do not see moves as far as in more steps (`usual_momentum`).

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
    momentum = usual_momentum(steps, run.samples) if momentum is None else momentum
    require_momentum(momentum)
    nothing = torch.zeros_like(problem.adjoint).expand(run.samples, *problem.adjoint.shape)
    clean = problem.tempered(nothing, levels[0], None, _FIRST_ITERATIONS)
    before = clean
    for done, level in enumerate(levels):
        if not run.go_on(done, steps):
            return _estimate(without_noise(problem, prior, clean, level), momentum, done, steps)
        noisy = clean + math.sqrt(2) * level * opposite_pairs(clean, run.generator)
        centre = prior.denoise_in_any_phase(noisy, level, run.generator) + momentum * (clean - before)
        before, clean = clean, problem.tempered(centre, level, centre, iterations)
    return _estimate(clean, momentum, steps, steps)


def _estimate(samples: Tensor, momentum: float, done: int, planned: int) -> Estimate:
    """With the deviation of the posterior."""
    found = Estimate.of(samples, done, planned)
    if found.deviation is None:
        return found
    return replace(found, deviation=deviation_factor(len(samples), momentum) * found.deviation)
