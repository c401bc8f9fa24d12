from dataclasses import replace

import pytest
import torch

from recon_core.operators.linear_model import LinearModel
from recon_core.priors.prior import Convention, Prior
from recon_core.solvers import sample_pairs
from recon_core.solvers.decomposed_diffusion import decomposed_diffusion
from recon_core.solvers.linear_problem import LinearProblem
from recon_core.solvers.run import Run
from recon_core.solvers.schedule import falling_levels

from analytic import complex_noise, relative
from gaussian_chain import Chain, back, relative_to, require_deviation, tempered_covariance
from gaussian_problem import CONVENTION, Gaussian, N, Scan, prior_of, scan, smooth, white

MEAN = complex_noise(N, N, seed=9, dtype=torch.complex128)
PRIORS = {"white": Gaussian(white(), MEAN), "smooth": Gaussian(smooth(), MEAN)}


def seeded(seed: int = 0, **settings) -> Run:
    return Run(torch.Generator().manual_seed(seed), **settings)


def followed(given: Scan, prior: Gaussian, levels: list[float], momentum: float = 0.5) -> Chain:
    """Noise, denoising, momentum and tempering at each level, with matrices that move an image and the one before."""
    n = N * N
    eye, nothing = torch.eye(n, dtype=torch.complex128), torch.zeros(n, n)
    start = tempered_covariance(given, levels[0]) @ back(given)
    chain = Chain(start.repeat(2), torch.zeros(2 * n, 2 * n, dtype=torch.complex128))
    for level in levels:
        tempering = tempered_covariance(given, level)
        gain = prior.covariance() @ torch.linalg.inv(prior.covariance(level))
        share = tempering / (2 * level**2)
        keep = torch.cat([torch.cat([share @ gain + momentum * share, -momentum * share], 1), torch.eye(n, 2 * n)])
        shift = tempering @ back(given) + share @ (eye - gain) @ prior.mean.flatten()
        noise = 2 * level**2 * share @ gain @ (share @ gain).mH
        chain = chain.moved(keep, torch.cat([shift, 0 * shift]), torch.block_diag(noise, nothing))
    return Chain(chain.mean[:n], chain.covariance[:n, :n])


