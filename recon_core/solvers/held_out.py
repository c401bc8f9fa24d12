"""How well samples that were held out are foretold."""

from __future__ import annotations

from torch import Generator, Tensor

from recon_core.operators.linear_model import LinearModel
from recon_core.priors.prior import Prior
from recon_core.solvers.decomposed_diffusion import decomposed_diffusion
from recon_core.solvers.linear_problem import LinearProblem
from recon_core.solvers.run import Run

_STEPS, _HIGHEST = 4, 0.1
"""Of the image. Six from 0.3 change the misfits of heads by less than a tenth (benchmarks/RESULTS.md)."""


def held_out_misfits(
    problem: LinearProblem, prior: Prior, generator: Generator, held_out: LinearModel, kspace: Tensor
) -> Tensor:
    """`|A x - y|^2` of each sample, for x from other samples: in the mean one where the model holds, plus x's noise.

    The prior helps x in any model alike. Without it, what few interleaves leave open is most of what is missed, and
    hardly tells models apart.

    Args:
        problem: of the other samples, in units of the prior.
        prior: of the images.
        generator: of what is drawn for x; models are to be compared with the same.
        held_out: A, of the samples that were left out.
        kspace: y, prewhitened: `[coil, shot, sample]`.

    Returns:
        Real, of the shape of the samples.
    """
    image = decomposed_diffusion(problem, prior, Run(generator), steps=_STEPS, highest=_HIGHEST).image
    return (held_out.forward(problem.unit * image) - kspace).abs().square()
