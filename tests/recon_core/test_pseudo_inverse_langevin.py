import pytest
import torch

from recon_core.priors.prior import Convention
from recon_core.solvers.pseudo_inverse_langevin import pseudo_inverse_langevin
from recon_core.solvers.run import Estimate, Run

from analytic import relative
from gaussian_problem import Gaussian, Mixture, Scan, Watched, prior_of, scan, smooth, white

STEP = 0.5


def run(samples=1, seed=0, **settings):
    return Run(torch.Generator().manual_seed(seed), samples, **settings)


def at(level):
    return Convention("percentile99", level / 1.0001, level)


def tempered(some: Scan, level: float) -> Scan:
    """The data with the noise of their own and that of the image at a level."""
    return some.with_noise(2 * level**2 * some.matrix @ some.matrix.mH + torch.eye(len(some.kspace)))


def test_tends_to_the_exact_law_of_a_gaussian_prior_with_the_known_bias_of_the_step():
    prior, level, draws = Gaussian(smooth()), 1.0, 100
    some = scan(prior.draw(3), unit=3.0)
    law = tempered(some, level).posterior(prior, level).by_langevin(STEP * level**2 / 2)
    watched = Watched(prior_of(prior, at(level)))
    pseudo_inverse_langevin(some.problem, watched, run(draws), levels=2, steps_per_level=50, step=STEP)
    result = Estimate.of(watched.last, 0, 0)
    error = (result.image - law.mean).abs() / law.deviation * draws**0.5
    assert float(error.square().mean()) == pytest.approx(1, abs=0.35)  # smooth images have about 40 free pixels
    assert float((result.deviation / law.deviation).square().mean()) == pytest.approx(1, abs=0.05)
    assert float(result.deviation.min() / law.deviation.min()) > 0.75


def test_gives_the_modes_of_a_mixture_their_weights():
    level, draws = 0.5, 1000
    apart = torch.full((6, 6), 0.1, dtype=torch.complex128)
    mixture = Mixture([0.3, 0.7], [Gaussian(white(0.3, 6), -apart), Gaussian(white(0.3, 6), apart)])
    some = scan(-4 * apart, unit=1.0)
    data = tempered(some, level)
    weights = data.posterior_weights(mixture, level)
    assert 0.3 < float(weights[1]) < 0.65  # the data doubt what the prior believes
    here, there = (data.posterior(part, level).mean for part in mixture.components)
    watched = Watched(prior_of(mixture, at(level)))
    pseudo_inverse_langevin(some.problem, watched, run(draws), levels=2, steps_per_level=30, step=STEP)
    result = Estimate.of(watched.last, 0, 0)
    between = there - here
    share = torch.vdot(between.flatten(), (result.image - here).flatten()).real / between.abs().square().sum()
    assert float(share) == pytest.approx(float(weights[1]), abs=0.07)  # three deviations of the mean of the draws


def test_the_same_seed_gives_the_same_image():
    prior = Gaussian(smooth())
    some = scan(prior.draw(3))
    first, again, other = (
        pseudo_inverse_langevin(some.problem, prior_of(prior), run(2, seed), levels=5, steps_per_level=2)
        for seed in (0, 0, 1)
    )
    assert torch.equal(first.image, again.image)
    assert not torch.equal(first.image, other.image)


def test_ends_with_the_noise_of_the_last_level_taken_off():
    """By a prior that knows no low levels: the posterior deviation is small beside the noise that was left."""
    prior = Gaussian(smooth())
    some, draws = scan(prior.draw(3)), 50
    watched = Watched(prior_of(prior, Convention("percentile99", 0.3, 1.0)))
    result = pseudo_inverse_langevin(some.problem, watched, run(draws), levels=5, steps_per_level=5, highest=1.0)
    truth = some.posterior(prior)
    assert result.steps == result.planned
    assert float((watched.last - truth.mean).abs().square().mean().sqrt()) > 0.25
    assert float((result.image - truth.mean).abs().square().mean().sqrt()) < 0.05
    assert float(result.deviation.mean()) < 0.5 * float((watched.last - watched.last.mean(0)).abs().mean())


def test_stops_early_with_the_noise_taken_off():
    """At a high level, whose noise would be greater than the image."""
    prior = Gaussian(smooth())
    some = scan(prior.draw(3))
    result = pseudo_inverse_langevin(
        some.problem, prior_of(prior), run(go_on=lambda done, planned: done < 3), levels=20, steps_per_level=2
    )
    assert (result.steps, result.planned, result.deviation) == (3, 40, None)
    truth = some.posterior(prior).mean
    assert relative(result.image - truth, truth) < 0.3
