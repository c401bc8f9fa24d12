"""Blind RED-diff's gradients against differences, and its field against that of a small scan of a Gaussian image."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from recon_core.field_basis import FieldBasis, polynomial_basis, smooth_basis
from recon_core.operators.encoding import Encoding
from recon_core.operators.off_resonance import LowRank
from recon_core.priors.prior import Convention
from recon_core.simulation import exact_signal
from recon_core.solvers.blind_problem import BlindProblem
from recon_core.solvers.blind_red_diff import (
    blind_red_diff,
    laplace_gradient,
    misfit_gradient,
    monomial_coefficients,
)
from recon_core.solvers.run import Run

from analytic import DirectSampling, complex_noise, relative, ring_of_coils, spiral_trajectory
from gaussian_problem import Gaussian, prior_of, smooth

N, COILS, SHOTS, SAMPLES, ORDER = 16, 3, 4, 150, 3
TRAJECTORY = spiral_trajectory(N, SHOTS, SAMPLES, power=1.5).double()
TIMES = torch.linspace(0, 0.012, SAMPLES).double()
MAPS = ring_of_coils(N, COILS)
PRIOR = Gaussian(smooth(0.35, N))
IMAGE = PRIOR.draw(1)
DENOISER = prior_of(PRIOR, Convention("percentile99", 0.005, 160.0))


def coordinates() -> tuple[Tensor, Tensor]:
    """From -1 to 1 over the field of view."""
    line = (torch.arange(N).double() - N // 2) / (N // 2)
    return torch.meshgrid(line, line, indexing="ij")


def field_hz() -> Tensor:
    y, x = coordinates()
    return 25 * x + 20 * (y**2 - x**2) + 30 * x * y**2


def basis() -> FieldBasis:
    """In double precision, of a disc."""
    y, x = coordinates()
    some = polynomial_basis(y**2 + x**2 < 0.9, ORDER)
    return FieldBasis(some.functions.double(), some.deviation_hz.double(), some.mask)


def samples(unit: float) -> Tensor:
    signal = unit * exact_signal(IMAGE * basis().mask, MAPS, field_hz(), TRAJECTORY, TIMES)
    return signal + complex_noise(*signal.shape, seed=1, dtype=signal.dtype)


def problem(unit: float = 20.0) -> BlindProblem:
    times = TIMES.expand(SHOTS, SAMPLES)
    encoding = Encoding(DirectSampling(TRAJECTORY, (N, N)), LowRank(times, -200, 200, 1e-4))
    found = BlindProblem.of(encoding, MAPS, samples(unit), times, basis())
    return replace(found, unit=torch.tensor(unit).double())


def seeded(seed: int = 0, **settings) -> Run:
    return Run(torch.Generator().manual_seed(seed), **settings)


LEVELS = {"highest": 1.0, "ending": 0.25, "spacing": "level"}


def field_error(found: Tensor) -> float:
    return float((found - field_hz())[basis().mask].square().mean().sqrt())


@pytest.mark.parametrize(("unit", "settings"), [(20.0, LEVELS), (200.0, LEVELS), (20.0, {"weight": 1.0})])
def test_comes_nearer_to_the_field(unit, settings):
    """At two strengths of the noise, and with the times of the paper."""
    found = blind_red_diff(problem(unit), DENOISER, seeded(), steps=200, order=ORDER, **settings)
    assert field_error(found.field_hz) < field_error(torch.zeros(N, N)) / 2
    assert found.misfits[-1] < found.misfits[0] / 4
    assert (found.field_deviation_hz, found.image.deviation) == (None, None)


def test_misfits_are_those_of_image_and_field():
    some = problem()
    found = blind_red_diff(some, DENOISER, seeded(), steps=3, order=ORDER, **LEVELS)
    signal = 20 * exact_signal(found.image.image, MAPS, found.field_hz, TRAJECTORY, TIMES)
    truth = float((signal - samples(20.0)).abs().square().mean())
    assert len(found.misfits) == 3
    assert found.misfits[-1] == pytest.approx(truth, rel=1e-3)


def test_keeps_about_fifty_misfits():
    found = blind_red_diff(problem(), DENOISER, seeded(), steps=101, order=ORDER)
    assert len(found.misfits) == 34  # after every third step


def test_misfit_gradient_is_the_slope_of_the_misfit():
    some, theta, way = problem(), *torch.randn(2, 10, generator=torch.Generator().manual_seed(0)).double()
    theta = 10 * theta
    image = complex_noise(N, N, seed=2, dtype=torch.complex128)

    def misfit(theta: Tensor) -> float:
        predicted = 20 * exact_signal(image, MAPS, some.basis.field(theta), TRAJECTORY, TIMES)
        return float((predicted - samples(20.0)).abs().square().sum())

    step = 1e-3
    slope = (misfit(theta + step * way) - misfit(theta - step * way)) / (2 * step)
    gradient = misfit_gradient(some, some.given(some.start._replace(field=theta)), image)
    assert float(gradient @ way) == pytest.approx(slope, rel=1e-3)


def gamma(theta: Tensor) -> Tensor:
    """The coefficients of y^p x^q, by the smallest powers first, of a polynomial that is known at the pixels."""
    y, x = (c[basis().mask] for c in coordinates())
    columns = torch.stack([y**p * x ** (n - p) for n in range(ORDER + 1) for p in range(n + 1)], -1)
    return torch.linalg.lstsq(columns, basis().field(theta)[basis().mask][:, None]).solution[:, 0]


def test_laplace_gradient_is_the_slope_of_the_penalty():
    """Away from 3.3, where it has none."""
    theta, way = torch.randn(2, 10, generator=torch.Generator().manual_seed(0)).double()
    theta, step = 20 * theta, 1e-5

    def penalty(theta: Tensor) -> float:
        return float((gamma(theta) - 3.3).abs().sum() / 95.1)

    slope = (penalty(theta + step * way) - penalty(theta - step * way)) / (2 * step)
    gradient = laplace_gradient(theta, monomial_coefficients(basis(), ORDER))
    assert float(gradient @ way) == pytest.approx(slope, rel=1e-5)


def test_a_penalty_without_measure_leaves_the_most_probable_polynomial():
    found = blind_red_diff(problem(), DENOISER, seeded(), steps=100, order=ORDER, field_weight=1e12)
    coefficients = gamma(basis().fit(found.field_hz))
    assert float((coefficients - 3.3).abs().max()) < 1.5


def test_same_seed_same_estimate():
    """To rounding, which depends on where arrays lie in memory."""
    some = problem()
    first, again, other = (blind_red_diff(some, DENOISER, seeded(seed), steps=5, order=ORDER) for seed in (1, 1, 2))
    assert relative(again.image.image - first.image.image, first.image.image) < 1e-9
    assert relative(again.field_hz - first.field_hz, first.field_hz) < 1e-9
    assert relative(other.image.image - first.image.image, first.image.image) > 1e-3
    assert relative(other.field_hz - first.field_hz, first.field_hz) > 1e-3


@pytest.mark.parametrize("enough", [0, 3])
def test_stops_when_told(enough):
    asked = []

    def go_on(done: int, planned: int) -> bool:
        asked.append((done, planned))
        return done < enough

    found = blind_red_diff(problem(), DENOISER, seeded(go_on=go_on), steps=20, order=ORDER)
    assert asked == [(done, 20) for done in range(enough + 1)]
    assert (found.image.steps, found.image.planned, len(found.misfits)) == (enough, 20, enough)
    assert bool(found.field_hz.any()) == (enough > 0)
    assert bool(found.image.image.any())


def test_refusals():
    with pytest.raises(ValueError, match="the 21 functions of a basis of polynomials of order 5, got 10 that are not"):
        blind_red_diff(problem(), DENOISER, seeded())
    others = smooth_basis(basis().mask, (200.0, 200.0))
    ten = FieldBasis(others.functions[:10], others.deviation_hz[:10], others.mask)
    with pytest.raises(ValueError, match="the 10 functions of a basis of polynomials of order 3, got 10 that are not"):
        monomial_coefficients(ten, 3)
    with pytest.raises(ValueError, match="noise levels that fall, got 0"):
        blind_red_diff(problem(), DENOISER, seeded(), steps=0, order=ORDER)
