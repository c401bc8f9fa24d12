"""Diffusion that fits image and coil maps to the data in turns, at every noise level."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from recon_core.calibration.smooth_coils import Smoothness
from recon_core.priors.pogmdm.model import PoGMDM
from recon_core.priors.prior import Prior
from recon_core.solvers.coil_fit import CoilFit
from recon_core.solvers.joint_problem import JointEstimate, JointProblem
from recon_core.solvers.run import Run
from recon_core.solvers.sample_pairs import deviation_factor, opposite_pairs, require_momentum, usual_momentum
from recon_core.solvers.schedule import falling_levels

PRODUCT_WEIGHT = 0.18
"""Of products of experts. Their experts judge the same pixels again and again, as if each time were new evidence: the
product denoises well, yet beside data it holds too much down. Found by trial on validation heads."""

_FIRST_ITERATIONS = 20
_NEIGHBOURHOOD = 7  # pixels, odd
_EMPTY = 2.0  # times the noise of the data: below this root mean square, a neighbourhood counts as empty,
_DIMMEST = 0.1  # unless it is above this, of the unit image: that is dim tissue, however much noise there is


def joint_diffusion(
    problem: JointProblem,
    prior: Prior,
    run: Run,
    *,
    steps: int = 20,
    highest: float = 0.3,
    lowest: float = 0.008,
    weight: float | None = None,
    iterations: int = 5,
    coil_iterations: int = 5,
    smoothness: float = 3.0,
    momentum: float | None = None,
) -> JointEstimate:
    """Decomposed diffusion (`decomposed_diffusion`) whose coil maps follow the image; stopped early, it ends as it is.

    At each noise level the prior denoises; conjugate gradients find the image that the data, with the maps so far, and
    the denoised image allow; others find the maps that the data, with this image, and the smoothness allow; and noise
    of the next level is added to the image. Both are least squares with their true weights, so that a few iterations
    from where the last ones ended do what takes gradient steps (paper 003, `joint_langevin`) hundreds. The maps fit an
    image that was found with maps of unit norm, so that theirs stays near one; it is brought back to one after each
    fit, which keeps the image on the scale that the prior learnt.

    The levels begin where the image that the first maps give is lost, not higher: no step is spent on forgetting it
    (Chung, Sim, Ye, CVPR 2022).

    The weight of the prior is the power to which its density counts. In the limit of a Gaussian prior and many steps
    the samples have the mean of that posterior and, without momentum, `weight / 2` times its variance; the deviation is
    put right by that, pixel by pixel where the weight is local. One of heads is still too small
    (benchmarks/RESULTS.md). Where a weight below one serves, the prior is surer than it should be; plug-and-play
    methods use such weights too (0.23 in Zhang et al., IEEE TPAMI 44:6360, 2022). A weight below one is that of what is
    there to be seen: where the image is empty it is one (`local_weight`).

    Args:
        problem: in the units of the prior (`JointProblem.scaled_for`).
        prior: of the images.
        run: what may be drawn and spent; each sample has maps of its own.
        steps: noise levels.
        highest: noise level to begin with, of the unit image.
        lowest: noise level to end with.
        weight: of the prior, where the image is not empty; by default 1, but for a product of experts `PRODUCT_WEIGHT`.
        iterations: of conjugate gradients for the image in each step.
        coil_iterations: of conjugate gradients for the maps in each step; none leave the first maps as they are.
        smoothness: weight of the penalty of the maps (`Smoothness`).
        momentum: of the images, from zero to below one; by default as in `decomposed_diffusion`.

    Raises:
        ValueError: the levels do not fall, the weight or the smoothness is not above zero, or the momentum is not from
            zero to below one.
    """
    weight = prior_weight(prior) if weight is None else weight
    if not 0 < weight < math.inf:
        raise ValueError(f"expected a weight of the prior above 0, got {weight:g}")
    momentum = usual_momentum(steps, run.samples) if momentum is None else momentum
    require_momentum(momentum)
    levels = falling_levels(prior, highest, lowest, steps)
    fit = CoilFit(problem, Smoothness(problem.data.shape[-2:], smoothness, device=problem.data.device))
    coil_maps = problem.first_maps.expand(run.samples, *problem.first_maps.shape)
    given = problem.given(coil_maps)
    image = given.tempered(torch.zeros_like(given.adjoint), levels[0], None, _FIRST_ITERATIONS)
    before = image
    wide = fit.first(image) if coil_iterations else None
    for done, level in enumerate(levels):
        if not run.go_on(done, steps):
            return _estimate(problem, image, coil_maps, weight, momentum, done, steps)
        noisy = image + math.sqrt(2) * level * opposite_pairs(image, run.generator)
        denoised = prior.denoise_in_any_phase(noisy, level, run.generator)
        width = level / local_weight(weight, denoised, problem.noise_level).sqrt()
        centre = denoised + momentum * (image - before)
        before, image = image, problem.given(coil_maps).tempered(centre, width, centre, iterations)
        if wide is not None:
            wide = fit(image, wide, coil_iterations)
            coil_maps = fit.maps(wide)
    return _estimate(problem, image, coil_maps, weight, momentum, steps, steps)


def prior_weight(prior: Prior) -> float:
    """What suits a prior: one, but less for products of experts."""
    return PRODUCT_WEIGHT if isinstance(prior.denoiser, PoGMDM) else 1.0


def local_weight(weight: float, image: Tensor, noise_level: Tensor) -> Tensor:
    """Of the prior in each pixel: one where the image is empty, and the weight, if that is less, where it is not.

    What a product of experts counts too often is structure: many filters of all scales see the same edge. The air has
    none; what they all hold down there is noise, which a low weight would leave in it. That noise is most of the error
    outside of heads (benchmarks/RESULTS.md).

    Args:
        weight: where there is something.
        image: without noise, as far as is known, `[..., y, x]`.
        noise_level: of the data (`JointProblem.noise_level`), what is below counts as empty, `[slice..., 1, 1]`.
    """
    power = image.abs().square()
    planes = power.reshape(-1, *power.shape[-2:])
    near = avg_pool2d(planes, _NEIGHBOURHOOD, 1, _NEIGHBOURHOOD // 2, count_include_pad=False).view_as(power)
    limit = (_EMPTY * math.sqrt(2) * noise_level).clamp(max=_DIMMEST)
    empty = torch.exp(-near / limit**2)
    return weight + (max(weight, 1.0) - weight) * empty


def _estimate(
    problem: JointProblem, image: Tensor, coil_maps: Tensor, weight: float, momentum: float, done: int, planned: int
) -> JointEstimate:
    """With the deviation of the posterior."""
    found = JointEstimate.of_both(*problem.fixed(image, coil_maps), done, planned)
    if found.deviation is None:
        return found
    factor = deviation_factor(len(image), momentum) / local_weight(weight, found.image, problem.noise_level).sqrt()
    return replace(found, deviation=factor * found.deviation)
