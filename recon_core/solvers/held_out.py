"""How well samples that were held out are foretold."""

from __future__ import annotations

from torch import Tensor

from recon_core.operators.linear_model import LinearModel
from recon_core.solvers.linear_problem import LinearProblem

_LEVEL = 0.3
_ITERATIONS = 20


def held_out_misfit(problem: LinearProblem, held_out: LinearModel, kspace: Tensor) -> float:
    """`|A x - y|^2` per sample, for x from other samples: about one where the model holds, plus the noise of x.

    No prior helps, so that x is about as good as the model of its samples: a regularised least-squares image.

    Args:
        problem: of the other samples, in units of a prior.
        held_out: A, of the samples that were left out.
        kspace: y, prewhitened: `[coil, shot, sample]`.
    """
    image = problem.solve(problem.adjoint, _LEVEL, None, _ITERATIONS, 1e-4)
    return float((held_out.forward(problem.unit * image) - kspace).abs().square().mean())
