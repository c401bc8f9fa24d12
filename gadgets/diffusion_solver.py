"""The image that the data and a diffusion prior allow."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from gadgets.prior_solver import PriorSolver, prior_property
from gadgets.property import choice, integer
from recon_core.operators.linear_model import LinearModel
from recon_core.solvers.csgm_langevin import csgm_langevin
from recon_core.solvers.decomposed_diffusion import decomposed_diffusion
from recon_core.solvers.linear_problem import LinearProblem
from recon_core.solvers.preconditioned_langevin import preconditioned_langevin
from recon_core.solvers.pseudo_inverse_langevin import pseudo_inverse_langevin
from recon_core.solvers.red_diff import red_diff
from recon_core.solvers.run import Estimate, Run
from recon_core.solvers.score_langevin import score_langevin


@dataclass(frozen=True)
class Method:
    """One way to find the image.

    Attributes:
        solve: its function, of a problem, a prior and a run.
        settings: what makes it take about so many steps.
    """

    solve: Callable[..., Estimate]
    settings: Callable[[int], Mapping[str, int]] = lambda steps: {"steps": steps}


def _levels(moves: int) -> Callable[[int], Mapping[str, int]]:
    """For methods that move so many times at each level."""
    return lambda steps: {"levels": math.ceil(steps / moves), "steps_per_level": min(steps, moves)}


_STEPS_OF_CSGM = 3975
"""With every level of its ladder; others follow by leaving levels out."""

METHODS = {
    "decomposed_diffusion": Method(decomposed_diffusion),
    "red_diff": Method(red_diff),
    "csgm_langevin": Method(csgm_langevin, lambda steps: {"stride": max(round(_STEPS_OF_CSGM / steps), 1)}),
    "score_langevin": Method(score_langevin, _levels(5)),
    "pseudo_inverse_langevin": Method(pseudo_inverse_langevin, _levels(5)),
    "preconditioned_langevin": Method(preconditioned_langevin, _levels(4)),
}


class DiffusionSolver(PriorSolver):
    """Finds the image that the data and a prior of such images allow, and how far the data leave it open.

    Several images are drawn; their mean is the image, and their standard deviation leaves as a series of its own. How
    far that is the deviation of the posterior depends on the method: what each does, and its source, stands with its
    function in `recon_core.solvers`. With a field map from an earlier gadget, the model holds the off-resonance.
    """

    method = choice("decomposed_diffusion", tuple(METHODS), "how the image is found")
    prior = prior_property("head_unet_large")
    steps = integer(
        0,
        "of the method, each one question to the prior, rounded to what its noise levels allow; 0 takes as many as the "
        "method does by itself",
        low=0,
        high=100000,
    )

    @property
    def _what(self) -> str:
        return f"{self.method} with {self._provenance}, {self.samples} samples"

    def _problem(self, model: LinearModel, kspace: Tensor) -> LinearProblem:
        return LinearProblem.of(model, kspace).scaled_for(self._prior.convention)

    def _estimate(self, problem: LinearProblem, run: Run) -> Estimate:
        method = METHODS[self.method]
        return method.solve(problem, self._prior, run, **(method.settings(self.steps) if self.steps else {}))
