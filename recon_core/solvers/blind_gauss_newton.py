"""Image, field map and coil maps together: Gauss-Newton steps towards the denoised image, from coarse to fine."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from recon_core.priors.prior import Prior
from recon_core.solvers.blind_deviation import with_open_field
from recon_core.solvers.blind_linearised import Linearised, whole
from recon_core.solvers.blind_problem import BlindEstimate, BlindProblem, Whereabouts
from recon_core.solvers.decomposed_diffusion import decomposed_diffusion
from recon_core.solvers.linear_problem import complex_normal
from recon_core.solvers.prior_curvature import not_followed
from recon_core.solvers.run import Estimate, Run
from recon_core.solvers.schedule import falling_levels

_FIRST_ITERATIONS = 15
_IMAGE_ITERATIONS = 3
_LARGEST_STEP_HZ = 30.0
_AT_REST_HZ = 1.0
"""Step, root mean square where the image is, below which the field has come to rest."""

_MOMENTUM, _MOMENTUM_OF_UNKNOWN = 0.75, 0.6
"""Part of the last change of field and maps that is made once more with the next; less for fields of which nothing is
known beforehand: those of a phantom, in polynomials, were led 200 Hz astray with more.

The denoised image still holds part of the field's error, and so do the coil maps that fit it, so that each step alone
mends but a part of it.
"""

_IMAGE_STEPS = 12
_IMAGE_LEVEL = 0.3
"""Noise level at which the image is begun once its field is known.

On validation heads as good as one; with one coil better than 0.1.
"""

_LOOKS = 2
"""Noisy images of which the denoised ones are averaged in each step, so that chance does not move the field."""

_OPEN = 0.05
"""What a denoised image leaves open of the image, at least: standard deviation of a real channel.

Closer to it, the image of the field so far holds the field where it is; farther from it, the data alone must tell.
"""

_DRAWS = 8
_DRAW_ITERATIONS = 15


@dataclass(frozen=True)
class Stage:
    """One walk through falling noise levels.

    Attributes:
        problem: what is solved, from the field that is known by then, theta `[function]`; all stages have the same
            functions of field and coil maps, on grids of their own.
        steps: falling noise levels.
        highest, lowest: the first and the last of them, of the unit image.
        more: steps at the lowest level that may follow while the field still moves.
        iterations: of conjugate gradients in each step.
        followed: whether steps allow for the denoised image's following the image, which makes them longer where they
            lead from one likely image to another (`not_followed`). It pays near the end.
    """

    problem: Callable[[Tensor], BlindProblem]
    steps: int
    highest: float
    lowest: float
    iterations: int
    more: int = 0
    followed: bool = False


def coarse(problem: Callable[[Tensor], BlindProblem]) -> Stage:
    """From nothing, on half the grid: early samples, on which the field's phase has turned less than once or twice."""
    return Stage(problem, steps=16, highest=0.1, lowest=0.03, iterations=15, more=16)


def fine(problem: Callable[[Tensor], BlindProblem]) -> Stage:
    """From a field that is about right, with all samples."""
    return Stage(problem, steps=8, highest=0.05, lowest=0.03, iterations=12, followed=True)


def alone(problem: Callable[[Tensor], BlindProblem]) -> Stage:
    """From nothing, where there is no coarse problem."""
    return coarse(problem)


