import pytest
import torch

from recon_core.operators.encoding import Encoding
from recon_core.operators.linear_model import LinearModel
from recon_core.operators.sampling import sampling_operator
from recon_core.solvers.cg_sense import cg_sense

from analytic import (
    complex_noise,
    direct_sum,
    grid_trajectory,
    radial_trajectory,
    random_trajectory,
    relative,
    ring_of_coils,
    smooth_head,
    spiral_trajectory,
)

N = 48
UNDERSAMPLED = {
    "every other line": grid_trajectory((N, N))[:, ::2],
    "half of a spiral": spiral_trajectory(N, 16, 300)[:, ::2],
    "few spokes": radial_trajectory(N, 30, 2 * N),
}


@pytest.mark.parametrize("name", UNDERSAMPLED)
def test_finds_the_image_of_undersampled_data(name):
    maps, image = ring_of_coils(N, 8), smooth_head(N)
    trajectory = UNDERSAMPLED[name]
    model = LinearModel(Encoding(sampling_operator(trajectory, (N, N))), maps.to(torch.complex64))
    kspace = direct_sum(maps * image, trajectory).to(torch.complex64)
    result = cg_sense(model, kspace, regularisation=1e-5, iterations=80, tolerance=1e-5)
    assert relative(result.image - image, image) < 0.02
    assert result.residuals[-1] < result.residuals[0]


@pytest.mark.parametrize("regularisation", [0.0, 0.05])
def test_agrees_with_the_dense_solution(regularisation):
    shape = (6, 7)
    model = LinearModel(Encoding(sampling_operator(random_trajectory(shape), shape)), complex_noise(3, *shape, seed=5))
    matrix = model.normal(torch.eye(42, dtype=torch.complex64).view(42, *shape)).flatten(1).T
    damped = matrix + regularisation * torch.linalg.eigvalsh(matrix)[-1] * torch.eye(42)
    kspace = complex_noise(3, 3, 50, seed=6)
    truth = torch.linalg.solve(damped, model.adjoint(kspace).flatten()).view(shape)
    result = cg_sense(model, kspace, regularisation, iterations=200, tolerance=1e-6)
    assert relative(result.image - truth, truth) < 5e-3


def test_regularisation_means_the_same_at_any_scale_of_the_model():
    shape = (8, 8)
    sampling, maps = sampling_operator(random_trajectory(shape), shape), complex_noise(3, *shape, seed=5)
    kspace = complex_noise(3, 3, 50, seed=6)
    once = cg_sense(LinearModel(Encoding(sampling), maps), kspace, 0.1, 100, 1e-6).image
    again = cg_sense(LinearModel(Encoding(sampling), 10 * maps), kspace, 0.1, 100, 1e-6).image
    assert relative(10 * again - once, once) < 1e-4


def test_same_data_same_image():
    shape = (8, 8)
    model = LinearModel(Encoding(sampling_operator(random_trajectory(shape), shape)), complex_noise(3, *shape, seed=5))
    kspace = complex_noise(3, 3, 50, seed=6)
    first, second = (cg_sense(model, kspace, 0.1, 10, 0.0).image for _ in range(2))
    assert torch.equal(first, second)


def test_refusals():
    model = LinearModel(Encoding(sampling_operator(grid_trajectory((4, 4)), (4, 4))), complex_noise(2, 4, 4))
    with pytest.raises(ValueError, match="regularisation of at least 0, got -1"):
        cg_sense(model, complex_noise(2, 4, 4), -1, 5)
    with pytest.raises(ValueError, match="not finite"):
        cg_sense(model, torch.full((2, 4, 4), torch.nan, dtype=torch.complex64), 0.1, 5)