@pytest.mark.parametrize("name", PRIORS)
def test_draws_are_those_of_the_chain(name):
    """The noise cancels in their mean, and each pair of them tells no more of their deviation than one."""
    prior, samples = PRIORS[name], 200
    given = scan(prior.draw())
    found = decomposed_diffusion(given.problem, prior_of(prior), seeded(samples=samples), iterations=40)
    chain = followed(given, prior, falling_levels(prior_of(prior), 1.0, 0.01, 20))
    assert relative(found.image.flatten() - chain.mean, chain.mean) < 1e-3
    require_deviation(found, samples // 2 + 1, chain.covariance)
    assert relative_to(given.posterior(prior), found) < 0.1


def test_errors_that_depend_on_the_phase_average_out_where_no_phase_matters():
    exact = Gaussian(white())
    given = scan(exact.draw())

    def found(error: float, any_phase: bool):
        def denoiser(channels, sigma):
            return exact(channels, sigma) * torch.tensor([1 + error, 1 - error])[:, None, None]

        prior = Prior(denoiser, replace(CONVENTION, any_phase=any_phase), "crooked")
        return decomposed_diffusion(given.problem, prior, seeded(samples=20)).image

    right = found(0.0, any_phase=False)
    fixed, turned = (relative(found(0.05, any_phase) - right, right) for any_phase in (False, True))
    assert fixed > 0.1
    assert turned < fixed / 3


@pytest.mark.parametrize("samples", [2, 3, 5])
def test_the_deviation_of_few_samples_is_right_on_average(samples):
    prior = PRIORS["white"]
    given = scan(prior.draw())
    found = [
        decomposed_diffusion(given.problem, prior_of(prior), seeded(i, samples=samples), **SHORT, iterations=40)
        for i in range(40)
    ]
    variance = torch.stack([estimate.deviation.square() for estimate in found]).mean()
    chain = followed(given, prior, falling_levels(prior_of(prior), 1.0, 0.01, SHORT["steps"]))
    assert float(variance) == pytest.approx(float(chain.covariance.diagonal().real.mean()), rel=0.08)


@pytest.mark.parametrize("momentum", [0.0, 0.5])
@pytest.mark.parametrize("name", PRIORS)
def test_many_steps_end_at_the_posterior_mean_and_deviation(name, momentum):
    """At each level the chain rests at the posterior mean of the prior with that noise.

    A step keeps K = 1 - M P of a deviation d, with the precision P of the posterior and M = (unit^2 A^H A + 1 / (2
    level^2))^-1, and adds noise of the variance 2 level^2 K K^H and b times its last change. As the level falls M comes
    near 2 level^2, so that d_i+1 = (1 + b - k) d_i - b d_i-1 + n, where k = 2 level^2 P is small. Its variance,
    2 level^2 / (2 k (1 - b)) = 1 / (2 (1 - b) P), is half of that of the posterior for b = 0, all of it for b = 1 / 2.
    """
    prior, samples = PRIORS[name], 60
    given = scan(prior.draw())
    settings = {"steps": 200, "highest": 3.0, "lowest": 0.02, "iterations": 20, "momentum": momentum}
    found = decomposed_diffusion(given.problem, prior_of(prior), seeded(samples=samples), **settings)
    truth = given.posterior(prior)
    assert relative_to(truth, found) < 0.05
    require_deviation(found, samples // 2 + 1, truth.covariance, slack=0.03)


@pytest.mark.parametrize(
    ("samples", "steps", "momentum"), [(1, 4, 0.0), (2, 4, 0.5), (2, 20, 0.5), (2, 30, 0.25), (2, 50, 0.0)]
)
def test_momentum_makes_up_for_few_steps_of_several_samples(samples, steps, momentum):
    given, prior = scan(PRIORS["white"].draw()), prior_of(PRIORS["white"])
    by_default, expected, other = (
        decomposed_diffusion(given.problem, prior, seeded(samples=samples), steps=steps, **settings).image
        for settings in ({}, {"momentum": momentum}, {"momentum": momentum + 0.1})
    )
    assert torch.equal(by_default, expected)
    assert not torch.equal(by_default, other)


SHORT = {"steps": 4}


def test_same_seed_same_image():
    given, prior = scan(PRIORS["white"].draw()), prior_of(PRIORS["white"])
    first, again, other = (
        decomposed_diffusion(given.problem, prior, seeded(seed, samples=3), **SHORT) for seed in (1, 1, 2)
    )
    assert torch.equal(first.image, again.image)
    assert torch.equal(first.deviation, again.deviation)
    assert relative(other.image - first.image, first.image) > 0.01


def test_stops_when_told_and_denoises_what_the_data_leave():
    prior, asked = prior_of(PRIORS["white"]), []
    given = scan(PRIORS["white"].draw())

    def go_on(done: int, planned: int) -> bool:
        asked.append((done, planned))
        return done < 3

    found = decomposed_diffusion(given.problem, prior, seeded(go_on=go_on))
    assert asked == [(i, 20) for i in range(4)]
    assert (found.steps, found.planned, found.deviation) == (3, 20, None)
    levels = falling_levels(prior, 1.0, 0.01, 20)
    three = decomposed_diffusion(given.problem, prior, seeded(), steps=3, lowest=levels[2])
    assert float(given.problem.noise_level) < levels[3]
    torch.testing.assert_close(found.image, prior.denoise(three.image, float(given.problem.noise_level)))


@pytest.mark.parametrize("samples", [1, 2, 3])
@pytest.mark.parametrize("stop", [1, 3, 10, 19])
def test_an_image_that_leaves_early_is_no_worse_than_the_start(stop, samples):
    prior = PRIORS["smooth"]
    given = scan(prior.draw(), every=3)
    truth = given.posterior(prior).mean
    run = seeded(samples=samples, go_on=lambda done, planned: done < stop)
    early = decomposed_diffusion(given.problem, prior_of(prior), run)
    start = (tempered_covariance(given, 1.0) @ back(given)).view(N, N)
    assert relative(early.image - truth, truth) < relative(start - truth, truth)


def test_without_any_step_the_data_alone_speak_but_for_their_noise():
    given, prior = scan(PRIORS["white"].draw()), prior_of(PRIORS["white"])
    found = decomposed_diffusion(given.problem, prior, seeded(go_on=lambda done, planned: False))
    alone = (tempered_covariance(given, 1.0) @ back(given)).view(N, N)
    truth = prior.denoise(alone, float(given.problem.noise_level))
    assert found.steps == 0
    assert relative(found.image - truth, truth) < 1e-3


def test_slices_know_nothing_of_one_another(monkeypatch):
    """With the same noise in all slices."""

    def same_for_all(shape, like, generator):
        return torch.randn(shape[-2:], generator=generator, dtype=like.dtype).expand(shape)

    monkeypatch.setattr(sample_pairs, "complex_normal", same_for_all)
    prior = PRIORS["smooth"]
    scans = [scan(prior.draw(seed), unit=unit, seed=seed) for seed, unit in ((1, 8.0), (2, 20.0))]
    model = scans[0].problem.model
    stacked = LinearProblem(
        LinearModel(model.encoding, model.coil_maps.expand(2, *model.coil_maps.shape)),
        *(torch.stack([getattr(s.problem, name) for s in scans]) for name in ("data", "energy", "unit")),
    )
    together = decomposed_diffusion(stacked, prior_of(prior), seeded(samples=2), **SHORT)
    for i, given in enumerate(scans):
        alone = decomposed_diffusion(given.problem, prior_of(prior), seeded(samples=2), **SHORT)
        assert relative(together.image[i] - alone.image, alone.image) < 1e-8


def test_levels_that_the_prior_does_not_know():
    given = scan(PRIORS["white"].draw())
    prior = prior_of(PRIORS["white"], Convention("percentile99", 2.0, 5.0))
    with pytest.raises(ValueError, match="the Gaussian prior knows 2 to 5"):
        decomposed_diffusion(given.problem, prior, seeded())


@pytest.mark.parametrize("momentum", [-0.1, 1.0])
def test_momentum_that_never_ends_is_refused(momentum):
    given = scan(PRIORS["white"].draw())
    with pytest.raises(ValueError, match="expected a momentum from zero to below one, got"):
        decomposed_diffusion(given.problem, prior_of(PRIORS["white"]), seeded(), momentum=momentum)