def blind_gauss_newton(stages: Sequence[Stage], prior: Prior, run: Run, start: Tensor) -> BlindEstimate:
    """Blind RED-diff (paper 000) with joint steps, of coil maps too where they may err.

    At each noise level the prior denoises; image, field and maps take one Gauss-Newton step together, towards the data
    and the denoised image (`Linearised`), to which field and maps add a part of their last one; then the image alone,
    with the new field and maps; and noise of the next level is added.

    Once the field has come to rest, images are drawn with it by `decomposed_diffusion`; their mean is the image, and
    its deviation holds the field's too (`with_open_field`).

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
    of_the_image = _IMAGE_STEPS + (_DRAWS if run.samples > 1 else 0)
    planned = sum(stage.steps + stage.more for stage in stages) + of_the_image
    at: Whereabouts | None = None
    misfits, stopped = list[float](), False
    for stage in stages:
        if stopped and stage is not stages[-1]:
            continue
        problem = stage.problem(start if at is None else at.field)
        at = at or problem.start._replace(field=start)
        problem = problem.scaled_for(prior.convention, at)
        if stopped:  # only the image is left to be found
            break
        before = len(misfits)
        going = replace(run, go_on=lambda done, _, before=before: run.go_on(before + done, planned))  # type: ignore[misc]
        image, at, along, stopped = _walked(stage, problem, at, prior, going)
        misfits += along
        if stage is stages[0]:  # the cheapest
            errors, (low_hz, high_hz) = _field_errors(problem, image, at, run), problem.range_hz
    assert at is not None
    done = len(misfits)
    planned = planned if stopped else done + of_the_image
    rest = replace(run, go_on=lambda more, _: run.go_on(done + more, planned))
    last = problem if not len(problem.coil_errors.deviation) else _with_known_maps(problem, at, prior)
    found = _image(last, at.field, errors, prior, rest)
    found = replace(found, steps=done + found.steps, planned=planned)
    farthest_hz = high_hz - low_hz  # of polynomials nothing else is known
    deviation_hz = problem.basis.field(errors).clamp(-farthest_hz, farthest_hz).square().mean(0).sqrt()
    return BlindEstimate(found, last.unit, problem.field(at.field), deviation_hz, last.coil_maps, misfits)


def _image(problem: BlindProblem, field: Tensor, errors: Tensor, prior: Prior, run: Run) -> Estimate:
    """In the field, theta `[function]`, with a deviation that holds its errors, `[draw, function]`."""
    given = problem.given(problem.start._replace(field=field))
    found = decomposed_diffusion(given, prior, run, steps=_IMAGE_STEPS, highest=_IMAGE_LEVEL)
    if found.deviation is None:
        return found
    return with_open_field(problem, found, torch.cat([field[None], field + errors]), _OPEN, run)


def _with_known_maps(problem: BlindProblem, at: Whereabouts, prior: Prior) -> BlindProblem:
    known = problem.with_known_maps(at.coils)
    return known.scaled_for(prior.convention, known.start._replace(field=at.field))


def _walked(
    stage: Stage, problem: BlindProblem, at: Whereabouts, prior: Prior, run: Run
) -> tuple[Tensor, Whereabouts, list[float], bool]:
    """Image, coefficients and misfits of one stage or of what the run allows of it, and whether that was less."""
    levels = falling_levels(prior, stage.highest, stage.lowest, stage.steps)
    given = problem.given(at)
    image = given.tempered(torch.zeros_like(given.adjoint)[None], levels[0], None, _FIRST_ITERATIONS)[0]
    misfits, moved_hz, stopped = list[float](), math.inf, False
    last = Whereabouts(torch.zeros_like(at.field), torch.zeros_like(at.coils))
    known = bool(problem.basis.deviation_hz.isfinite().all())
    momentum = _MOMENTUM if known else _MOMENTUM_OF_UNKNOWN
    for done, level in enumerate([*levels, *levels[-1:] * stage.more]):
        if done >= stage.steps and moved_hz < _AT_REST_HZ:
            break
        stopped = not run.go_on(done, stage.steps + stage.more)
        if stopped:
            break
        noisy = image + math.sqrt(2) * level * complex_normal((_LOOKS, *image.shape), image, run.generator)
        each = prior.denoise(noisy, level)
        denoised, open_ = each.mean(0), max(level, _OPEN)
        # Any curvature near the true one does, as each step begins anew: one look is enough.
        rest = not_followed(prior, noisy[0], each[0], level) if stage.followed else whole
        near = Linearised(problem, image, at, 1 / (2 * open_**2), rest)
        if done > 0:
            misfits.append(near.misfit / problem.samples)
        change = near.step(denoised, stage.iterations)
        del near  # it is large, and the next one would be made beside it
        field, coils = change.field + momentum * last.field, change.coils + momentum * last.coils
        moved_hz = _size(problem, image, field)
        last = Whereabouts(field * (_LARGEST_STEP_HZ / max(moved_hz, _LARGEST_STEP_HZ)), coils)
        at = Whereabouts(at.field + last.field, at.coils + last.coils)
        given = problem.given(at)
        image = given.tempered(denoised[None], open_, (image + change.image)[None], _IMAGE_ITERATIONS)[0]
    if math.isfinite(moved_hz):  # there was a step
        misfits.append(float(given.misfit(image)) / problem.samples)
    return image, at, misfits, stopped


def _size(problem: BlindProblem, image: Tensor, coefficients: Tensor) -> float:
    """Root mean square of a field in Hz, where the image is."""
    power = image.abs().square()
    square = (problem.basis.field(coefficients).square() * power).sum() / power.sum()
    return float(square.sqrt())


def _field_errors(problem: BlindProblem, image: Tensor, at: Whereabouts, run: Run) -> Tensor:
    """Draws of what the field may be off by, `[draw, function]`.

    With what the cheap first stage leaves open, 90 % intervals hold 94 % or more of the errors of later stages, on
    validation heads.
    """
    near = Linearised(problem, image, at, 1 / (2 * _OPEN**2))
    draws = torch.stack([near.draw(run.generator, _DRAW_ITERATIONS).field for _ in range(_DRAWS)])
    # As if the data told so much less. Of fields, what is known is counted as it is; image and maps are wider open.
    return math.sqrt(near.caution) * draws
