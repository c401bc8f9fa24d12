"""Samples and pixels of a scan on pixels of twice the size, against the signal by its definition."""

import math

import pytest
import torch

from recon_core.halved_grid import HalvedGrid

from analytic import complex_noise, direct_sum, grid_trajectory, relative, spiral_trajectory

N = 32


@pytest.mark.parametrize(("shape", "half"), [((32, 32), (16, 16)), ((33, 30), (17, 15)), ((34, 31), (17, 15))])
def test_the_samples_that_are_kept_are_the_signal_of_the_pixels_that_are_kept(shape, half):
    """Of an image that is zero in all other pixels."""
    ny, nx = shape
    trajectory = spiral_trajectory(1, 3, 401, turns=6).double() * torch.tensor(shape)[:, None, None]
    grid = HalvedGrid.of(trajectory, shape)
    y, x = grid.pixels
    image = torch.zeros(2, ny, nx, dtype=torch.complex128)
    image[:, y, x] = complex_noise(2, *half, dtype=torch.complex128)
    assert grid.shape == half
    assert image[0, y, x].shape == half
    signal = direct_sum(image[:, y, x], grid.trajectory) * math.sqrt(math.prod(half) / (ny * nx))
    assert relative(direct_sum(image, trajectory)[..., grid.readout] - signal, signal) < 1e-5
    numbers = torch.arange(ny * nx).view(shape)
    assert numbers[y, x][half[0] // 2, half[1] // 2] == numbers[ny // 2, nx // 2]
    # Half of k-space along either axis is what pixels of twice the size hold.
    inside = (trajectory.abs() < torch.tensor(shape)[:, None, None] / 4).all(0).all(0)
    kept = grid.readout.stop
    assert grid.readout.start == 0
    assert bool(inside[:kept].all())
    assert not bool(inside[kept])


def test_samples_before_a_readout_reaches_the_centre_are_left_out():
    """As where it spirals in and out again."""
    outwards = spiral_trajectory(N, 4, 200)
    trajectory = torch.cat([outwards.flip(-1), -outwards], -1)
    grid = HalvedGrid.of(trajectory, (N, N))
    assert grid.readout.start > 50
    assert grid.readout.stop < 350
    torch.testing.assert_close(grid.trajectory, trajectory[..., grid.readout])
    assert float(grid.trajectory.abs().max()) < N / 4


def test_lines_of_which_most_lie_beyond_have_no_such_grid():
    assert HalvedGrid.of(grid_trajectory((N, N)), (N, N)) is None
