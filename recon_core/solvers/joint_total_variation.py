"""Total variation for the image, smoothness for the coil maps: the baseline of paper 003."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from recon_core.calibration.smooth_coils import Smoothness
from recon_core.solvers.coil_fit import CoilFit
from recon_core.solvers.joint_problem import JointEstimate, JointProblem
from recon_core.solvers.linear_problem import LinearProblem
from recon_core.solvers.run import Run

_SHRINKING, _GROWING = 0.8, 2.0  # of the curvature, from step to step and within a step
_ROUNDING = 1e-6  # of the objective, which single precision cannot tell
_FIRST_LEVEL, _FIRST_ITERATIONS = 0.3, 20


def joint_total_variation(
    problem: JointProblem,
    run: Run,
    *,
    weight: float = 0.7,
    edge: float = 1e-3,
    iterations: int = 100,
    smoothness: float = 3.0,
) -> JointEstimate:
    """Minimises `sum_c |unit E (s_c x) - y_c|^2 + weight / sigma sum sqrt(|grad x|^2 + edge^2)` and the penalty of s.

    By inertial proximal alternating linearised minimisation (iPALM: Pock, Sabach, SIAM J Imaging Sci 9:1756, 2016): a
    gradient step for the image, whose length is found by backtracking, and a proximal one for the maps, each from a
    point ahead of the last. Real and imaginary part share their edges. sigma is the noise that the data alone leave in
    the image, so that one weight serves every scan.

    Args:
        problem: in units in which the image is about one (`JointProblem.scaled_for`).
        run: what may be spent; nothing is drawn.
        weight: of the edges.
        edge: differences between neighbours that are too small to count as an edge, of the unit image.
        iterations: all are done if there is time.
        smoothness: weight of the penalty of the maps (`Smoothness`).

    Raises:
        ValueError: the weight is negative or not finite, the edge is not above zero, there is no iteration, or the
            smoothness is not above zero.
    """
    if not (0 <= weight < math.inf and 0 < edge < math.inf and iterations >= 1):
        raise ValueError(
            f"expected a weight of at least 0, an edge above 0 and at least one iteration, "
            f"got {weight:g}, {edge:g} and {iterations}"
        )
    penalty = Smoothness(problem.data.shape[-2:], smoothness, device=problem.data.device)
    steepness = weight / problem.noise_level
    given = problem.given(problem.first_maps)
    image = last = given.tempered(torch.zeros_like(given.adjoint), _FIRST_LEVEL, None, _FIRST_ITERATIONS)
    fit = CoilFit(problem, penalty)
    wide = last_wide = fit.wide(fit.first(image[None]))[0]
    curvature = 2 * problem.strength
    for done in range(iterations):
        if not run.go_on(done, iterations):
            return _estimate(problem, image, penalty.cropped(wide), done, iterations)
        inertia = done / (done + 3)
        objective = _Objective(problem.given(penalty.cropped(wide)), steepness, edge)
        following, curvature = _descended(objective, image + inertia * (image - last), _SHRINKING * curvature)
        image, last = following, image
        ahead = wide + inertia * (wide - last_wide)
        wide, last_wide = problem.proximal_step(penalty, image, ahead), wide
    return _estimate(problem, image, penalty.cropped(wide), iterations, iterations)


@dataclass(frozen=True)
class _Objective:
    """Of the image, for maps that are known."""

    problem: LinearProblem
    steepness: Tensor
    edge: float

    def value(self, image: Tensor) -> Tensor:
        """`[slice..., 1, 1]`."""
        roots = self._roots(image).sum((-2, -1)) * self.steepness[..., 0, 0]
        return (self.problem.misfit(image) + roots)[..., None, None]

    def gradient(self, image: Tensor) -> Tensor:
        """As d / dRe x + i d / dIm x."""
        y, x = _gradient(image) / self._roots(image)
        edges = -y - x
        edges[..., 1:, :] += y[..., :-1, :]
        edges[..., 1:] += x[..., :-1]
        gradient: Tensor = self.problem.gradient(image) + self.steepness * edges
        return gradient

    def _roots(self, image: Tensor) -> Tensor:
        """sqrt(|grad x|^2 + edge^2)."""
        roots: Tensor = (_gradient(image).abs().square().sum(0) + self.edge**2).sqrt()
        return roots


def _gradient(image: Tensor) -> Tensor:
    """Forward differences along y and x, `[2, ..., y, x]`; zero at the far edges."""
    gradient = image.new_zeros(2, *image.shape)
    gradient[0, ..., :-1, :] = image.diff(dim=-2)
    gradient[1, ..., :-1] = image.diff(dim=-1)
    return gradient


def _descended(objective: _Objective, image: Tensor, curvature: Tensor) -> tuple[Tensor, Tensor]:
    """A gradient step of each slice, and the curvature for which the parabola about its start lies above its end."""
    value, gradient = objective.value(image), objective.gradient(image)
    energy = gradient.abs().square().sum((-2, -1), keepdim=True)
    while True:
        ahead = image - gradient / curvature
        too_long = objective.value(ahead) > value - energy / (2 * curvature) + _ROUNDING * value.abs()
        if not bool(too_long.any()):
            return ahead, curvature
        curvature = torch.where(too_long, _GROWING * curvature, curvature)


def _estimate(problem: JointProblem, image: Tensor, coil_maps: Tensor, done: int, planned: int) -> JointEstimate:
    image, coil_maps = problem.fixed(image, coil_maps)
    return JointEstimate.of_both(image[None], coil_maps[None], done, planned)
