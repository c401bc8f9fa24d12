"""Image and field map together: Gauss-Newton steps around the denoised image, from coarse to fine."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from recon_core.priors.prior import Prior
from recon_core.solvers.blind_linearised import Linearised
from recon_core.solvers.blind_problem import BlindEstimate, BlindProblem
from recon_core.solvers.decomposed_diffusion import decomposed_diffusion
from recon_core.solvers.linear_problem import complex_normal
from recon_core.solvers.run import Run
from recon_core.solvers.schedule import falling_levels

_FIRST_ITERATIONS = 15
_IMAGE_ITERATIONS = 5
_LARGEST_STEP_HZ = 10.0

_IMAGE_STEPS = 20

_SMOOTHEST = 12
"""Functions that a first step may move: of the order of waves over the head."""

_LOOKS = 8
"""Noisy images of which the denoised ones are averaged in each step, so that chance does not move the field."""

_DRAWS = 8
_DRAW_ITERATIONS = 20
_OPEN = 0.03
"""What a denoised image leaves open of the image, standard deviation of a real channel."""

_ERROR_PER_DEVIATION = 12.0
"""Errors of smooth fields in terms of what the linearised problem leaves open after a coarse stage, on two heads.

It counts the noise, but not the errors of coil maps, and not that the steps end before they have gone all the way.
"""


@dataclass(frozen=True)
class Stage:
    """One walk through falling noise levels.

    Attributes:
        problem: what is solved, from the field that is known by then, theta `[function]`; all stages have the same
            functions, on grids of their own.
        steps: noise levels.
        highest, lowest: the first and the last of them, of the unit image.
        iterations: of conjugate gradients in each step.
        weight: of the denoised image: as RED-diff's, relative to the noise that the data leave in the image.
        caution: times that what is known of fields beforehand counts. Most of what the data seem to say against it is
            not their noise: coil maps, grid and denoised image have errors of their own, alike in many samples.
        functions: of the field, that the first step may move; two thirds of the steps later all may be. Fine structure
            that is sought while the image is still blurred is found in the wrong place, and stays there.
    """

    problem: Callable[[Tensor], BlindProblem]
    steps: int
    highest: float
    lowest: float
    iterations: int
    weight: float
    caution: float
    functions: int | None = None

    def functions_at(self, done: int, of: int) -> int:
        """How many of the functions may move after so many steps."""
        first = min(self.functions or of, of)
        grown: float = first * (of / first) ** min(done / (self.steps * 2 / 3), 1)
        return round(grown)


def coarse(problem: Callable[[Tensor], BlindProblem]) -> Stage:
    """From nothing, on half the grid: early samples, on which the field's phase has turned less than once or twice."""
    return Stage(
        problem, steps=25, highest=0.25, lowest=0.02, iterations=8, weight=2.0, caution=100.0, functions=_SMOOTHEST
    )


def fine(problem: Callable[[Tensor], BlindProblem]) -> Stage:
    """From a field that is about right, with all samples."""
    return Stage(problem, steps=10, highest=0.05, lowest=0.015, iterations=8, weight=2.0, caution=10.0)


def alone(problem: Callable[[Tensor], BlindProblem]) -> Stage:
    """From nothing, where there is no coarse problem."""
    return Stage(
        problem, steps=30, highest=0.25, lowest=0.015, iterations=8, weight=2.0, caution=100.0, functions=_SMOOTHEST
    )


