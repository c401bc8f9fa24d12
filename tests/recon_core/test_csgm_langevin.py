import pytest
import torch

from recon_core.priors.prior import Convention
from recon_core.solvers.csgm_langevin import csgm_langevin
from recon_core.solvers.run import Run

from analytic import relative
from gaussian_problem import CONVENTION, Gaussian, Mixture, N, prior_of, scan, smooth, white

PRIOR = Gaussian(smooth())
SCAN = scan(PRIOR.draw(3), unit=20.0)
WHOLE_LADDER = Convention("percentile99", 0.0066, 232.0)


def run(samples=1, seed=0, **settings):
    return Run(torch.Generator().manual_seed(seed), samples, **settings)


def steps(convention, **settings):
    never = run(go_on=lambda done, planned: False)
    return csgm_langevin(SCAN.problem, prior_of(PRIOR, convention), never, **settings).planned


def test_calls_the_network_as_often_as_the_released_program():
    assert steps(WHOLE_LADDER, steps_per_level=3) == 3465
    assert steps(WHOLE_LADDER, steps_per_level=4) == 3975
    assert steps(WHOLE_LADDER, steps_per_level=4, stride=10) == 65 * 3 + 51 * 4


def test_levels_that_the_prior_does_not_know_are_left_out():
    asked = []

    def denoiser(channels, sigma):
        asked.append(float(sigma[0]))
        return channels

    csgm_langevin(SCAN.problem, prior_of(denoiser, Convention("percentile99", 0.1, 0.5)), run(), stride=20)
    assert 0.157 <= min(asked) < 0.173  # the images hold 1.57 times the level
    assert max(asked) == 0.5
    assert asked == sorted(asked, reverse=True)


def test_leaves_noise_of_1_57_sigma_where_the_prior_alone_decides():
    point = Gaussian(white(1e-6))
    lone = csgm_langevin(SCAN.problem, prior_of(point), run(20), data_weight=0, stride=20)
    # The last level of the ladder that is known, of every 20th.
    last = min(s for s in (232 * (0.0066 / 232) ** (c / 2310) for c in range(1156, 2311, 20)) if s >= CONVENTION.lowest)
    per_channel = float(lone.deviation.square().mean().sqrt()) / 2**0.5
    # A unit score takes eta / sigma of the noise u sigma away, and 2 eta of variance come: u^2 = (u - h)^2 + 2 h.
    h = 5e-5 / 0.0066**2
    assert h == pytest.approx(1.148, abs=0.001)
    assert per_channel / last == pytest.approx(h / 2 + 1, rel=0.03)


def test_the_data_pull_with_five_times_the_norm_of_the_score():
    asked = []

    def nothing_known(channels, sigma):
        asked.append((torch.view_as_complex(channels[0].movedim(0, -1).contiguous()), float(sigma[0])))
        return channels

    for weight in (5.0, 0.0):
        two = run(go_on=lambda done, planned: done < 2)
        csgm_langevin(SCAN.problem, prior_of(nothing_known), two, stride=10, data_weight=weight)
    # The draws are the same, so that the images differ after a step by the pull of the data alone.
    (before, told), (pulled, _), _, _, _, (free, _), _, _ = asked
    towards = SCAN.matrix.mH @ (SCAN.kspace - SCAN.matrix @ before.flatten())
    level = told / 1.57
    length = 5e-5 * (level / 0.0066) ** 2 * 5 * (2 * N * N) ** 0.5 / level
    expected = length * towards / torch.linalg.vector_norm(towards)
    assert relative((pulled - free).flatten() - expected, expected) < 1e-9


def test_agrees_with_nearly_noiseless_data():
    estimate = csgm_langevin(SCAN.problem, prior_of(PRIOR), run(4), stride=10)
    seen = SCAN.matrix @ estimate.image.flatten()
    assert relative(seen - SCAN.kspace, SCAN.kspace) < 0.2


@pytest.mark.parametrize("mode", [0, 1])
def test_goes_to_the_mode_that_the_data_show(mode):
    apart = torch.full((N, N), 0.6, dtype=torch.complex128)
    modes = [Gaussian(white(0.05), -apart), Gaussian(white(0.05), apart)]
    some = scan(modes[mode].draw(4), unit=8.0)
    estimate = csgm_langevin(some.problem, prior_of(Mixture([0.5, 0.5], modes)), run(4), stride=20)
    assert relative(estimate.image - modes[mode].mean, apart) < 0.5  # the other is 2 away


def test_the_same_seed_gives_the_same_image():
    first, again, other = (csgm_langevin(SCAN.problem, prior_of(PRIOR), run(2, seed), stride=100) for seed in (0, 0, 1))
    assert torch.equal(first.image, again.image)
    assert not torch.equal(first.image, other.image)


@pytest.mark.parametrize("stop", [1, 3, 10, 20, 30])
def test_an_image_that_leaves_early_is_about_as_good_as_that_of_the_data(stop):
    """Whatever noise the chain still holds; at first it is greater than the image."""
    some = scan(PRIOR.draw(3), every=3)
    estimate = csgm_langevin(some.problem, prior_of(PRIOR), run(go_on=lambda done, planned: done < stop), stride=100)
    assert (estimate.steps, estimate.planned) == (stop, 37)
    truth = some.posterior(PRIOR).mean
    alone = some.problem.tempered(torch.zeros_like(truth), 1.0, None, 10)
    assert relative(estimate.image - truth, truth) < 1.2 * relative(alone - truth, truth)


def test_refusals():
    with pytest.raises(ValueError, match="at least 1, got 0 and 4"):
        csgm_langevin(SCAN.problem, prior_of(PRIOR), run(), stride=0)
    with pytest.raises(ValueError, match="none of those from 1.23"):
        csgm_langevin(SCAN.problem, prior_of(PRIOR, Convention("percentile99", 2.0, 160.0)), run())
