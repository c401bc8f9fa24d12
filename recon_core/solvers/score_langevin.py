"""Score Langevin: annealed Langevin dynamics with a tempered likelihood, as paper 002 samples."""

from __future__ import annotations

from torch import Tensor

from recon_core.priors.prior import Prior
from recon_core.solvers.annealed_langevin import annealed_langevin
from recon_core.solvers.linear_problem import LinearProblem
from recon_core.solvers.run import Estimate, Run
from recon_core.solvers.schedule import falling_levels


def score_langevin(
    problem: LinearProblem,
    prior: Prior,
    run: Run,
    *,
    levels: int = 60,
    steps_per_level: int = 5,
    step: float = 0.5,
    highest: float = 1.0,
    lowest: float = 0.01,
) -> Estimate:
    """`x <- x + eta (s(x) + A^H (y - A x) / (gamma_t^2 + sigma_y^2)) + sqrt(2 eta) z` (paper 002, eq. 6).

    In the units of the data, where sigma_y^2 is 1/2 per real channel, the noise of an image at the level sigma_t is in
    no sample stronger than `gamma_t^2 = |A|^2 sigma_t^2`. This is the likelihood of the noisy image, were that noise
    white in k-space. With `eta = step / (1 / sigma_t^2 + |A|^2 / (gamma_t^2 + sigma_y^2))` no move overshoots.

    The chain at each level tends to `p(x | sigma_t) p(y | x, gamma_t)`, with a variance too large by at most `1 / (1 -
    step / 2)`, in the directions that relax fastest. What the data leave open relaxes over `1 / eta` moves times its
    variance, and freezes as the levels fall.

    Args:
        problem: in the units of the prior (`LinearProblem.scaled_for`).
        prior: of the images.
        run: what may be drawn and spent.
        levels: noise levels.
        steps_per_level: moves at each.
        step: at most one.
        highest: noise level to begin with, of the unit image.
        lowest: noise level to end with.

    Raises:
        ValueError: the levels do not fall.
    """
    norm = problem.strength

    def tempering(level: float) -> float:
        return norm * level**2 + 0.5

    def data_score(image: Tensor, level: float) -> Tensor:
        return (problem.adjoint - problem.normal(image)) / tempering(level)

    return annealed_langevin(
        problem,
        prior,
        run,
        falling_levels(prior, highest, lowest, levels),
        steps_per_level=steps_per_level,
        data_score=data_score,
        step=lambda level: step / (1 / level**2 + norm / tempering(level)),
    )