def blind_gauss_newton(stages: Sequence[Stage], prior: Prior, run: Run, start: Tensor) -> BlindEstimate:
    """Blind RED-diff (paper 000) with joint steps.

    At each noise level the prior denoises; image and field take one Gauss-Newton step together, towards the data and
    the denoised image (`Linearised`); then the image alone, with the new field, towards what the level allows; and
    noise of the next level is added. In steps where the field moves, the denoised image has half the weight that
    RED-diff gives it (`red_diff`), far more than the level says: with as little, an image of many coils takes up nearly
    all that the field leaves, and the field stays where it is.

    Once the field has come to rest, images are drawn with it by `decomposed_diffusion`; their deviation does not hold
    the field's.

    Args:
        stages: to go through; the last one's problem is that of the image. When the run says that it is time to end,
            those between are left out.
        prior: of the images, whose noise levels bound those of the stages.
        run: what may be drawn and spent; its samples are drawn for the same field.
        start: the field to begin with, theta `[function]`.

    Raises:
        ValueError: there is no stage, levels that do not fall, or data of zero.
    """
    if not stages:
        raise ValueError("expected at least one stage to find the field in")
    planned = sum(stage.steps for stage in stages) + _IMAGE_STEPS
    coefficients, misfits, stopped = start, list[float](), False
    for stage in stages:
        last = stage is stages[-1]
        if stopped and not last:
            continue
        problem = stage.problem(coefficients).scaled_for(prior.convention, coefficients)
        if stopped:  # only the image is left to be found
            break
        before = len(misfits)
        going = replace(run, go_on=lambda done, _, before=before: run.go_on(before + done, planned))  # type: ignore[misc]
        image, coefficients, along = _walked(stage, problem, coefficients, prior, going)
        misfits += along
        stopped = len(along) < stage.steps
        if stage is stages[0]:  # the cheapest
            draws = _draws(problem, image, coefficients, run)
    done = len(misfits)
    rest = replace(run, go_on=lambda more, _: run.go_on(done + more, planned))
    found = decomposed_diffusion(problem.given(coefficients), prior, rest, steps=_IMAGE_STEPS)
    basis = problem.basis
    expected = (basis.deviation_hz.clamp_max(1e6)[:, None, None] * basis.functions).square().sum(0).sqrt()
    deviation = (_ERROR_PER_DEVIATION * basis.field(draws).square().mean(0).sqrt()).minimum(expected)
    found = replace(found, steps=done + found.steps, planned=planned)
    return BlindEstimate(found, problem.unit, problem.field(coefficients), deviation, misfits)


def _walked(
    stage: Stage, problem: BlindProblem, coefficients: Tensor, prior: Prior, run: Run
) -> tuple[Tensor, Tensor, list[float]]:
    """Image, coefficients and misfits of one stage, or of as much of it as the run allows."""
    levels = falling_levels(prior, stage.highest, stage.lowest, stage.steps)
    given = problem.given(coefficients)
    pull = stage.weight / (2 * float(given.noise_level) ** 2)
    image = given.tempered(torch.zeros_like(given.adjoint)[None], levels[0], None, _FIRST_ITERATIONS)[0]
    misfits: list[float] = []
    for done, level in enumerate(levels):
        if not run.go_on(done, stage.steps):
            break
        noise = math.sqrt(2) * level * complex_normal((_LOOKS, *image.shape), image, run.generator)
        denoised = prior.denoise(image + noise, level).mean(0)
        movable = stage.functions_at(done, len(coefficients))
        near = Linearised(problem, denoised, coefficients, pull, stage.caution, movable)
        moved, step = near.step(denoised, stage.iterations)
        step = pad(step, (0, len(coefficients) - movable))
        coefficients = coefficients + _limited(problem, denoised, step)
        given = problem.given(coefficients)
        image = given.tempered(denoised[None], level, (denoised + moved)[None], _IMAGE_ITERATIONS)[0]
        misfits.append(float(given.misfit(image)) / problem.samples)
    return image, coefficients, misfits


def _limited(problem: BlindProblem, image: Tensor, step: Tensor) -> Tensor:
    """So much of a step as moves the field by no more than the largest one, root mean square where the image is."""
    power = image.abs().square()
    square = (problem.basis.field(step).square() * power).sum() / power.sum()
    return step * (_LARGEST_STEP_HZ / max(float(square.sqrt()), _LARGEST_STEP_HZ))


def _draws(problem: BlindProblem, image: Tensor, coefficients: Tensor, run: Run) -> Tensor:
    """Of what noise does to the field, `[draw, function]`."""
    near = Linearised(problem, image, coefficients, 1 / (2 * _OPEN**2))
    return near.draws(_DRAWS, run.generator, _DRAW_ITERATIONS)
