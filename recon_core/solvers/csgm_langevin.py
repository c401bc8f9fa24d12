"""CSGM-Langevin: the baseline of paper 001, as it really runs."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from recon_core.priors.prior import Prior
from recon_core.solvers.linear_problem import LinearProblem, complex_normal
from recon_core.solvers.run import Estimate, Run
from recon_core.solvers.stopped import without_noise

_LEVELS = 2311
_HIGHEST, _LOWEST = 232.0, 0.0066
_FIRST, _LAST_EARLY = 1156, 1800
_STEPS_EARLY = 3
_STEP = 5e-5
_LAST_ITERATIONS = 10
_OWN_NOISE = 1.57  # of the images at rest, over sigma: 1 + eta / (2 sigma^2)


def csgm_langevin(
    problem: LinearProblem,
    prior: Prior,
    run: Run,
    *,
    steps_per_level: int = 4,
    data_weight: float = 5.0,
    stride: int = 1,
) -> Estimate:
    """Annealed Langevin dynamics (Jalal et al., NeurIPS 2021, arXiv 2108.01368) as its released program runs.

    The levels are 1156 to 2310 of a ladder of 2311 from 232 to 0.0066; each is visited three times up to number 1800,
    `steps_per_level` times from then on. A visit moves by `eta (s - g) + sqrt(2 eta) z` with `eta = 5e-5 (sigma /
    0.0066)^2`, where g is the gradient of the data `A^H (A x - y)` with `data_weight` times the norm of the score s.
    That is no likelihood: the noise of the data is not asked for, and the samples are not those of a posterior. The
    start is uniform noise, the end the last noisy image; that of a run that is stopped before is denoised, brought to
    the data, and denoised of the noise that they leave.

    With `eta = 1.148 sigma^2` the images are noisier than sigma: 1.57 times where the prior alone decides, about four
    times with the data. The released network is not told the level and finds noise of any strength: its score is that
    noise, made unit, over sigma. Priors here are told, and one that is told sigma takes the rest of the noise for
    image, so that the images grow to infinity. They are therefore told the noise that they found at the visit before,
    and at least 1.57 times sigma: where they once found too little, they would be told ever less.

    Levels that the prior does not know are left out; if it knows them all down to 0.0066, 3 and 4 steps per level call
    the network 3465 and 3975 times.

    Args:
        problem: in the units of the prior (`LinearProblem.scaled_for`).
        prior: of the images.
        run: what may be drawn and spent.
        steps_per_level: visits of each of the later levels: 4 for brains, 3 for knees.
        data_weight: norm of the data's part relative to that of the score; zero leaves the data out.
        stride: only every so many-th level is visited.

    Raises:
        ValueError: the stride or the steps are not positive, or the prior knows none of the levels.
    """
    levels = _visits(prior, steps_per_level, stride)
    image = _uniform(problem, run)
    found = torch.full_like(_norm(image), levels[0])
    for done, level in enumerate(levels):
        known = found.clamp(min(_OWN_NOISE * level, prior.convention.highest), prior.convention.highest)[..., 0, 0]
        if not run.go_on(done, len(levels)):
            return Estimate.of(_finished(problem, prior, image, known), done, len(levels))
        noise, towards_data = image - prior.denoise(image, known), -problem.gradient(image)
        found = _norm(noise)
        drift = (data_weight * _unit(towards_data) - _unit(noise)) / level
        step = _STEP * (level / _LOWEST) ** 2
        fresh = math.sqrt(2) * complex_normal(image.shape, image, run.generator)
        image = image + step * drift + math.sqrt(2 * step) * fresh
    return Estimate.of(image, len(levels), len(levels))


def _finished(problem: LinearProblem, prior: Prior, image: Tensor, known: Tensor) -> Tensor:
    """What to make of noisy images of a chain that was stopped, given their noise `[sample, slice...]`."""
    denoised, level = prior.denoise(image, known), float(known.max())
    return without_noise(problem, prior, problem.tempered(denoised, level, denoised, _LAST_ITERATIONS), level)


def _visits(prior: Prior, steps_per_level: int, stride: int) -> list[float]:
    """The level of each step."""
    if stride < 1 or steps_per_level < 1:
        raise ValueError(f"expected a stride and steps per level of at least 1, got {stride} and {steps_per_level}")
    visits = []
    for number in range(_FIRST, _LEVELS, stride):
        level = _HIGHEST * (_LOWEST / _HIGHEST) ** (number / (_LEVELS - 1))
        if prior.convention.lowest <= level <= prior.convention.highest:
            visits += [level] * (_STEPS_EARLY if number <= _LAST_EARLY else steps_per_level)
    if not visits:
        raise ValueError(
            f"{prior.name} knows noise levels from {prior.convention.lowest:g} to {prior.convention.highest:g}, "
            f"none of those from {_HIGHEST * (_LOWEST / _HIGHEST) ** (_FIRST / (_LEVELS - 1)):g} to {_LOWEST:g}"
        )
    return visits


def _uniform(problem: LinearProblem, run: Run) -> Tensor:
    """Real and imaginary parts between zero and one."""
    like = torch.view_as_real(problem.adjoint)
    drawn = torch.rand((run.samples, *like.shape), generator=run.generator, dtype=like.dtype, device=like.device)
    return torch.view_as_complex(drawn)


def _norm(images: Tensor) -> Tensor:
    """Root mean square over the real channels, `[..., 1, 1]`."""
    return (images.abs().square().mean((-2, -1), keepdim=True) / 2).sqrt()


def _unit(images: Tensor) -> Tensor:
    norm = _norm(images)
    return images / norm.clamp_min(torch.finfo(norm.dtype).tiny)
