"""Joint steps and draws against the dense real system that they stand for, made from the signal by its definition."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from recon_core.field_basis import FieldBasis, polynomial_basis
from recon_core.operators.encoding import Encoding
from recon_core.operators.off_resonance import LowRank
from recon_core.simulation import exact_signal
from recon_core.solvers import blind_linearised
from recon_core.solvers.blind_linearised import Linearised
from recon_core.solvers.blind_problem import BlindProblem
from recon_core.solvers.conjugate_gradient import conjugate_gradient

from analytic import DirectSampling, complex_noise, relative, ring_of_coils, smooth_head, spiral_trajectory

N, COILS, UNIT, PULL = 8, 3, 6.0, 4.0
TRAJECTORY = spiral_trajectory(N, 2, 50).double()
TIMES = torch.linspace(-0.002, 0.01, 50).double()
MAPS, IMAGE = ring_of_coils(N, COILS), smooth_head(N)
THETA = torch.tensor([12.0, -8, 5, 3, 0, 4]).double()


@dataclass(frozen=True)
class Case:
    """A problem, its samples, and the real matrix from (Re dx, Im dx, dtheta) to (Re, Im) of what they add to them."""

    problem: BlindProblem
    kspace: Tensor
    jacobian: Tensor


def signal(image: Tensor, field_hz: Tensor) -> Tensor:
    return UNIT * exact_signal(image, MAPS, field_hz, TRAJECTORY, TIMES)


def parts(samples: Tensor) -> Tensor:
    """Real and imaginary parts in one column for each of `[column, coil, shot, sample]`."""
    return torch.view_as_real(samples).flatten(1).T


@pytest.fixture(scope="module")
def case() -> Case:
    """Of the basis half is known to 5 Hz, and the rest not at all."""
    some = polynomial_basis(torch.ones(N, N, dtype=torch.bool), 2)
    deviation = torch.tensor([math.inf, math.inf, math.inf, 5.0, 5.0, 5.0]).double()
    basis = FieldBasis(some.functions.double(), deviation, some.mask)
    true = THETA + torch.tensor([6.0, 4, -3, 2, 5, -2]).double()
    kspace = signal(1.1 * IMAGE, basis.field(true))
    kspace = kspace + complex_noise(*kspace.shape, dtype=torch.complex128)
    functions = LowRank(TIMES.expand(TRAJECTORY.shape[1:]), -80, 80, 1e-5)
    problem = BlindProblem.of(Encoding(DirectSampling(TRAJECTORY, (N, N)), functions), MAPS, kspace, basis)
    field_hz = basis.field(THETA)
    pixels = torch.eye(N * N, dtype=torch.complex128).view(-1, N, N)
    of_image = parts(torch.stack([signal(pixel, field_hz) for pixel in pixels]))
    of_imaginary = parts(torch.stack([signal(1j * pixel, field_hz) for pixel in pixels]))
    of_field = parts(torch.stack([-2j * torch.pi * TIMES * signal(f * IMAGE, field_hz) for f in basis.functions]))
    jacobian = torch.cat([of_image, of_imaginary, of_field], 1)
    return Case(replace(problem, unit=torch.tensor(UNIT).double()), kspace, jacobian)


@pytest.fixture
def exact(monkeypatch) -> None:
    """Conjugate gradients that go all the way."""
    monkeypatch.setattr(blind_linearised, "_TOLERANCE", 1e-12)


def weights(case: Case, pull: float) -> Tensor:
    """Square roots of the quadratic terms of (Re x, Im x, theta)."""
    channels = torch.full((2 * N * N,), math.sqrt(pull)).double()
    return torch.cat([channels, case.problem.basis.precision.div(2).sqrt()])


def dense(case: Case, pull: float, centre: Tensor) -> tuple[Tensor, Tensor]:
    """Matrix and right-hand side of the normal equations for a step."""
    offset = torch.cat([(centre - IMAGE).real.flatten(), (centre - IMAGE).imag.flatten(), -THETA])
    diagonal = weights(case, pull)
    stacked = torch.cat([case.jacobian, torch.diag(diagonal)])
    residual = case.kspace - signal(IMAGE, case.problem.basis.field(THETA))
    target = torch.cat([parts(residual[None])[:, 0], diagonal * offset])
    return stacked.T @ stacked, stacked.T @ target


@pytest.mark.parametrize("pull", [PULL, 300.0])
def test_a_step_leads_to_the_minimum_of_the_dense_problem(case, exact, pull):
    centre = IMAGE + 0.1 * complex_noise(N, N, seed=1, dtype=torch.complex128)
    image, coefficients = Linearised(case.problem, IMAGE, THETA, pull).step(centre, 400)
    truth = torch.linalg.solve(*dense(case, pull, centre))
    assert relative(coefficients - truth[-6:], truth[-6:]) < 1e-4
    of_image = torch.complex(truth[: N * N], truth[N * N : -6]).view(N, N)
    assert relative(image - of_image, of_image) < 1e-4


def test_caution_counts_what_is_known_of_the_field_several_times(case, exact):
    """Nine times as much is a third of the deviation."""
    caution = 9.0
    basis = case.problem.basis
    known = replace(case, problem=replace(case.problem, basis=replace(basis, deviation_hz=basis.deviation_hz / 3)))
    truth = torch.linalg.solve(*dense(known, PULL, IMAGE))[-6:]
    plain = torch.linalg.solve(*dense(case, PULL, IMAGE))[-6:]
    found = Linearised(case.problem, IMAGE, THETA, PULL, caution).step(IMAGE, 400)[1]
    assert relative(found - truth, truth) < 1e-4
    assert relative(plain - truth, truth) > 1e-2


def test_few_iterations_lead_further_than_with_unknowns_of_equal_curvature(case):
    system, rhs = dense(case, PULL, IMAGE)
    scale = system.diagonal().rsqrt()
    plain = (
        scale
        * conjugate_gradient(lambda x: scale * (system @ (scale * x)), scale * rhs, iterations=12, tolerance=0).image
    )
    found = Linearised(case.problem, IMAGE, THETA, PULL).step(IMAGE, 12)[1]
    truth = torch.linalg.solve(system, rhs)[-6:]
    assert relative(found - truth, truth) < 0.5 * relative(plain[-6:] - truth, truth)


@pytest.mark.slow
def test_draws_have_the_covariance_of_the_dense_posterior(case, exact):
    """Of `exp(-|J d|^2 - pull |x|^2 - |theta|_P^2 / 2)`, image included."""
    count = 250
    drawn = Linearised(case.problem, IMAGE, THETA, PULL).draws(count, torch.Generator().manual_seed(0), 30)
    stacked = torch.cat([case.jacobian, torch.diag(weights(case, PULL))])
    covariance = torch.linalg.inv(2 * stacked.T @ stacked)[-6:, -6:]
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(covariance), drawn.T, upper=False)
    identity = torch.eye(6).double()
    # Entries of the sample covariance have the variance 1 / count, those of its diagonal two.
    assert float((white @ white.T / count - identity).abs().max()) < 4.5 * math.sqrt(2 / count)
    assert abs(float(white.square().mean()) - 1) < 4 * math.sqrt(2 / white.numel())
    assert float(white.mean(1).abs().max()) < 4 / math.sqrt(count)


def test_draws_are_wider_where_the_image_is_open(case):
    wide, narrow = (
        Linearised(case.problem, IMAGE, THETA, pull).draws(40, torch.Generator().manual_seed(0), 30).square().sum()
        for pull in (PULL, 1e4)
    )
    assert float(wide) > 2 * float(narrow)


def test_functions_of_which_nothing_is_seen_stay_where_they_are(case):
    """The image is dark in one corner, where a function of its own lies, and nothing is known of it."""
    basis = case.problem.basis
    corner = torch.zeros(1, N, N).double()
    corner[0, 0, 0] = 1
    wider = FieldBasis(
        torch.cat([basis.functions, corner]), torch.cat([basis.deviation_hz, torch.tensor([math.inf])]), basis.mask
    )
    dark = IMAGE.clone()
    dark[0, 0] = 0
    near = Linearised(replace(case.problem, basis=wider), dark, torch.cat([THETA, torch.ones(1)]), PULL)
    step = near.step(dark, 30)[1]
    assert abs(float(step[-1])) < 1e-9
    assert float(step[:-1].abs().min()) > 1e-2
