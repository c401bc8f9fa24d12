"""When points of k-space are visited, against trajectories of which that is known."""

import math

import pytest
import torch
from torch import Tensor

from recon_core.sample_times import visiting_times

from analytic import grid_trajectory, positions, spiral_trajectory

N, SAMPLES, BEGIN, DURATION = 32, 500, -0.001, 0.012


def distances(shape=(N, N)) -> Tensor:
    """Of the grid's points from the centre of k-space."""
    y, x = (n * positions(n) for n in shape)
    return torch.hypot(y[:, None], x[None, :])


def times_of(shots: int, samples: int = SAMPLES) -> Tensor:
    return (BEGIN + DURATION * torch.arange(samples).double() / samples).expand(shots, samples)


@pytest.mark.parametrize(("shots", "power"), [(4, 1.0), (4, 1.5), (8, 1.0)])
def test_a_spiral_visits_points_when_it_has_come_so_far_out(shots, power):
    """In the centre and at the edge, samples around a point are of one side only."""
    found = visiting_times(spiral_trajectory(N, shots, SAMPLES, power=power), times_of(shots), (N, N))
    k = distances()
    truth = BEGIN + DURATION * (k / (N / 2)) ** (1 / power)
    assert float((found - truth)[(k > 2) & (k < N / 2 - 1)].square().mean().sqrt()) < 0.01 * DURATION
    assert float((found - truth)[k < N / 2 - 1].abs().max()) < 0.1 * DURATION
    assert int(found.argmin()) == N // 2 * (N + 1)


def test_points_that_are_never_visited_take_the_time_of_the_nearest():
    """Beyond a spiral to half of k-space: all have about its last."""
    shots = 4
    trajectory = 0.5 * spiral_trajectory(N, shots, SAMPLES)
    found = visiting_times(trajectory, times_of(shots), (N, N))
    beyond = found[distances() > N / 4 + 2]
    assert float((beyond - (BEGIN + DURATION)).abs().max()) < 0.15 * DURATION
    assert bool(torch.isfinite(found).all())


@pytest.mark.parametrize("shape", [(12, 16), (11, 17)])
def test_lines_visit_their_points_one_after_the_other(shape):
    """The first and the last points are smoothed towards their neighbours on one side only."""
    times = torch.linspace(0, 0.01, shape[1]).expand(shape)
    found = visiting_times(grid_trajectory(shape), times, shape)
    torch.testing.assert_close(found[:, 3:-3], times[:, 3:-3], atol=1e-7, rtol=0)
    torch.testing.assert_close(found, times, atol=3e-4, rtol=0)


def test_a_point_between_two_visits_has_their_mean_time():
    trajectory = grid_trajectory((12, 12)).repeat(1, 1, 2)
    times = torch.cat([torch.full((12, 12), 0.002), torch.full((12, 12), 0.006)], -1)
    torch.testing.assert_close(visiting_times(trajectory, times, (12, 12)), torch.full((12, 12), 0.004))


def test_the_axes_are_y_and_x():
    """Two lines, one along each axis, the later one along x."""
    k = torch.linspace(-6, 5, 111)
    trajectory = torch.stack([torch.stack([k, 0 * k]), torch.stack([0 * k, k])], 1)
    times = torch.stack([torch.full((111,), 0.001), torch.full((111,), 0.002)])
    found = visiting_times(trajectory, times, (12, 14))
    assert float(found[1, 7]) == pytest.approx(0.001)
    assert float(found[6, 2]) == pytest.approx(0.002)


def test_precision_and_samples_outside_the_grid():
    """These count for nothing."""
    inside, times = grid_trajectory((8, 8)), torch.zeros(8, 8)
    trajectory = torch.cat([inside, torch.full((2, 8, 1), 30.0)], -1)
    found = visiting_times(trajectory, torch.cat([times, torch.ones(8, 1)], -1), (8, 8))
    assert found.dtype == times.dtype
    assert not found.any()
    assert math.isclose(float(visiting_times(inside, times.double() + 1, (8, 8)).mean()), 1)
