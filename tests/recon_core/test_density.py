import math

import pytest
import torch

from recon_core.density import pipe_menon
from recon_core.operators.sampling import sampling_operator

from analytic import (
    direct_sum,
    grid_trajectory,
    radial_trajectory,
    random_trajectory,
    relative,
    smooth_head,
    spiral_trajectory,
)

N = 48
FULLY_SAMPLED = {
    "radial": radial_trajectory(N, 80, 2 * N),
    "spiral": spiral_trajectory(N, 16, 300),
    # A single interleaf is one-sided and needs finer turns.
    "one interleaf": spiral_trajectory(N, 1, 8000, turns=36),
    "dense centre": spiral_trajectory(N, 16, 500, turns=4, power=1.4),
    "repeated": torch.cat([radial_trajectory(N, 80, 2 * N)] * 2 + [radial_trajectory(N, 80, 2 * N)[:, ::4]], 1),
}


@pytest.mark.parametrize("name", FULLY_SAMPLED)
def test_weighted_adjoint_is_the_image_at_its_scale(name):
    sampling = sampling_operator(FULLY_SAMPLED[name], (N, N))
    image = smooth_head(N)
    samples = direct_sum(image, sampling.trajectory).to(torch.complex64)
    assert relative(sampling.adjoint(pipe_menon(sampling) * samples) - image, image) < 0.02


def test_weights_of_a_grid_are_one_over_the_multiplicity():
    grid = grid_trajectory((7, 10))
    trajectory = torch.cat([grid, grid[:, ::2], grid[:, ::2]], 1)
    weights = pipe_menon(sampling_operator(trajectory, (7, 10)))
    truth = torch.ones(7, 10)
    truth[::2] = 1 / 3
    torch.testing.assert_close(weights[:7], truth)
    torch.testing.assert_close(weights[7:], torch.full_like(weights[7:], 1 / 3))


@pytest.mark.parametrize("k", [0.0, 2.4])
def test_equal_points_share_one_weight(k):
    weights = pipe_menon(sampling_operator(torch.full((2, 3, 4), k), (8, 9)))
    torch.testing.assert_close(weights, torch.full((3, 4), 1 / 12), rtol=1e-4, atol=0)


def test_fixed_point_minimises_the_distance_from_the_identity():
    """Against the optimality conditions of min ||A^H diag(w) A - 1|| over w >= 0, set up with explicit matrices."""
    shape = (6, 5)
    sampling = sampling_operator(random_trajectory(shape, 1, 25), shape)
    rows = sampling.forward(torch.eye(30, dtype=torch.complex64).view(30, *shape))[:, 0].T
    psi = (rows @ rows.mH).abs().square()
    weights = pipe_menon(sampling, iterations=100)[0]
    gradient = psi @ weights - 1
    assert gradient.min() > -2e-3
    assert (weights * gradient).abs().max() < 2e-3


@pytest.mark.parametrize("shape", [(6, 5), (5, 6), (1, 7), (3, 4, 5), (4, 3, 3)])
def test_one_iteration_divides_by_the_correlation_of_rows(shape):
    trajectory = random_trajectory(shape, 2, 20)
    pixels = math.prod(shape)
    rows = direct_sum(torch.eye(pixels).view(pixels, *shape), trajectory).flatten(1).T
    psi = (rows @ rows.mH).abs().square()
    weights = 1 / psi.sum(1)
    truth = weights * weights.sum() / (weights @ psi @ weights)
    torch.testing.assert_close(
        pipe_menon(sampling_operator(trajectory, shape), 1).flatten(), truth.float(), rtol=1e-4, atol=0
    )


def test_three_dimensions():
    shape = (4, 6, 5)
    weights = pipe_menon(sampling_operator(torch.cat([grid_trajectory(shape)] * 2, 2), shape))
    torch.testing.assert_close(weights, torch.full_like(weights, 0.5))


def test_weights_are_positive_and_as_precise_as_the_trajectory():
    trajectory = random_trajectory((12, 12), 5, 100)
    for dtype in (torch.float32, torch.float64):
        weights = pipe_menon(sampling_operator(trajectory.to(dtype), (12, 12)))
        assert weights.dtype == dtype and weights.shape == (5, 100)
        assert (weights > 0).all() and torch.isfinite(weights).all()
