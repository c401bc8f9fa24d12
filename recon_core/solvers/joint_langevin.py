"""Predictor and corrector for the image, proximal gradient steps for the coil maps: the method of paper 003."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Generator, Tensor

from recon_core.calibration.smooth_coils import Smoothness
from recon_core.priors.prior import Prior
from recon_core.solvers.coil_fit import CoilFit
from recon_core.solvers.joint_problem import JointEstimate, JointProblem, normalised
from recon_core.solvers.linear_problem import complex_normal
from recon_core.solvers.run import Run
from recon_core.solvers.schedule import falling_levels

_FIRST_ITERATIONS = 20


def joint_langevin(
    problem: JointProblem,
    prior: Prior,
    run: Run,
    *,
    steps: int = 300,
    highest: float = 0.3,
    lowest: float = 0.01,
    corrector: float = 0.16,
    coil_steps: int = 1,
    smoothness: float = 3.0,
) -> JointEstimate:
    """Samples of image and maps by annealed diffusion (Nagler et al., paper 003, algorithm 1), signs corrected.

    At each noise level: a step of the reverse diffusion, a corrector step of Langevin dynamics (Song et al., ICLR
    2021), and a proximal gradient step on the maps.

    What differs from the paper: gradients go down, and the one for the maps has the conjugate of x; the length of the
    steps for the maps is one over the curvature, `a = 1 / (2 |unit^2 E^H E| max |x|^2)`, where the paper's 10 diverges
    for images brighter than 0.2; maps have the smoothness of `Smoothness`; the score of the data joins that of the
    prior in both steps, with the noise of the data and, as far as these can see it, that of the level, where the paper
    takes gradient steps of length one, which weigh the data the more the more levels there are; and after the last
    level its noise is taken off. The start is the accelerated one (Chung, Sim, Ye, CVPR 2022), from an image that is
    good enough not to begin at 10.

    Args:
        problem: in the units of the prior (`JointProblem.scaled_for`).
        prior: of the images.
        run: what may be drawn and spent; each sample has maps of its own.
        steps: noise levels.
        highest: noise level to begin with, of the unit image.
        lowest: noise level to end with.
        corrector: ratio of signal to noise in the corrector, r.
        coil_steps: proximal steps at each level; none leave the first maps as they are.
        smoothness: weight of the penalty of the maps (`Smoothness`).

    Raises:
        ValueError: the levels do not fall, or the smoothness is not above zero.
    """
    levels = falling_levels(prior, highest, lowest, steps)
    penalty = Smoothness(problem.data.shape[-2:], smoothness, device=problem.data.device)
    coil_maps = problem.first_maps.expand(run.samples, *problem.first_maps.shape)
    given = problem.given(coil_maps)
    level = levels[0]
    image = given.tempered(torch.zeros_like(given.adjoint), level, None, _FIRST_ITERATIONS)
    fit = CoilFit(problem, penalty)
    wide = fit.wide(fit.first(image))
    image = image + _noise(image, run.generator, level)
    for done, lower in enumerate(levels):
        if not run.go_on(done, steps):
            break
        grown = level**2 - lower**2
        score = prior.score(image, level) + _data_score(problem, image, coil_maps, level)
        image = image + grown * score + _noise(image, run.generator, math.sqrt(grown))
        level = lower
        score, noise = prior.score(image, level), _noise(image, run.generator, 1.0)
        length = 2 * (corrector * _norm(noise) / _norm(score)) ** 2
        score = score + _data_score(problem, image, coil_maps, level)
        image = image + length * score + (2 * length).sqrt() * noise
        for _ in range(coil_steps):
            wide = problem.proximal_step(penalty, image, wide)
            coil_maps = normalised(penalty.cropped(wide))
    else:
        done = steps
    denoised = prior.denoise(image, level)
    image = problem.given(coil_maps).tempered(denoised, level, denoised, _FIRST_ITERATIONS)
    return JointEstimate.of_both(*problem.fixed(image, coil_maps), done, steps)


def map_estimate(
    problem: JointProblem,
    prior: Prior,
    found: JointEstimate,
    run: Run,
    *,
    steps: int = 250,
    level: float = 0.0,
    weight: float | Tensor = 1.0,
) -> JointEstimate:
    """The most likely image for the maps that were found, by Nesterov's accelerated gradients (paper 003).

    Minimises `|unit A x - y|^2 - weight log p(x)` with the density of images that have noise of a low level, which is
    the one that the prior knows: the lower, the sharper it tells the air from the head. The step is one over the
    greatest curvature that data and prior can have. With a weight of each pixel it is where the gradients of both
    cancel, the prior's times the weight: nearly a minimum where the weight changes slowly.

    Args:
        problem: as it was solved.
        prior: of the images.
        found: where to begin.
        run: what may be spent; nothing is drawn.
        steps: of the descent.
        level: of the prior, but at least the lowest that it knows.
        weight: of the prior, one or of each pixel, see `joint_diffusion`.

    Returns:
        Without a deviation.
    """
    level = max(level, prior.convention.lowest)
    given = problem.given(found.coil_maps)
    length = 1 / (2 * problem.strength + float(torch.as_tensor(weight).max()) / level**2)
    image = ahead = found.image
    momentum = 1.0
    for done in range(steps):
        if not run.go_on(done, steps):
            return replace(found, image=image, deviation=None, steps=done, planned=steps)
        following = ahead - length * (given.gradient(ahead) - weight * prior.score(ahead, level))
        grown = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
        ahead = following + (momentum - 1) / grown * (following - image)
        image, momentum = following, grown
    return replace(found, image=image, deviation=None, steps=steps, planned=steps)


def _noise(like: Tensor, generator: Generator, level: float) -> Tensor:
    return math.sqrt(2) * level * complex_normal(like.shape, like, generator)


def _data_score(problem: JointProblem, image: Tensor, coil_maps: Tensor, level: float) -> Tensor:
    """Of the data given an image with noise, per real channel: their noise and, at most, that of the image."""
    gradient = 2 * (coil_maps.conj() * problem.residual(image, coil_maps)).sum(-3)
    return -gradient / (1 + 2 * level**2 * problem.strength)


def _norm(image: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(image, dim=(-2, -1), keepdim=True)
    return norm
