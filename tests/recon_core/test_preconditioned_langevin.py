import math

import pytest
import torch

from recon_core.operators.linear_model import LinearModel
from recon_core.priors.prior import Convention
from recon_core.solvers import linear_problem
from recon_core.solvers import preconditioned_langevin as module
from recon_core.solvers.linear_problem import LinearProblem
from recon_core.solvers.preconditioned_langevin import preconditioned_langevin
from recon_core.solvers.run import Run
from recon_core.solvers.schedule import falling_levels

from analytic import complex_noise, relative
from gaussian_chain import Chain, back, relative_to, require_deviation, require_mean, tempered_covariance
from gaussian_problem import Gaussian, Mixture, N, Scan, prior_of, scan, smooth, white

MEAN = complex_noise(N, N, seed=9, dtype=torch.complex128)
PRIORS = {"white": Gaussian(white(), MEAN), "smooth": Gaussian(smooth(), MEAN)}


def seeded(seed: int = 0, **settings) -> Run:
    return Run(torch.Generator().manual_seed(seed), **settings)


def followed(given: Scan, prior: Gaussian, levels: list[float], steps_per_level: int, step: float) -> Chain:
    """Euler's steps of the preconditioned Langevin equation, written out with matrices."""
    first = tempered_covariance(given, levels[0])
    chain = Chain(first @ back(given), first)
    for level in levels:
        inverse = torch.linalg.inv(prior.covariance(level)) / 2
        moving = step * tempered_covariance(given, level)
        keep = torch.eye(N * N) - moving @ (given.precision + inverse)
        for _ in range(steps_per_level):
            chain = chain.moved(keep, moving @ (back(given) + inverse @ prior.mean.flatten()), 2 * moving)
    return chain.denoised_and_tempered(given, prior, levels[-1])


@pytest.mark.parametrize("name", PRIORS)
def test_draws_are_those_of_the_chain_and_of_the_posterior(name):
    prior, samples = PRIORS[name], 60
    given = scan(prior.draw())
    found = preconditioned_langevin(given.problem, prior_of(prior), seeded(samples=samples), iterations=30)
    levels = falling_levels(prior_of(prior), 1.0, 0.01, 20)
    chain = followed(given, prior, levels, 4, 0.5)
    require_mean(found, samples, chain.mean, chain.covariance)
    require_deviation(found, samples, chain.covariance)
    truth = given.posterior(prior)
    assert relative_to(truth, found) < 0.06 + 1.1 / math.sqrt(samples)
    require_deviation(found, samples, truth.covariance, slack=0.05)


def test_variance_of_what_the_data_determine_is_too_large_by_the_bias_of_the_step():
    """Where the data say nearly all, M P is one, and Euler's steps end at `1 / (1 - step / 2)` of the variance."""
    prior, samples, step = Gaussian(white(2.0)), 60, 0.8
    given = scan(prior.draw(), unit=300.0, every=1)
    settings = {"levels": 10, "steps_per_level": 4, "step": step, "lowest": 0.2, "iterations": 40}
    found = preconditioned_langevin(given.problem, prior_of(prior), seeded(samples=samples), **settings)
    levels = falling_levels(prior_of(prior), 1.0, 0.2, 10)
    chain = followed(given, prior, levels, 4, step)
    require_deviation(found, samples, chain.covariance)


def test_modes_have_their_weights():
    """The mean of all samples lies between the means of the modes, where their weights say.

    A chain that is annealed keeps the weights of the level at which the modes part: here those are the same at all.
    """
    shape, samples = torch.polar(torch.ones(N, N).double(), torch.arange(N).double().expand(N, N)), 120
    components = [Gaussian(white(0.1), 0.25 * shape), Gaussian(white(0.1), -0.25 * shape)]
    prior = Mixture([0.4, 0.6], components)
    given = scan(components[0].draw(), unit=0.1, seed=2)
    truth = given.posterior_weights(prior)
    assert 0.68 < given.posterior_weights(prior, level=2.0)[0] < truth[0] < 0.71  # the data turned the balance
    settings = {"levels": 12, "steps_per_level": 4, "highest": 8.0, "iterations": 5}
    found = preconditioned_langevin(given.problem, prior_of(prior), seeded(samples=samples), **settings)
    ends = [given.posterior(c).mean for c in components]
    way = ends[0] - ends[1]
    share = float(((found.image - ends[1]) * way.conj()).real.sum() / way.abs().square().sum())
    assert abs(share - float(truth[0])) < 3 * math.sqrt(truth[0] * truth[1] / samples)


SHORT = {"levels": 3, "steps_per_level": 2}


def test_same_seed_same_image():
    given, prior = scan(PRIORS["white"].draw()), prior_of(PRIORS["white"])
    first, again, other = (
        preconditioned_langevin(given.problem, prior, seeded(seed, samples=2), **SHORT) for seed in (1, 1, 2)
    )
    assert torch.equal(first.image, again.image)
    assert torch.equal(first.deviation, again.deviation)
    assert relative(other.image - first.image, first.image) > 0.01


def test_stops_when_told_with_the_noise_taken_off():
    """Even at a high level what comes out is an image, nearer to the posterior mean than the noise of that level."""
    prior, asked = PRIORS["smooth"], []
    given = scan(prior.draw())

    def go_on(done: int, planned: int) -> bool:
        asked.append((done, planned))
        return done < 3

    found = preconditioned_langevin(given.problem, prior_of(prior), seeded(go_on=go_on))
    assert asked == [(i, 80) for i in range(4)]
    assert (found.steps, found.planned, found.deviation) == (3, 80, None)
    truth = given.posterior(prior).mean
    assert (found.image - truth).abs().square().mean().sqrt() < 0.5


def test_slices_know_nothing_of_one_another(monkeypatch):
    """With the same noise in all slices."""

    def same_for_all(shape, like, generator):
        return torch.randn(shape[-2:], generator=generator, dtype=like.dtype).expand(shape)

    monkeypatch.setattr(module, "complex_normal", same_for_all)
    monkeypatch.setattr(linear_problem, "complex_normal", same_for_all)
    prior = PRIORS["smooth"]
    scans = [scan(prior.draw(seed), unit=unit, seed=seed) for seed, unit in ((1, 8.0), (2, 20.0))]
    model = scans[0].problem.model
    stacked = LinearProblem(
        LinearModel(model.encoding, model.coil_maps.expand(2, *model.coil_maps.shape)),
        *(torch.stack([getattr(s.problem, name) for s in scans]) for name in ("data", "energy", "unit")),
    )
    together = preconditioned_langevin(stacked, prior_of(prior), seeded(samples=2), **SHORT)
    for i, given in enumerate(scans):
        alone = preconditioned_langevin(given.problem, prior_of(prior), seeded(samples=2), **SHORT)
        assert relative(together.image[i] - alone.image, alone.image) < 1e-8


def test_levels_that_the_prior_does_not_know():
    given = scan(PRIORS["white"].draw())
    prior = prior_of(PRIORS["white"], Convention("percentile99", 2.0, 5.0))
    with pytest.raises(ValueError, match="the Gaussian prior knows 2 to 5"):
        preconditioned_langevin(given.problem, prior, seeded())
