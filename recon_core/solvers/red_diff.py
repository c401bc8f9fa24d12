"""RED-diff: the image that data and a denoiser of all noise levels agree on, by stochastic optimisation."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Generator, Tensor

from recon_core.priors.prior import Prior
from recon_core.solvers.linear_problem import LinearProblem, complex_normal
from recon_core.solvers.run import Estimate, Run
from recon_core.solvers.schedule import falling_levels
from recon_core.solvers.stopped import without_noise

_TIMES = 1000
_BETAS = (1e-4, 0.02)
_FIRST_ITERATIONS = 10
_FIRST_LEVEL = 1.0
_LAST_ITERATIONS = 5
_RISE, _LEAST_HIGHEST, _MOST_HIGHEST = 0.003, 0.15, 0.3  # of the first noise level
_STEPS_AT_FULL_RATE = 100

Spacing = Literal["level", "time"]


def red_diff(
    problem: LinearProblem,
    prior: Prior,
    run: Run,
    *,
    steps: int = 100,
    weight: float = 4.0,
    rate: float = 0.1,
    highest: float | None = None,
    ending: float = 0.25,
    spacing: Spacing = "level",
) -> Estimate:
    """RED-diff (Mardani et al., ICLR 2024, arXiv 2305.04391), as paper 001 takes it to MRI, with noise-matched weights.

    Adam descends on `|unit A mu - y|^2 + lambda_t <eps_theta(x_t) - eps, mu>`, with `x_t = alpha_t mu + sigma_t eps`
    of the variance preserving schedule (beta from 1e-4 to 0.02 in 1000 times), time falling, one draw of `eps` per
    step, and no gradient through the network. At the level `s = sigma_t / alpha_t` the true weight of `eps_theta - eps`
    would be `1 / s`, that of the log prior. RED-diff takes it `weight (s / s_y)^2` times, where `s_y` is the noise
    level that the data alone leave in the image (`LinearProblem.noise_level`): `lambda_t = weight s / s_y^2` is the
    paper's, but with a weight that is a pure number for any noise, coils and sampling. The gradient of that term is
    `weight / s_y^2 (mu - D(mu + s eps))` with the denoiser D.

    Three changes let a hundred steps do. The levels fall by the same fraction at every step, where the paper's times
    are spread evenly and 19 in 20 of them lie above the level 0.17. They end at a fraction of `s_y`, below which the
    weight falls ever further behind the true one and the noise would come back: with the weight 4 it is the true one
    at `s_y / 2`. Levels that end higher leave an image blurred by what the denoiser takes for noise there. And the
    rate of learning falls along a quarter of a cosine to 1 %, so that the last image is at rest. (`highest=160,
    ending=0, spacing="time"` takes the paper's times.)

    More steps than a hundred are smaller in proportion. A network makes bright spots that it never saw a little
    brighter still; where the data do not see them either, Adam moves them on by about the rate of learning at every
    step, however small the gradient. So the rates have a sum that does not grow with the steps: at the full rate 1000
    steps ended at 7.9 dB on a spiral of which 100 make 28.5, at a tenth of it at 28.9 (benchmarks/RESULTS.md).

    The start is what 10 iterations of conjugate gradients make of the data. A run that is stopped before its end is
    not at rest: a few more bring its image to the data as one that is off by the next level, and the noise that the
    data leave in it is denoised. RED-diff looks for a mode: samples differ
    by the noise of the optimisation alone, and their spread is not that of the posterior.

    Args:
        problem: in the units of the prior (`LinearProblem.scaled_for`).
        prior: of the images; levels that it does not know are left out.
        run: what may be drawn and spent; samples are independent runs.
        steps: of Adam.
        weight: of the prior.
        rate: of learning, at first, for up to 100 steps; it is less by as much as there are more.
        highest: noise level to begin with, of the unit image, but not below the least `s_y` of all slices; by default
            0.003 for each step, from 0.15 to 0.3. In trials on heads few steps were too few for what lies above.
        ending: noise level to end with, relative to `s_y`, the least of all slices.
        spacing: what is spread evenly, the logarithm of the "level", or the "time" as in the paper.

    Raises:
        ValueError: the levels do not fall, or an unknown spacing.
    """
    highest = min(max(_RISE * steps, _LEAST_HIGHEST), _MOST_HIGHEST) if highest is None else highest
    own = float(problem.noise_level.min())
    levels = variance_preserving_levels(prior, max(highest, own), ending * own, steps, spacing)
    pull = weight / problem.noise_level**2
    nothing = torch.zeros_like(problem.adjoint)
    start = problem.tempered(nothing, _FIRST_LEVEL, None, _FIRST_ITERATIONS)
    image = start.expand(run.samples, *start.shape).clone()
    channels = torch.view_as_real(image)
    first_rate = rate * min(_STEPS_AT_FULL_RATE / steps, 1)
    descent = torch.optim.Adam([channels], first_rate, betas=(0.9, 0.99))
    slower = torch.optim.lr_scheduler.LambdaLR(descent, lambda done: max(math.cos(math.pi * done / (2 * steps)), 0.01))
    for done, level in enumerate(levels):
        if not run.go_on(done, steps):
            nearer = problem.tempered(image, level, image, _LAST_ITERATIONS)
            return Estimate.of(without_noise(problem, prior, nearer, level), done, steps)
        gradient = problem.gradient(image) + pull * prior_gradient(prior, image, level, run.generator)
        channels.grad = torch.view_as_real(gradient)
        descent.step()
        slower.step()
    return Estimate.of(image, steps, steps)


def prior_gradient(prior: Prior, image: Tensor, level: float, generator: Generator) -> Tensor:
    """`sigma_t / alpha_t (eps_theta(x_t) - eps)` with a draw of `eps`, which is `mu - D(mu + s eps)`; complex.

    For images of a Gaussian of covariance C it is `sigma_t^2 (alpha_t^2 C + sigma_t^2)^-1 mu` on average.
    """
    noisy = image + math.sqrt(2) * level * complex_normal(image.shape, image, generator)
    return image - prior.denoise(noisy, level)


def variance_preserving_levels(
    prior: Prior, highest: float, lowest: float, steps: int, spacing: Spacing
) -> list[float]:
    """`sigma_t / alpha_t` of falling times, as far as the schedule and the prior have them.

    Raises:
        ValueError: they do not fall, or an unknown spacing.
    """
    kept = (1 - torch.linspace(*_BETAS, _TIMES, dtype=torch.float64)).cumprod(0)  # alpha_t^2
    ladder = (1 / kept - 1).sqrt()
    by_level = falling_levels(prior, min(highest, float(ladder[-1])), max(lowest, float(ladder[0])), steps)
    if spacing == "level":
        return by_level
    if spacing != "time":
        raise ValueError(f'expected the spacing "level" or "time", got {spacing!r}')
    known = ladder[(ladder >= by_level[-1]) & (ladder <= by_level[0])]
    times = torch.linspace(len(known) - 1, 0, steps).round().long()
    return [float(level) for level in known[times]]
