"""The image of the fewest and lowest edges that the data allow."""

from __future__ import annotations

from torch import Tensor

from gadgets.property import integer, real
from gadgets.solver import Solver
from recon_core.operators.linear_model import LinearModel
from recon_core.solvers.linear_problem import LinearProblem
from recon_core.solvers.run import Estimate, Run
from recon_core.solvers.total_variation import total_variation


class TotalVariation(Solver):
    """Finds the image of the least total variation that the data allow.

    The data have the weight that their noise gives them, so that one weight of the edges serves every scan. With a
    field map from an earlier gadget, the model holds the off-resonance.

    (Rudin, Osher, Fatemi: Nonlinear total variation based noise removal algorithms. Physica D 60:259, 1992.)
    """

    weight = real(0.7, "of the edges; larger makes the image smoother", low=0.0, high=1000.0)
    iterations = integer(60, "number of iterations", low=1, high=10000)

    @property
    def _what(self) -> str:
        return f"weight {self.weight:g}"

    def _problem(self, model: LinearModel, kspace: Tensor) -> LinearProblem:
        return LinearProblem.of(model, kspace)

    def _estimate(self, problem: LinearProblem, run: Run) -> Estimate:
        return total_variation(problem, run, weight=self.weight, iterations=self.iterations)
