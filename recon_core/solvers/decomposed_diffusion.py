"""Diffusion that brings every denoised image to the data before noise is added again."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from recon_core.priors.prior import Prior
from recon_core.solvers.linear_problem import LinearProblem, complex_normal
from recon_core.solvers.run import Estimate, Run
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
) -> Estimate:
    """DDS with all of the noise renewed at every step (Chung, Lee, Ye, ICLR 2024, arXiv 2303.05754; eta = 1).

    At each noise level the prior denoises, conjugate gradients find the image that both the data and the denoised image
    allow, each with its own noise, and white noise of the next level is added to it. The weight of the data is that of
    their noise, where the paper has a constant. Few steps do: each is exact for the data. Where they are stopped before
    the end, the noise that the data leave in the image is denoised once more.

    The samples are means given what came before rather than draws of the posterior. For a Gaussian prior, in the limit
    of many steps, their mean is that of the posterior and their variance is half of its variance, so the deviation is
    given as the square root of two times theirs. With few steps and priors of heads it is still too small
    (benchmarks/RESULTS.md).

    Args:
        problem: in the units of the prior (`LinearProblem.scaled_for`).
        prior: of the images.
        run: what may be drawn and spent.
        steps: noise levels.
        highest: noise level to begin with, of the unit image: the undersampled image must be lost in it.
        lowest: noise level to end with.
        iterations: of conjugate gradients in each step.

    Raises:
        ValueError: the levels do not fall.
    """
    levels = falling_levels(prior, highest, lowest, steps)
    nothing = torch.zeros_like(problem.adjoint).expand(run.samples, *problem.adjoint.shape)
    clean = problem.tempered(nothing, levels[0], None, _FIRST_ITERATIONS)
    for done, level in enumerate(levels):
        if not run.go_on(done, steps):
            return _estimate(without_noise(problem, prior, clean, level), done, steps)
        noisy = clean + math.sqrt(2) * level * complex_normal(clean.shape, clean, run.generator)
        denoised = prior.denoise(noisy, level)
        clean = problem.tempered(denoised, level, denoised, iterations)
    return _estimate(clean, steps, steps)


def _estimate(samples: Tensor, done: int, planned: int) -> Estimate:
    found = Estimate.of(samples, done, planned)
    return found if found.deviation is None else replace(found, deviation=math.sqrt(2) * found.deviation)
