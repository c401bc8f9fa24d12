"""Diffusion that fits image and coil maps to the data in turns, at every noise level."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from recon_core.calibration.smooth_coils import Smoothness
from recon_core.priors.prior import Prior
from recon_core.solvers.coil_fit import CoilFit
from recon_core.solvers.joint_problem import JointEstimate, JointProblem
from recon_core.solvers.linear_problem import complex_normal
from recon_core.solvers.run import Run
from recon_core.solvers.schedule import falling_levels

_FIRST_ITERATIONS = 20


def joint_diffusion(
    problem: JointProblem,
    prior: Prior,
    run: Run,
    *,
    steps: int = 20,
    highest: float = 0.3,
    lowest: float = 0.03,
    iterations: int = 5,
    coil_iterations: int = 5,
    smoothness: float = 1.0,
) -> JointEstimate:
    """Decomposed diffusion (`decomposed_diffusion`, without pairs and momentum) whose coil maps follow the image.

    At each noise level the prior denoises; conjugate gradients find the image that the data, with the maps so far, and
    the denoised image allow; others find the maps that the data, with this image, and the smoothness allow; and noise
    of the next level is added to the image. Both are least squares with their true weights, so that a few iterations
    from where the last ones ended do what takes gradient steps (paper 003, `joint_langevin`) hundreds. The maps fit an
    image that was found with maps of unit norm, so that theirs stays near one; it is brought back to one after each
    fit, which keeps the image on the scale that the prior learnt.

    The levels begin where the image that the first maps give is lost, not higher: no step is spent on forgetting it
    (Chung, Sim, Ye, CVPR 2022).

    Args:
        problem: in the units of the prior (`JointProblem.scaled_for`).
        prior: of the images.
        run: what may be drawn and spent; each sample has maps of its own.
        steps: noise levels.
        highest: noise level to begin with, of the unit image.
        lowest: noise level to end with; a prior that denoises worse, such as head_pogmdm, loses by lower ones.
        iterations: of conjugate gradients for the image in each step.
        coil_iterations: of conjugate gradients for the maps in each step; none leave the first maps as they are.
        smoothness: weight of the penalty of the maps (`Smoothness`).

    Raises:
        ValueError: the levels do not fall, or the smoothness is not above zero.
    """
    levels = falling_levels(prior, highest, lowest, steps)
    fit = CoilFit(problem, Smoothness(problem.data.shape[-2:], smoothness, device=problem.data.device))
    coil_maps = problem.first_maps.expand(run.samples, *problem.first_maps.shape)
    given = problem.given(coil_maps)
    image = given.tempered(torch.zeros_like(given.adjoint), levels[0], None, _FIRST_ITERATIONS)
    wide = fit.first(image) if coil_iterations else None
    for done, level in enumerate(levels):
        if not run.go_on(done, steps):
            return _estimate(problem, image, coil_maps, done, steps)
        noisy = image + math.sqrt(2) * level * complex_normal(image.shape, image, run.generator)
        denoised = prior.denoise(noisy, level)
        image = problem.given(coil_maps).tempered(denoised, level, denoised, iterations)
        if wide is not None:
            wide = fit(image, wide, coil_iterations)
            coil_maps = fit.maps(wide)
    return _estimate(problem, image, coil_maps, steps, steps)


def _estimate(problem: JointProblem, image: Tensor, coil_maps: Tensor, done: int, planned: int) -> JointEstimate:
    """With the deviation of the posterior, of which samples without momentum have half the variance."""
    found = JointEstimate.of_both(*problem.fixed(image, coil_maps), done, planned)
    return found if found.deviation is None else replace(found, deviation=math.sqrt(2) * found.deviation)
