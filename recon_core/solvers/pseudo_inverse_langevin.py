"""Pseudo-inverse guided Langevin: paper 002's sampler with the pseudo-inverse in the place of the adjoint."""

from __future__ import annotations

from torch import Tensor

from recon_core.priors.prior import Prior
from recon_core.solvers.annealed_langevin import annealed_langevin
from recon_core.solvers.linear_problem import LinearProblem
from recon_core.solvers.run import Estimate, Run
from recon_core.solvers.schedule import falling_levels


def pseudo_inverse_langevin(
    problem: LinearProblem,
    prior: Prior,
    run: Run,
    *,
    levels: int = 60,
    steps_per_level: int = 5,
    step: float = 0.5,
    highest: float = 1.0,
    lowest: float = 0.01,
    iterations: int = 5,
) -> Estimate:
    """`x <- x + eta (s(x) + A^+ (y - A x) / gamma_t^2) + sqrt(2 eta) z` (paper 002) with `gamma_t = sigma_t`.

    `A^+ = (A^H A + delta)^-1 A^H` by conjugate gradients, with `delta = sigma_y^2 / gamma_t^2`: the noise of the data
    against that of the image, 1/2 per real channel in the units of the data. Then `A^+ / gamma_t^2` is `A^H (gamma_t^2
    A A^H + sigma_y^2)^-1`: the exact likelihood of the data given the noisy image, coils and density of the trajectory
    and all, so that sigma_y is not added a second time as paper 002 does. `eta = step gamma_t^2 / 2` lets no move
    overshoot, whatever the operator.

    The chain at each level tends to `p(x | sigma_t) p(y | x + noise)`, with a variance too large by at most `1 / (1 -
    step / 2)`.

    Args:
        problem: in the units of the prior (`LinearProblem.scaled_for`).
        prior: of the images.
        run: what may be drawn and spent.
        levels: noise levels.
        steps_per_level: moves at each.
        step: at most one.
        highest: noise level to begin with, of the unit image.
        lowest: noise level to end with.
        iterations: of conjugate gradients in each move, which start from those of the last.

    Raises:
        ValueError: the levels do not fall.
    """
    last: Tensor | None = None

    def data_score(image: Tensor, level: float) -> Tensor:
        nonlocal last
        residual = problem.adjoint - problem.normal(image)
        last = problem.solve(residual, level, last, iterations, 1e-4)
        return last / level**2

    return annealed_langevin(
        problem,
        prior,
        run,
        falling_levels(prior, highest, lowest, levels),
        steps_per_level=steps_per_level,
        data_score=data_score,
        step=lambda level: step * level**2 / 2,
    )
