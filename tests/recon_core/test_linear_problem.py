import math
from dataclasses import replace

import pytest
import torch

from recon_core.operators.encoding import Encoding
from recon_core.operators.linear_model import LinearModel
from recon_core.operators.off_resonance import LowRank
from recon_core.operators.sampling import sampling_operator
from recon_core.priors.prior import Convention
from recon_core.solvers.linear_problem import LinearProblem

from analytic import complex_noise, grid_trajectory, random_trajectory, relative, ring_of_coils, smooth_head
from gaussian_problem import Gaussian, N, scan, smooth, white

GIVEN = scan(Gaussian(smooth()).draw())
IMAGES = complex_noise(3, N, N, seed=5, dtype=torch.complex128)


def test_misfit_is_the_sum_over_the_samples():
    misfits = GIVEN.problem.misfit(IMAGES)
    residuals = IMAGES.flatten(1) @ GIVEN.matrix.T - GIVEN.kspace
    torch.testing.assert_close(misfits, residuals.abs().square().sum(1), rtol=1e-5, atol=0)


def test_misfit_of_the_true_image_is_about_the_number_of_samples():
    truth = Gaussian(smooth()).draw()
    samples = len(GIVEN.kspace)
    assert float(GIVEN.problem.misfit(truth)) == pytest.approx(samples, abs=5 * math.sqrt(samples))


def test_gradient_is_that_of_the_misfit():
    image, way = IMAGES[0], complex_noise(N, N, seed=6, dtype=torch.complex128)
    gradient = GIVEN.problem.gradient(image)
    change = (GIVEN.problem.misfit(image + way) - GIVEN.problem.misfit(image - way)) / 2  # exact: it is quadratic
    assert float((gradient.conj() * way).real.sum()) == pytest.approx(float(change), rel=1e-6)
    residual = GIVEN.matrix @ image.flatten() - GIVEN.kspace
    exact = 2 * (GIVEN.matrix.mH @ residual).view(N, N)
    assert relative(gradient - exact, exact) < 1e-6


def test_noise_has_the_covariance_of_the_data():
    """Whitened by Cholesky's factor, each entry of the mean of w w^H is off that of 1 by about 1 / sqrt(n)."""
    given, count = scan(Gaussian(white()).draw(), every=1), 1500
    noise = given.problem.noise(count, torch.Generator().manual_seed(2)).flatten(1)
    whitened = torch.linalg.solve_triangular(torch.linalg.cholesky(given.precision), noise.T, upper=False)
    covariance = whitened @ whitened.mH / count
    error = (covariance - torch.eye(N * N)).abs()
    assert error.max() < 6 / math.sqrt(count)
    assert error.square().mean().sqrt() == pytest.approx(1 / math.sqrt(count), rel=0.02)
    relation = (whitened @ whitened.T / count).abs()  # zero: real and imaginary parts share nothing
    assert relation.square().mean().sqrt() < 1.1 / math.sqrt(count)


@pytest.mark.parametrize("level", [0.02, 0.3, 5.0])
def test_tempered_agrees_with_the_dense_solution(level):
    matrix = GIVEN.precision + torch.eye(N * N) / (2 * level**2)
    rhs = (GIVEN.matrix.mH @ GIVEN.kspace)[:, None] + IMAGES.flatten(1).T / (2 * level**2)
    truth = torch.linalg.solve(matrix, rhs).T.view(IMAGES.shape)
    for start in (None, IMAGES):
        found = GIVEN.problem.tempered(IMAGES, level, start, iterations=500, tolerance=1e-10)
        assert relative(found - truth, truth) < 1e-5


def test_tempered_takes_a_level_of_each_pixel():
    level = torch.linspace(0.1, 1, N * N, dtype=torch.float64).view(N, N)
    precision = (1 / (2 * level**2)).to(IMAGES)
    rhs = GIVEN.matrix.mH @ GIVEN.kspace + (precision * IMAGES[0]).flatten()
    truth = torch.linalg.solve(GIVEN.precision + torch.diag(precision.flatten()), rhs).view(N, N)
    found = GIVEN.problem.tempered(IMAGES[:1], level, None, iterations=500, tolerance=1e-10)[0]
    assert relative(found - truth, truth) < 1e-5


def test_tempered_is_the_posterior_mean_of_a_white_prior():
    prior = Gaussian(white(0.5), mean=IMAGES[0])
    truth = GIVEN.posterior(prior).mean
    found = GIVEN.problem.tempered(IMAGES[:1], 0.5, None, iterations=500, tolerance=1e-10)[0]
    assert relative(found - truth, truth) < 1e-5


def test_noise_level_is_the_diagonal_of_the_precision():
    given = scan(Gaussian(white()).draw(), every=3)
    diagonal = given.precision.diagonal().real
    truth = (2 * diagonal.square().sum() / diagonal.sum()).rsqrt()
    torch.testing.assert_close(given.problem.noise_level, truth.view(1, 1))


