import math

import pytest
import torch

from recon_core.priors.prior import Convention
from recon_core.solvers.red_diff import prior_gradient, red_diff
from recon_core.solvers.run import Run

from analytic import relative
from gaussian_problem import CONVENTION, Gaussian, Mixture, N, prior_of, scan, smooth, white

PRIOR = Gaussian(smooth())
SCAN = scan(PRIOR.draw(3))
LEVEL = 0.3
AT_ONE_LEVEL = Convention("percentile99", LEVEL / 1.0001, LEVEL)


def run(samples=1, seed=0, **settings):
    return Run(torch.Generator().manual_seed(seed), samples, **settings)


@pytest.mark.parametrize("time", [5, 200, 600])
def test_the_averaged_prior_gradient_is_that_of_a_gaussian(time):
    kept = float((1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)[time])
    alpha, sigma = math.sqrt(kept), math.sqrt(1 - kept)
    image, draws = PRIOR.draw(7), 4000
    images = image.expand(draws, N, N)
    drawn = prior_gradient(prior_of(PRIOR), images, sigma / alpha, torch.Generator().manual_seed(0))
    noisy = alpha**2 * PRIOR.covariance() + sigma**2 * torch.eye(N * N)
    expected = (sigma**2 * torch.linalg.solve(noisy, image.flatten())).view(N, N)
    # At the points of k-space the errors are independent, so that the mean of N^2 ratios of one is known to 1 / N.
    spectra, error = torch.fft.fft2(drawn), torch.fft.fft2(drawn.mean(0) - expected)
    ratios = error.abs().square() / (spectra.var(0) / draws)
    assert float(ratios.mean()) == pytest.approx(1, abs=4 / N)


@pytest.mark.parametrize("unit", [4.0, 40.0])
def test_comes_to_rest_where_data_and_prior_balance_at_any_noise(unit):
    some = scan(PRIOR.draw(3), unit)
    weight = 0.5
    estimate = red_diff(some.problem, prior_of(PRIOR, AT_ONE_LEVEL), run(10), steps=600, weight=weight, rate=0.05)
    # 2 A^H (A mu - y) + weight / s_y^2 s^2 (C + s^2)^-1 mu = 0
    pull = weight * 2 * some.precision.diagonal().real.mean() * LEVEL**2
    balance = 2 * some.precision + pull * torch.linalg.inv(PRIOR.covariance(LEVEL))
    expected = torch.linalg.solve(balance, 2 * some.matrix.mH @ some.kspace).view(N, N)
    assert relative(estimate.image - expected, expected) < 0.02  # the noise of ten runs leaves 0.01


@pytest.mark.parametrize("nearest", [0, 1])
def test_finds_the_nearest_mode(nearest):
    apart = torch.full((N, N), 0.6, dtype=torch.complex128)
    modes = [Gaussian(white(0.05), -apart), Gaussian(white(0.05), apart)]
    some = scan(modes[nearest].draw(4), unit=8.0)
    estimate = red_diff(some.problem, prior_of(Mixture([0.5, 0.5], modes)), run(), highest=0.3)
    errors = [relative(estimate.image - some.posterior(mode).mean, apart) for mode in modes]
    assert errors[nearest] < 0.2
    assert errors[1 - nearest] > 1.5


@pytest.mark.parametrize("spacing", ["level", "time"])
def test_asks_the_prior_for_falling_levels_that_it_knows(spacing):
    asked = []

    def denoiser(channels, sigma):
        asked.append(float(sigma[0]))
        return channels

    red_diff(SCAN.problem, prior_of(denoiser), run(), steps=20, highest=160, ending=0, spacing=spacing)
    assert len(asked) == 20
    assert asked == sorted(asked, reverse=True)
    kept = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)
    assert asked[0] == pytest.approx(float((1 / kept[-1] - 1).sqrt()))
    assert asked[-1] == pytest.approx(CONVENTION.lowest, rel=1e-3)
    middle = {"level": math.sqrt(asked[0] * asked[-1]), "time": float((1 / kept[500] - 1).sqrt())}[spacing]
    assert asked[10] < middle < asked[9]


@pytest.mark.parametrize(
    ("steps", "unit", "first"), [(20, 8.0, 0.15), (80, 8.0, 0.24), (400, 8.0, 0.3), (20, 1.0, None)]
)
def test_more_steps_begin_at_higher_levels_and_none_below_the_noise_of_the_data(steps, unit, first):
    asked = []

    def denoiser(channels, sigma):
        asked.append(float(sigma[0]))
        return channels

    problem = scan(PRIOR.draw(3), unit).problem
    red_diff(problem, prior_of(denoiser), run(go_on=lambda done, planned: done < 1), steps=steps)
    assert asked[0] == pytest.approx(first or float(problem.noise_level))


def test_samples_are_runs_of_their_own_and_the_same_seed_gives_the_same_image():
    first, again, other = (red_diff(SCAN.problem, prior_of(PRIOR), run(3, seed), steps=20) for seed in (0, 0, 1))
    assert torch.equal(first.image, again.image)
    assert not torch.equal(first.image, other.image)
    assert float(first.deviation.min()) > 0


@pytest.mark.parametrize("stop", [1, 3, 10, 50, 95])
def test_an_image_that_leaves_early_is_no_worse_than_the_start(stop):
    """The error is that of what all draws of the posterior have in common: its mean."""
    some = scan(PRIOR.draw(3), every=3)
    truth = some.posterior(PRIOR).mean
    early = red_diff(some.problem, prior_of(PRIOR), run(go_on=lambda done, planned: done < stop))
    assert (early.steps, early.planned) == (stop, 100)
    start = some.problem.tempered(torch.zeros_like(truth), 1.0, None, 10)
    assert relative(early.image - truth, truth) < relative(start - truth, truth)


def test_many_steps_leave_what_the_data_do_not_see_as_few_steps_do():
    """Of a network that makes all images a little brighter below the noise of the data, as real ones do with spots."""
    some = scan(PRIOR.draw(3), every=4)
    own, truth = float(some.problem.noise_level), some.posterior(PRIOR).mean

    def denoiser(channels, sigma):
        return PRIOR(channels, sigma) if float(sigma[0]) > own else 1.05 * channels

    few, many = (red_diff(some.problem, prior_of(denoiser), run(), steps=steps).image for steps in (100, 1000))
    assert relative(many - truth, truth) < relative(few - truth, truth)


def test_refusals():
    with pytest.raises(ValueError, match="noise levels that fall, got 0"):
        red_diff(SCAN.problem, prior_of(PRIOR), run(), steps=0)
    with pytest.raises(ValueError, match='"level" or "time", got \'sigma\''):
        red_diff(SCAN.problem, prior_of(PRIOR), run(), spacing="sigma")
