import math

import pytest
import torch
from scipy.optimize import minimize

from benchmarks.priors.joint_tv import joint_tv
from recon_core.metrics import psnr
from recon_core.operators.encoding import Encoding
from recon_core.operators.linear_model import LinearModel
from recon_core.operators.sampling import sampling_operator
from recon_core.solvers.cg_sense import cg_sense
from recon_core.solvers.linear_problem import LinearProblem
from recon_core.solvers.run import Run
from recon_core.solvers.total_variation import total_variation

from analytic import complex_noise, grid_trajectory, relative, ring_of_coils, spiral_trajectory
from gaussian_problem import Gaussian, Scan, scan, smooth

RUN = Run(torch.Generator())


def blocks(n: int) -> torch.Tensor:
    """Piecewise constant, complex128 `[n, n]`."""
    image = torch.zeros(n, n, dtype=torch.complex128)
    image[n // 8 : -n // 8, n // 6 : -n // 6] = 1
    image[n // 4 : n // 2, n // 4 : n // 2] = 0.4j
    image[5 * n // 8 : 3 * n // 4, n // 3 : 2 * n // 3] = 0.6 - 0.5j
    return image


def measured(image: torch.Tensor, trajectory: torch.Tensor, noise: float, coils: int = 8) -> LinearProblem:
    """With the noise level of the samples relative to the image, in double precision on a grid."""
    n = len(image)
    maps = ring_of_coils(n, coils).to(image.dtype)
    model = LinearModel(Encoding(sampling_operator(trajectory, (n, n))), maps)
    kspace = model.forward(image / noise)
    return LinearProblem.of(model, kspace + complex_noise(*kspace.shape, seed=3, dtype=image.dtype))


def exact_noise_level(given: Scan) -> float:
    diagonal = given.precision.diagonal().real
    return float((2 * diagonal.square().sum() / diagonal.sum()).rsqrt())


def objective(given: Scan, image: torch.Tensor, weight: float, edge: float) -> torch.Tensor:
    """By its definition: over the samples and over pairs of neighbours."""
    sigma = exact_noise_level(given)
    differences = torch.zeros(2, *image.shape, dtype=image.dtype)
    differences[0, :-1] = image[1:] - image[:-1]
    differences[1, :, :-1] = image[:, 1:] - image[:, :-1]
    roots = (differences.abs().square().sum(0) + (edge * sigma) ** 2).sqrt()
    return (given.matrix @ image.flatten() - given.kspace).abs().square().sum() + weight / sigma * roots.sum()


def gradient(given: Scan, image: torch.Tensor, weight: float, edge: float) -> torch.Tensor:
    variable = image.clone().requires_grad_()
    objective(given, variable, weight, edge).backward()
    return variable.grad


def by_quasi_newton(given: Scan, shape: torch.Size, weight: float, edge: float) -> torch.Tensor:
    """scipy's L-BFGS on the real and imaginary parts."""

    def image_of(parts) -> torch.Tensor:
        return torch.view_as_complex(torch.from_numpy(parts).view(*shape, 2))

    def value_and_slope(parts):
        image = image_of(parts)
        slope = torch.view_as_real(gradient(given, image, weight, edge))
        return float(objective(given, image, weight, edge)), slope.numpy().ravel()

    start = torch.zeros(2 * math.prod(shape), dtype=torch.float64).numpy()
    options = {"maxiter": 5000, "maxfun": 10000, "maxcor": 50, "ftol": 1e-15, "gtol": 1e-7}
    return image_of(minimize(value_and_slope, start, jac=True, method="L-BFGS-B", options=options).x)


@pytest.mark.parametrize(("weight", "edge"), [(0.5, 0.1), (2.0, 0.3)])
def test_ends_where_the_objective_is_least(weight, edge):
    given = scan(Gaussian(smooth()).draw())
    found = total_variation(given.problem, RUN, weight=weight, edge=edge, iterations=400)
    at_start = gradient(given, torch.zeros_like(found.image), weight, edge)
    assert relative(gradient(given, found.image, weight, edge), at_start) < 1e-6
    truth = by_quasi_newton(given, found.image.shape, weight, edge)
    assert relative(found.image - truth, truth) < 1e-5
    assert (found.deviation, found.steps, found.planned) == (None, 400, 400)


def test_objective_never_rises():
    given, images = scan(Gaussian(smooth()).draw()), []
    for steps in range(1, 40, 3):
        images.append(total_variation(given.problem, RUN, weight=1.0, edge=0.1, iterations=steps).image)
    values = torch.stack([objective(given, image, 1.0, 0.1) for image in images])
    assert (values.diff() <= 1e-12 * values[0]).all()


def test_default_comes_close_to_the_minimum():
    clean, noise = blocks(32), 0.05
    problem = measured(clean, grid_trajectory((32, 32))[:, ::4], noise)
    found, limit = (noise * total_variation(problem, RUN, iterations=n).image for n in (60, 300))
    assert relative(found - limit, limit - clean) < 0.1


def test_denoises_like_the_dual_of_total_variation():
    """One coil that sees all and all of k-space: A is the Fourier transform, sigma is sqrt(1/2)."""
    n, weight = 32, 1.5
    clean = 20 * blocks(n)
    model = LinearModel(
        Encoding(sampling_operator(grid_trajectory((n, n)), (n, n))), torch.ones(1, n, n, dtype=torch.complex128)
    )
    kspace = model.forward(clean) + complex_noise(1, n, n, seed=1, dtype=torch.complex128)
    problem = LinearProblem.of(model, kspace)
    found = total_variation(problem, RUN, weight=weight, edge=0.01, iterations=300).image
    truth = joint_tv(model.adjoint(kspace), weight / 2 / math.sqrt(0.5), iterations=500)
    assert relative(found - truth, truth) < 1e-3
    assert relative(found - clean, clean) < 0.5 * relative(model.adjoint(kspace) - clean, clean)


TRAJECTORIES = {
    "every fourth line": grid_trajectory((64, 64))[:, ::4],
    "a third of a spiral": spiral_trajectory(64, 18, 400)[:, ::3],
}


@pytest.mark.parametrize("name", TRAJECTORIES)
def test_recovers_a_piecewise_constant_image_better_than_cg_sense(name):
    image, noise = blocks(64).to(torch.complex64), 0.05
    problem = measured(image, TRAJECTORIES[name], noise)
    found = noise * total_variation(problem, RUN).image
    model = problem.model
    kspace = model.forward(image / noise)
    kspace = kspace + complex_noise(*kspace.shape, seed=3)
    least_squares = max(
        psnr(noise * cg_sense(model, kspace, damping, 30).image, image) for damping in (0.0, 1e-3, 1e-2, 1e-1)
    )
    assert psnr(found, image) > least_squares + 3


def test_no_weight_gives_least_squares():
    given = scan(Gaussian(smooth()).draw(), every=1)
    found = total_variation(given.problem, RUN, weight=0.0, iterations=200).image
    truth = torch.linalg.solve(given.precision, given.matrix.mH @ given.kspace).view(found.shape)
    assert relative(found - truth, truth) < 1e-6


def test_same_image_in_any_unit():
    problem = measured(blocks(32), grid_trajectory((32, 32))[:, ::2], 0.05)
    once = total_variation(problem, RUN).image
    scaled = LinearProblem(problem.model, problem.data, problem.energy, torch.full_like(problem.energy, 50.0))
    assert relative(50 * total_variation(scaled, RUN).image - once, once) < 1e-6


def test_slices_know_nothing_of_one_another():
    n = 24
    maps = torch.stack([ring_of_coils(n, 4), 3 * ring_of_coils(n, 4).flip(-1), torch.zeros(4, n, n)])
    encoding = Encoding(sampling_operator(grid_trajectory((n, n))[:, ::2], (n, n)))
    model = LinearModel(encoding, maps)
    kspace = model.forward(30 * torch.stack([blocks(n), blocks(n).T, blocks(n)]))
    kspace = kspace + complex_noise(*kspace.shape, dtype=kspace.dtype)
    together = total_variation(LinearProblem.of(model, kspace), RUN).image
    for image, one, samples in zip(together[:2], maps, kspace, strict=False):
        alone = total_variation(LinearProblem.of(LinearModel(encoding, one), samples), RUN).image
        assert relative(image - alone, alone) < 1e-6
    assert together[2].abs().max() == 0


def test_no_signal_gives_no_image():
    model = measured(blocks(16), grid_trajectory((16, 16)), 0.05).model
    found = total_variation(LinearProblem.of(model, torch.zeros(8, 16, 16, dtype=torch.complex128)), RUN).image
    assert found.abs().max() == 0


def test_stops_when_told():
    problem = measured(blocks(16), grid_trajectory((16, 16))[:, ::2], 0.05)
    asked = []

    def go_on(done: int, planned: int) -> bool:
        asked.append((done, planned))
        return done < 7

    found = total_variation(problem, Run(torch.Generator(), go_on=go_on), iterations=20)
    assert asked == [(i, 20) for i in range(8)]
    assert (found.steps, found.planned) == (7, 20)
    torch.testing.assert_close(found.image, total_variation(problem, RUN, iterations=7).image)


@pytest.mark.parametrize(
    "setting", [{"weight": -1.0}, {"weight": math.nan}, {"weight": math.inf}, {"edge": 0.0}, {"iterations": 0}]
)
def test_settings_without_a_meaning(setting):
    problem = measured(blocks(16), grid_trajectory((16, 16)), 0.05)
    with pytest.raises(ValueError, match="expected a weight of at least 0, an edge above 0 and at least one iteration"):
        total_variation(problem, RUN, **setting)
