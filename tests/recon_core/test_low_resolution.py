import math

import pytest
import torch

from pipelines.simulated_readouts import spiral
from recon_core.calibration.low_resolution import NotFullySampledError, OffResonance, calibration_kspace
from recon_core.simulation import exact_signal

from analytic import (
    complex_noise,
    direct_sum,
    grid_trajectory,
    positions,
    radial_trajectory,
    relative,
    ring_of_coils,
    smooth_head,
    spiral_trajectory,
)

N = 64
# With the error that is left at the edge of the region, where the signal is weak.
OFF_GRID = {
    "radial": (radial_trajectory(N, 110, 2 * N), 0.02),
    "radial, centre only fully sampled": (radial_trajectory(N, 44, 2 * N), 0.03),
    "spiral at the Nyquist limit": (spiral_trajectory(N, 16, 500), 0.08),
    "one interleaf": (spiral_trajectory(N, 1, 9000, turns=36), 0.03),
    "dense centre": (spiral_trajectory(N, 16, 700, turns=4, power=1.5), 0.02),
}


@pytest.mark.parametrize("shape", [(12, 10), (9, 11), (6, 8, 7)])
@pytest.mark.parametrize("size", [4, 5])
def test_samples_on_the_grid_are_taken_as_they_are(shape, size):
    trajectory = grid_trajectory(shape)
    kspace = complex_noise(2, *trajectory.shape[1:])
    centre = calibration_kspace(kspace, trajectory, [size] * len(shape))
    truth = kspace.reshape(2, *shape)
    for axis, n in enumerate(shape, start=1):
        truth = truth.narrow(axis, n // 2 - size // 2, size)
    torch.testing.assert_close(centre, truth)


def test_repeated_samples_are_averaged():
    trajectory = grid_trajectory((8, 8))
    kspace = complex_noise(1, 3, 8, 8)
    centre = calibration_kspace(kspace.flatten(1, 2), torch.cat([trajectory] * 3, 1), (6, 6))
    torch.testing.assert_close(centre, kspace.mean(1)[:, 1:7, 1:7])


@pytest.mark.parametrize("name", OFF_GRID)
def test_other_trajectories_give_what_the_grid_would(name):
    images = ring_of_coils(N, 4) * smooth_head(N)
    grid = grid_trajectory((24, 24))
    truth = direct_sum(images, grid)
    trajectory, edge_error = OFF_GRID[name]
    kspace = direct_sum(images, trajectory).to(torch.complex64)
    error = calibration_kspace(kspace, trajectory, (24, 24)) - truth
    assert relative(error, truth) < 0.003
    edge = grid.abs().amax(0) >= 11
    assert relative(error[:, edge], truth[:, edge]) < edge_error


@pytest.mark.parametrize("every", [1, 2])
def test_known_off_resonance_is_taken_out(every):
    """The field from -300 to 260 Hz, on the grid of the image or on a coarser one, blurs also the early samples."""
    images, maps = smooth_head(N), ring_of_coils(N, 4)
    y, x = torch.meshgrid(positions(N), positions(N), indexing="ij")
    field_hz = 80 * (2 * x + 6 * (y**2 - x**2) + 20 * x * y**2 - 0.2)
    trajectory, _ = OFF_GRID["dense centre"]
    times = torch.linspace(-0.001, 0.012, trajectory.shape[-1]).expand(trajectory.shape[1:])
    kspace = exact_signal(images, maps, field_hz, trajectory.double(), times[0].double()).to(torch.complex64)
    truth = direct_sum(maps * images, grid_trajectory((24, 24))).reshape(4, 24, 24)

    def error(off_resonance: OffResonance | None) -> float:
        return relative(calibration_kspace(kspace, trajectory, (24, 24), off_resonance) - truth, truth)

    without, known = error(None), error(OffResonance(times, field_hz[::every, ::every].float()))
    assert without > 0.2
    assert known < 0.005


def test_three_dimensions_off_the_grid():
    trajectory = grid_trajectory((12, 12, 12)) / 1.5
    images = smooth_head(12)[None, :, :, None] * torch.hann_window(12)
    truth = direct_sum(images, grid_trajectory((4, 4, 4))).reshape(1, 4, 4, 4)
    centre = calibration_kspace(direct_sum(images, trajectory).to(torch.complex64), trajectory, (4, 4, 4))
    assert relative(centre - truth, truth) < 0.005


def test_missing_grid_points_are_counted():
    trajectory = grid_trajectory((16, 16))
    without_two_lines = torch.cat([trajectory[:, :6], trajectory[:, 8:]], 1)
    with pytest.raises(ValueError, match="central 8 x 8 points .* 25.0 % of them have no sample"):
        calibration_kspace(complex_noise(1, 14, 16), without_two_lines, (8, 8))


@pytest.mark.parametrize("trajectory", [radial_trajectory(N, 12, 100), spiral_trajectory(N, 4, 500, turns=3)])
def test_gaps_off_the_grid_are_refused(trajectory):
    with pytest.raises(ValueError, match="central 24 x 24 points of k-space are not fully sampled"):
        calibration_kspace(complex_noise(1, *trajectory.shape[1:]), trajectory, (24, 24))


def test_samples_that_do_not_reach_the_region():
    trajectory = spiral_trajectory(16, 8, 300)
    with pytest.raises(ValueError, match="not fully sampled"):
        calibration_kspace(complex_noise(1, 8, 300), trajectory, (24, 24))
    with pytest.raises(ValueError, match="100.0 % of them"):
        calibration_kspace(complex_noise(1, 8, 300), trajectory + 100, (24, 24))


@pytest.mark.parametrize(
    ("kspace", "trajectory", "size", "message"),
    [
        (torch.zeros(2, 3, 4), torch.zeros(3, 3, 4), (4, 4), r"trajectory \[axis, shot, sample\] for \(4, 4\)"),
        (torch.zeros(2, 3, 5), torch.zeros(2, 3, 4), (4, 4), r"k-space \['coil', 3, 4\] .* got \[2, 3, 5\]"),
        (torch.zeros(2, 3, 4), torch.full((2, 3, 4), math.nan), (4, 4), "not finite"),
    ],
)
def test_refusals(kspace, trajectory, size, message):
    with pytest.raises(ValueError, match=message):
        calibration_kspace(kspace, trajectory, size)


def test_an_accelerated_spiral_is_used_as_far_as_it_is_dense():
    """Turns lie apart by 1.29 cycles per field of view at a radius of 6, by 1.7 at 12."""
    trajectory = spiral((128, 128), (0.24, 0.24), 18, 9, 15.6, 4e-6).trajectory
    kspace = torch.zeros(1, *trajectory.shape[1:], dtype=torch.complex128)
    assert calibration_kspace(kspace, trajectory, (12, 12)).shape == (1, 12, 12)
    with pytest.raises(NotFullySampledError, match="24 x 24 points of k-space are not fully sampled"):
        calibration_kspace(kspace, trajectory, (24, 24))