def test_noise_level_with_a_field_and_any_trajectory():
    shape = (9, 8)
    trajectory, maps = random_trajectory(shape), complex_noise(3, *shape, seed=5)
    times = torch.linspace(0, 5e-3, 50).expand(3, 50)
    field = 40 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    functions = LowRank(times, -200.0, 200.0)
    model = LinearModel(Encoding(sampling_operator(trajectory, shape), functions), maps, field)
    problem = LinearProblem.of(model, complex_noise(3, 3, 50))
    pixels = torch.eye(72, dtype=torch.complex64).view(72, *shape)
    diagonal = model.forward(pixels).abs().square().sum((1, 2, 3))
    truth = (2 * diagonal.square().sum() / diagonal.sum()).rsqrt()
    assert float(problem.noise_level) == pytest.approx(float(truth), rel=1e-3)


def test_noise_level_counts_only_what_coils_see():
    maps = GIVEN.problem.model.coil_maps.clone()
    maps[:, :, :7] = 0
    part = replace(GIVEN.problem, model=LinearModel(GIVEN.problem.model.encoding, maps))
    torch.testing.assert_close(part.noise_level, GIVEN.problem.noise_level)
    none = replace(GIVEN.problem, model=LinearModel(GIVEN.problem.model.encoding, 0 * maps))
    assert 1e100 < float(none.noise_level) < math.inf


def head_scan(n: int = 48, noise: float = 0.05, scales=(1.0, 7.0, 0.2)) -> tuple[Encoding, torch.Tensor, torch.Tensor]:
    """Slices of different brightness and coils of different strength: encoding, maps and k-space."""
    heads = torch.stack([scale * smooth_head(n).roll(i, 0) for i, scale in enumerate(scales)])
    maps = torch.stack([(1 + i) * ring_of_coils(n, 6).roll(i, 0) for i in range(len(scales))])
    encoding = Encoding(sampling_operator(grid_trajectory((n, n))[:, ::2], (n, n)))
    kspace = LinearModel(encoding, maps).forward(heads / noise)
    return encoding, maps, kspace + complex_noise(*kspace.shape, dtype=kspace.dtype)


@pytest.mark.parametrize("scale", ["percentile99", "maximum"])
def test_unit_is_that_of_the_convention(scale):
    convention = Convention(scale, 0.01, 10.0)
    encoding, maps, kspace = head_scan()
    problem = LinearProblem.of(LinearModel(encoding, maps), kspace)
    assert torch.equal(problem.unit, torch.ones(3, dtype=torch.float64))
    heads = torch.stack([s * smooth_head(48).roll(i, 0) for i, s in enumerate((1.0, 7.0, 0.2))]) / 0.05
    scaled = problem.scaled_for(convention)
    torch.testing.assert_close(scaled.unit, convention.unit(heads), rtol=0.25, atol=0)
    torch.testing.assert_close(scaled.scaled_for(convention).unit, scaled.unit)
    torch.testing.assert_close(scaled.adjoint, scaled.unit[:, None, None] * LinearModel(encoding, maps).adjoint(kspace))


def test_slices_are_solved_each_for_itself():
    convention = Convention("percentile99", 0.01, 10.0)
    encoding, maps, kspace = head_scan()
    together = LinearProblem.of(LinearModel(encoding, maps), kspace).scaled_for(convention)
    centre = complex_noise(2, 3, 48, 48, dtype=torch.complex128)
    solved, misfits = together.tempered(centre, 0.3, None, 30), together.misfit(centre)
    for i in range(3):
        alone = LinearProblem.of(LinearModel(encoding, maps[i]), kspace[i]).scaled_for(convention)
        torch.testing.assert_close(together.unit[i], alone.unit)
        torch.testing.assert_close(together.noise_level[i], alone.noise_level)
        torch.testing.assert_close(misfits[:, i], alone.misfit(centre[:, i]))
        one = alone.tempered(centre[:, i], 0.3, None, 30)
        assert relative(solved[:, i] - one, one) < 1e-8


def test_strength_is_the_largest_eigenvalue():
    truth = float(torch.linalg.eigvalsh(GIVEN.precision)[-1])
    assert GIVEN.problem.strength == pytest.approx(truth, rel=0.02)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_data_that_are_not_finite(value):
    encoding, maps, kspace = head_scan(16)
    kspace[1, 2, 3, 4:6] = value
    with pytest.raises(ValueError, match=rf"2 of {kspace.numel()} samples of k-space are not finite"):
        LinearProblem.of(LinearModel(encoding, maps), kspace)


def test_data_of_another_shape():
    encoding, maps, kspace = head_scan(16)
    with pytest.raises(ValueError, match=r"expected samples \[..., coil, shot, sample\] \[6, 8, 16\], got \[6, 8, 7\]"):
        LinearProblem.of(LinearModel(encoding, maps[0]), kspace[0, ..., :7])


def test_zero_data_have_no_unit():
    encoding, maps, kspace = head_scan(16)
    kspace[2] = 0
    problem = LinearProblem.of(LinearModel(encoding, maps), kspace)
    with pytest.raises(ValueError, match="zero or not finite cannot be scaled"):
        problem.scaled_for(Convention("percentile99", 0.01, 10.0))
