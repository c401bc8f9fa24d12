"""The blind problem against the signal by its definition, and against dense matrices."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from recon_core.coil_errors import CoilErrors
from recon_core.field_basis import FieldBasis, polynomial_basis
from recon_core.fourier import fft_centred
from recon_core.operators.encoding import Encoding
from recon_core.operators.linear_model import LinearModel
from recon_core.operators.off_resonance import LowRank
from recon_core.operators.sampling import sampling_operator
from recon_core.priors.prior import Convention
from recon_core.simulation import exact_signal
from recon_core.solvers.blind_problem import BlindProblem, Whereabouts
from recon_core.solvers.linear_problem import LinearProblem

from analytic import (
    DirectSampling,
    complex_noise,
    grid_trajectory,
    radial_trajectory,
    relative,
    ring_of_coils,
    smooth_head,
    spiral_trajectory,
)

N, COILS, REACH_HZ = 12, 3, 100.0
TRAJECTORY = spiral_trajectory(N, 3, 60).double()
TIMES = torch.linspace(0, 0.012, 60).double()
MAPS = ring_of_coils(N, COILS)
THETA = torch.tensor([20.0, -15, 10, 5, 0, 8]).double()


def basis(shape: tuple[int, int] = (N, N)) -> FieldBasis:
    some = polynomial_basis(torch.ones(shape, dtype=torch.bool), 2)
    return FieldBasis(some.functions.double(), some.deviation_hz.double(), some.mask)


def encoding(trajectory: Tensor = TRAJECTORY, times: Tensor = TIMES) -> Encoding:
    functions = LowRank(times.expand(trajectory.shape[1:]), -REACH_HZ, REACH_HZ, 1e-6)
    return Encoding(DirectSampling(trajectory, (N, N)), functions)


ERRORS = CoilErrors.smooth((N, N), (60.0, 60.0))


def at(theta: Tensor, wrong: float = 0.0) -> Whereabouts:
    """With coil maps that are wrong by so much."""
    return Whereabouts(theta, wrong * complex_noise(COILS, len(ERRORS.deviation), seed=5, dtype=torch.complex128))


def problem_of(kspace: Tensor, some: Encoding | None = None) -> BlindProblem:
    """With coil maps that may err."""
    some = some or encoding()
    times = torch.linspace(0, 0.012, kspace.shape[2]).double().expand(kspace.shape[1:])
    return BlindProblem.of(some, MAPS, kspace, times, basis(), ERRORS)


@pytest.fixture(scope="module")
def kspace() -> Tensor:
    return complex_noise(COILS, *TRAJECTORY.shape[1:], dtype=torch.complex128)


@pytest.fixture(scope="module")
def problem(kspace) -> BlindProblem:
    """With a unit of its own."""
    return replace(problem_of(kspace), unit=torch.tensor(3.0).double())


@pytest.mark.parametrize("wrong", [0.0, 0.05])
def test_misfit_of_given_field_and_maps_is_that_of_their_signal(problem, kspace, wrong):
    image, there = complex_noise(N, N, seed=1, dtype=torch.complex128), at(THETA, wrong)
    field_hz = torch.einsum("k,kyx->yx", THETA, problem.basis.functions)
    maps = MAPS + torch.einsum("ck,kyx->cyx", there.coils, ERRORS.functions.to(torch.complex128))
    assert float(field_hz.abs().max()) < REACH_HZ
    signal = exact_signal(3 * image, maps, field_hz, TRAJECTORY, TIMES)
    truth = float((signal - kspace).abs().square().sum())
    assert float(problem.given(there).misfit(image)) == pytest.approx(truth, rel=1e-5)


def test_given_field_and_maps_leave_the_linear_problem_of_them(problem, kspace):
    there = at(THETA, 0.05)
    direct = LinearProblem.of(
        LinearModel(problem.encoding, problem.maps(there.coils), problem.basis.field(THETA)), kspace
    )
    given = problem.given(there)
    torch.testing.assert_close(given.data, direct.data)
    torch.testing.assert_close(given.energy, direct.energy)
    torch.testing.assert_close(given.noise_level, direct.noise_level / 3)
    image = complex_noise(N, N, seed=1, dtype=torch.complex128)
    torch.testing.assert_close(given.normal(image), 9 * direct.normal(image))


def test_the_start_is_no_field_and_the_maps_as_they_are(problem):
    field, coils = problem.start
    assert (field.shape, coils.shape) == ((6,), (COILS, len(ERRORS.deviation)))
    assert not field.any()
    assert torch.equal(problem.maps(coils), MAPS)


def test_maps_that_are_taken_for_right_have_unit_norm_and_the_same_products_with_an_image(problem):
    """What they lose or gain is the image's."""
    there, image = at(THETA, 0.05), complex_noise(N, N, seed=1, dtype=torch.complex128)
    maps, known = problem.maps(there.coils), problem.with_known_maps(there.coils)
    norm = maps.abs().square().sum(0).sqrt()
    assert float((norm - 1).abs().max()) > 0.05
    torch.testing.assert_close(known.coil_maps.abs().square().sum(0), torch.ones(N, N).double())
    torch.testing.assert_close(known.coil_maps * (norm * image), maps * image)
    misfit = known.given(known.start._replace(field=THETA)).misfit(norm * image)
    torch.testing.assert_close(misfit, problem.given(there).misfit(image))


