"""The deviation of an image whose field is open, against dense posteriors made from the signal by its definition."""

import pytest
import torch
from torch import Generator, Tensor

from recon_core.field_basis import FieldBasis, polynomial_basis
from recon_core.operators.encoding import Encoding
from recon_core.operators.off_resonance import LowRank
from recon_core.simulation import exact_signal
from recon_core.solvers import blind_deviation
from recon_core.solvers.blind_deviation import with_open_field
from recon_core.solvers.blind_problem import BlindProblem
from recon_core.solvers.run import Estimate, Run

from analytic import DirectSampling, complex_noise, relative, ring_of_coils, smooth_head, spiral_trajectory

N, COILS, DRAWS, LEVEL = 8, 3, 30, 1.0
TRAJECTORY = spiral_trajectory(N, 2, 50).double()
TIMES = torch.linspace(-0.002, 0.01, 50).double()
MAPS, CENTRE = ring_of_coils(N, COILS), 30 * smooth_head(N)
THETA = torch.tensor([12.0, -8, 5, 3, 0, 4]).double()
RUN = Run(Generator())
OTHERS = THETA + 1.5 * torch.randn(DRAWS, 6, generator=Generator().manual_seed(2)).double()


@pytest.fixture(scope="module")
def basis() -> FieldBasis:
    some = polynomial_basis(torch.ones(N, N, dtype=torch.bool), 2)
    return FieldBasis(some.functions.double(), some.deviation_hz.double(), some.mask)


@pytest.fixture(scope="module")
def kspace(basis) -> Tensor:
    image = CENTRE + 2**0.5 * LEVEL * complex_noise(N, N, seed=1, dtype=torch.complex128)
    signal = exact_signal(image, MAPS, basis.field(THETA), TRAJECTORY, TIMES)
    return signal + complex_noise(*signal.shape, dtype=torch.complex128)


@pytest.fixture(scope="module")
def problem(basis, kspace) -> BlindProblem:
    times = TIMES.expand(TRAJECTORY.shape[1:])
    encoding = Encoding(DirectSampling(TRAJECTORY, (N, N)), LowRank(times, -80, 80, 1e-6))
    return BlindProblem.of(encoding, MAPS, kspace, times, basis)


@pytest.fixture(scope="module")
def posteriors(basis, kspace) -> tuple[Tensor, Tensor]:
    """Means and variances in the field and in the others, of images that are Gaussian about the centre."""
    pixels = torch.eye(N * N, dtype=torch.complex128).view(-1, N, N)
    means, variances = [], []
    for theta in (THETA, *OTHERS):
        columns = [exact_signal(pixel, MAPS, basis.field(theta), TRAJECTORY, TIMES).flatten() for pixel in pixels]
        matrix = torch.stack(columns, 1)
        covariance = torch.linalg.inv(matrix.mH @ matrix + torch.eye(N * N) / (2 * LEVEL**2))
        means.append(covariance @ (matrix.mH @ kspace.flatten() + CENTRE.flatten() / (2 * LEVEL**2)))
        variances.append(covariance.diagonal().real)
    return torch.stack(means).view(-1, N, N), torch.stack(variances).view(-1, N, N)


@pytest.fixture
def exact(monkeypatch) -> None:
    """Of a Gaussian prior the samples are what they should be."""
    monkeypatch.setattr(blind_deviation, "_IMAGE_ERROR_PER_DEVIATION", 1.0)
    monkeypatch.setattr(blind_deviation, "_ITERATIONS", 100)


def test_the_variance_is_that_of_images_in_all_fields_together(problem, posteriors, exact):
    means, variances = posteriors
    found = Estimate(means[0], variances[0].sqrt(), 1, 1)
    fields = torch.cat([THETA[None], OTHERS])
    wider = with_open_field(problem, found, fields, LEVEL, RUN)
    total = variances[1:].mean(0) + (means[1:] - means[0]).abs().square().mean(0)
    assert relative(wider.deviation.square() - total, total) < 0.03
    assert relative(variances[0] - total, total) > 0.5
    assert torch.equal(wider.image, found.image)


def test_few_iterations_find_nearly_all_of_what_the_field_adds(problem, posteriors, monkeypatch):
    monkeypatch.setattr(blind_deviation, "_IMAGE_ERROR_PER_DEVIATION", 1.0)
    means, variances = posteriors
    found = Estimate(means[0], variances[0].sqrt(), 1, 1)
    wider = with_open_field(problem, found, torch.cat([THETA[None], OTHERS]), 1, RUN)
    added = (means[1:] - means[0]).abs().square().mean()
    assert 0.6 * added < (wider.deviation.square() - variances[0]).mean() < 1.2 * added


def test_a_field_that_is_known_adds_nothing(problem, posteriors):
    means, variances = posteriors
    found = Estimate(means[0], variances[0].sqrt(), 1, 1)
    known = with_open_field(problem, found, THETA.expand(3, -1), LEVEL, RUN)
    torch.testing.assert_close(known.deviation, blind_deviation._IMAGE_ERROR_PER_DEVIATION * found.deviation)


@pytest.mark.parametrize(("enough", "drawn"), [(0, 1), (5, 1), (7, 3), (99, DRAWS)])
def test_fields_are_drawn_while_there_is_time_and_at_least_one(problem, posteriors, enough, drawn):
    """Their steps follow the four of the image."""
    means, variances = posteriors
    found, asked = Estimate(means[0], variances[0].sqrt(), 4, 4), []

    def go_on(done: int, planned: int) -> bool:
        asked.append((done, planned))
        return done < enough

    fields = torch.cat([THETA[None], OTHERS])
    wider = with_open_field(problem, found, fields, LEVEL, Run(Generator(), go_on=go_on))
    few = with_open_field(problem, found, fields[: 1 + drawn], LEVEL, RUN)
    torch.testing.assert_close(wider.deviation, few.deviation)
    assert (wider.steps, wider.planned) == (4 + drawn, 4 + DRAWS)
    assert asked[0] == (4, 4 + DRAWS)
