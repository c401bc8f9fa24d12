"""What becomes of images whose method was stopped before its end."""

from __future__ import annotations

from torch import Tensor

from recon_core.priors.prior import Prior
from recon_core.solvers.linear_problem import LinearProblem


def without_noise(problem: LinearProblem, prior: Prior, image: Tensor, level: float) -> Tensor:
    """Images that agree with the data, without the noise that the data leave in them.

    Args:
        problem: in the units of the prior.
        prior: of the images.
        image: complex `[sample, slice..., y, x]`.
        level: at which the method stopped: its images hold no more noise than that, of the unit image.
    """
    known = problem.noise_level[..., 0, 0].clamp(max=level).clamp(min=prior.convention.lowest)
    return prior.denoise(image, known.expand(image.shape[:-2]))