def test_maps_that_are_taken_for_right_do_not_err(problem):
    known = problem.with_known_maps(at(THETA, 0.05).coils)
    assert known.start.coils.shape == (COILS, 0)
    assert torch.equal(known.maps(known.start.coils), known.coil_maps)


def test_maps_are_right_unless_it_is_said_how_they_may_err(kspace):
    times = TIMES.expand(TRAJECTORY.shape[1:])
    assert len(BlindProblem.of(encoding(), MAPS, kspace, times, basis()).coil_errors.deviation) == 0


def test_fields_are_brought_back_into_the_range_and_otherwise_left(problem):
    theta = 5 * THETA
    wanted, found = problem.basis.field(theta), problem.field(theta)
    beyond = wanted.abs() > REACH_HZ
    assert 0 < int(beyond.sum()) < beyond.numel()
    torch.testing.assert_close(found[~beyond], wanted[~beyond], rtol=0, atol=0)
    torch.testing.assert_close(found[beyond], REACH_HZ * wanted[beyond].sign(), rtol=0, atol=0)
    assert torch.equal(problem.in_range(theta), ~beyond)
    problem.given(at(theta))


def test_the_unit_is_that_of_an_image_in_the_field_of_the_coefficients():
    theta = torch.tensor([80.0, 0, 0, 0, 0, 0]).double()
    image = 50 * smooth_head(N)
    kspace = exact_signal(image, MAPS, basis().field(theta), TRAJECTORY, TIMES)
    some, convention = problem_of(kspace), Convention("maximum", 0.01, 1.0)
    truth = float(image.abs().max())
    assert float(some.scaled_for(convention, at(theta)).unit) == pytest.approx(truth, rel=0.02)
    assert float(some.scaled_for(convention, at(-theta)).unit) > 1.1 * truth


def density_and_spectrum(trajectory: Tensor) -> tuple[Tensor, Tensor]:
    """What is under test, and F E^H E F^H as a dense matrix."""
    seen = encoding(trajectory, torch.linspace(0, 0.012, trajectory.shape[2]).double())
    nothing = torch.zeros(COILS, *trajectory.shape[1:], dtype=torch.complex128)
    waves = fft_centred(seen.sampling.matrix.T.conj().reshape(-1, N, N), (-2, -1)).flatten(1)
    return problem_of(nothing, seen).density, waves.T @ waves.conj()


@pytest.mark.parametrize(
    ("trajectory", "accuracy"),
    [
        (grid_trajectory((N, N)), 1e-6),
        (spiral_trajectory(N, 6, 60), 0.2),
        (radial_trajectory(N, 19, 24), 0.2),
        (spiral_trajectory(N, 6, 60, power=2.0)[:, ::2], 0.4),
    ],
)
def test_density_is_about_how_strongly_each_point_of_kspace_is_sampled(trajectory, accuracy):
    """It leaves out half of the point spread function, of which spirals with a dense centre have most there."""
    density, spectrum = density_and_spectrum(trajectory.double())
    truth = spectrum.diagonal().real.view(N, N)
    assert relative(density - truth, truth) < accuracy
    assert float(density.min()) >= 0


@pytest.mark.parametrize(
    ("trajectory", "gain"),
    [
        (spiral_trajectory(N, 6, 60), 6),
        (radial_trajectory(N, 19, 24), 8),
        (spiral_trajectory(N, 6, 60, power=2.0)[:, ::2], 2),
    ],
)
def test_density_conditions_the_normal_equations(trajectory, gain):
    density, spectrum = density_and_spectrum(trajectory.double())
    ridge = 0.1
    whiten = (density.flatten() + ridge).rsqrt()
    system = spectrum + ridge * torch.eye(N * N)
    before, after = torch.linalg.cond(system), torch.linalg.cond(whiten[:, None] * system * whiten)
    assert float(before / after) > gain


def test_bad_inputs_are_named(kspace):
    times = TIMES.expand(TRAJECTORY.shape[1:])
    with pytest.raises(ValueError, match="the encoding has no functions of time"):
        BlindProblem.of(Encoding(sampling_operator(TRAJECTORY, (N, N))), MAPS, kspace, times, basis())
    with pytest.raises(ValueError, match=r"on the grid \[12, 12\] of the coil maps, got \[10, 12\]"):
        BlindProblem.of(encoding(), MAPS, kspace, times, basis((10, N)))
    broken = kspace.clone()
    broken[1, 0, :5] = torch.nan
    with pytest.raises(ValueError, match="5 of 540 samples of k-space are not finite"):
        problem_of(broken)
    with pytest.raises(ValueError, match="cannot be scaled"):
        problem_of(0 * kspace).scaled_for(Convention("maximum", 0.01, 1.0), at(THETA))
