"""What a denoised image does not follow of a change, where that is known."""

from __future__ import annotations

import torch
from torch import Tensor

from recon_core.priors.library import load_prior
from recon_core.priors.prior import Convention, Prior
from recon_core.solvers.prior_curvature import not_followed

from analytic import complex_noise, relative

LEVEL = 0.2
NOISY = complex_noise(6, 5, seed=1, dtype=torch.complex128)
CHANGE = complex_noise(6, 5, seed=2, dtype=torch.complex128)


def prior_that_keeps(kept: Tensor) -> Prior:
    """Of pixels of its own variance each: the denoised image is a part of the noisy one."""
    return Prior(lambda channels, _: kept * channels, Convention("percentile99", 0.01, 10.0), "pixels")


def left(prior: Prior, change: Tensor) -> Tensor:
    return not_followed(prior, NOISY, prior.denoise(NOISY, LEVEL), LEVEL)(change)


def test_of_a_gaussian_prior_the_curvature_is_that_of_its_density():
    """`-log p` of noisy pixels of variance v bends by 1 / (v + level^2): level^2 of that, but for a tenth."""
    variance = torch.linspace(0.0, 1.0, 30, dtype=torch.float64).view(6, 5)
    prior = prior_that_keeps(variance / (variance + LEVEL**2))
    expected = 0.1 + 0.9 * LEVEL**2 / (variance + LEVEL**2)
    assert relative(left(prior, CHANGE) - expected * CHANGE, CHANGE) < 1e-10


def test_where_a_network_enlarges_changes_a_tenth_is_left():
    """No density does; conjugate gradients would end with an error."""
    overdone = prior_that_keeps(torch.full((6, 5), 1.5, dtype=torch.float64))
    assert relative(left(overdone, CHANGE) - 0.1 * CHANGE, CHANGE) < 1e-10


def test_nothing_is_left_of_no_change():
    nothing = torch.zeros_like(CHANGE)
    assert torch.equal(left(prior_that_keeps(torch.ones(6, 5)), nothing), nothing)


def test_a_network_follows_less_of_noise_than_of_another_brightness():
    """It is an image that is brighter by a thousandth; the noise is none."""
    prior = load_prior("head_unet")
    y, x = torch.meshgrid(torch.linspace(-1, 1, 64), torch.linspace(-1, 1, 64), indexing="ij")
    image = 0.6 * (x**2 + y**2 < 0.7).to(torch.complex64)
    noisy = image + 0.05 * 2**0.5 * complex_noise(64, 64, seed=3)
    asked = not_followed(prior, noisy, prior.denoise(noisy, 0.05), 0.05)

    def part(change: Tensor) -> float:
        return float(asked(change).norm() / change.norm())

    assert part(image) < 0.4
    assert part(complex_noise(64, 64, seed=4)) > 0.7
