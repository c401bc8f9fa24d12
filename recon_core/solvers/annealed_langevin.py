"""Langevin dynamics at falling noise levels, for any gradient of the likelihood."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from recon_core.priors.prior import Prior
from recon_core.solvers.linear_problem import LinearProblem, complex_normal
from recon_core.solvers.run import Estimate, Run

_FIRST_ITERATIONS = 20
_LAST_ITERATIONS = 5


def annealed_langevin(
    problem: LinearProblem,
    prior: Prior,
    run: Run,
    levels: list[float],
    *,
    steps_per_level: int,
    data_score: Callable[[Tensor, float], Tensor],
    step: Callable[[float], float],
) -> Estimate:
    """Draws by `x <- x + eta (s(x) + d(x)) + sqrt(2 eta) z`, z of unit variance per real channel.

    The start is the mean of the image given the data and a Gaussian of the first level, with noise of that level. At
    the end the noise of the last level is taken off, by the prior and by the data: for a prior that knows no low levels
    it would be most of the error.

    Args:
        problem: in the units of the prior.
        prior: s, its score.
        run: what may be drawn and spent.
        levels: noise levels, falling.
        steps_per_level: moves at each.
        data_score: d, per real channel, of the images at a level.
        step: eta at a level.
    """
    planned = len(levels) * steps_per_level
    nothing = torch.zeros_like(problem.adjoint)
    start = problem.tempered(nothing, levels[0], None, _FIRST_ITERATIONS).expand(run.samples, *nothing.shape)
    image = start + levels[0] * _unit_noise(start, run)
    done, level = 0, levels[0]
    while done < planned and run.go_on(done, planned):
        level = levels[done // steps_per_level]
        eta = step(level)
        drift = prior.score(image, level) + data_score(image, level)
        image = image + eta * drift + math.sqrt(2 * eta) * _unit_noise(image, run)
        done += 1
    denoised = prior.denoise(image, level)
    return Estimate.of(problem.tempered(denoised, level, denoised, _LAST_ITERATIONS), done, planned)


def _unit_noise(like: Tensor, run: Run) -> Tensor:
    """Of unit variance per real channel."""
    return math.sqrt(2) * complex_normal(like.shape, like, run.generator)
