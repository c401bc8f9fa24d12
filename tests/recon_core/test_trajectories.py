"""Trajectories: what Nyquist, the scanner's limits and the definitions ask for, measured on the samples."""

import math

import numpy as np
import pytest
import torch

from recon_core.trajectories import (
    SpiralDesign,
    archimedean_spiral,
    cartesian_lines,
    golden_angles,
    hargreaves,
    hargreaves_spiral,
    interleaf_angles,
    linear_angles,
    radial_spokes,
    slowed,
    turned,
    variable_density_spiral,
)

GAMMA_HZ_PER_T = 42.58e6


def design(**changes) -> SpiralDesign:
    settings = {"interleaves": 8, "fov": (0.22,), "radius": 64 / 0.22, "gradient": 30, "slew": 150, "dwell": 4e-6}
    return SpiralDesign(**{**settings, **changes})


def polar(shot: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Radius and unwrapped angle from x towards y, of `[2, sample]` with axes (y, x)."""
    y, x = shot.numpy()
    return np.hypot(y, x), np.unwrap(np.arctan2(y, x))


def turn_spacing(shot: torch.Tensor, interleaves: int, radius: float) -> float:
    """Radial distance between neighbouring turns of all interleaves, around a radius."""
    r, angle = polar(shot[:, 1:])
    at = np.argmin(abs(r - radius))
    later = np.interp(angle[at] + 2 * math.pi / interleaves, angle, r)
    return float(later - r[at])


@pytest.mark.parametrize(
    ("gradient", "slew", "fov", "interleaves"),
    [
        (20, 200, (0.22,), 1),
        (20, 200, (0.3, -3e-4), 8),
        (20, 200, (0.22,), 32),
        (80, 60, (0.3, -3e-4), 8),
        (80, 60, (0.22,), 8),
        (80, 60, (0.3, -3e-4), 32),
    ],
)
def test_hargreaves_spiral_keeps_the_limits_and_uses_them(interleaves, fov, gradient, slew):
    wanted = design(interleaves=interleaves, fov=fov, gradient=gradient, slew=slew, radius=150.0)
    k = hargreaves_spiral(wanted)
    gradients = k.diff(dim=-1) / wanted.dwell / GAMMA_HZ_PER_T * 1e3
    slews = (gradients.diff(dim=-1) / wanted.dwell * 1e-3).norm(dim=0)
    amplitudes = gradients.norm(dim=0)
    assert amplitudes.max() < 1.002 * gradient
    assert slews.max() < 1.01 * slew
    assert k.diff(dim=-1).norm(dim=0).max() < 1.002 / min(wanted.fov_at(0), wanted.fov_at(150))
    at_a_limit = (amplitudes[1:] > 0.98 * gradient) | (slews > 0.98 * slew)
    fov_there = torch.tensor([wanted.fov_at(r) for r in k.norm(dim=0)[2:].tolist()])
    along_readout = k.diff(dim=-1).norm(dim=0)[1:] * fov_there > 0.98
    assert (at_a_limit | along_readout).double().mean() > 0.98


@pytest.mark.parametrize("fov", [(0.22,), (0.3, -3e-4)])
def test_hargreaves_spiral_is_spaced_by_its_field_of_view(fov):
    wanted = design(fov=fov)
    k = hargreaves_spiral(wanted)
    for radius in (40.0, 150.0, 280.0):
        spacing = turn_spacing(k, wanted.interleaves, radius)
        nyquist = 1 / wanted.fov_at(radius + spacing / 2)
        assert spacing == pytest.approx(nyquist, rel=0.01)


def test_hargreaves_spiral_goes_from_the_centre_to_the_edge():
    k = hargreaves_spiral(design())
    step = (k[:, -1] - k[:, -2]).norm()
    assert (k[:, 0] == 0).all()
    assert design().radius - step < k[:, -1].norm() <= design().radius
    angle = polar(k[:, 1:])[1]
    assert (np.diff(angle) > 0).all()  # from x towards y
    assert angle[0] == pytest.approx(0, abs=0.05)


def test_slowed_spirals_are_the_same_curve_with_just_the_samples_asked_for():
    slow = slowed(design(), 3900)
    k, fast = hargreaves_spiral(slow), hargreaves_spiral(design())
    assert k.shape == (2, 3900)
    assert slow.gradient < design().gradient
    assert slow.slew < design().slew
    r_slow, angle_slow = polar(k[:, 20:])
    r_fast, angle_fast = polar(fast[:, 20:])
    inside = (r_slow > r_fast[0]) & (r_slow < r_fast[-1])
    # Far below a cycle per field of view, which is 1 / 0.22 m.
    assert abs(np.interp(angle_slow[inside], angle_fast, r_fast) - r_slow[inside]).max() < 0.02


@pytest.mark.parametrize("samples", [1900, 1901, 6789])
def test_slowed_spirals_have_any_number_of_samples(samples):
    assert hargreaves_spiral(slowed(design(slew=200), samples)).shape[1] == samples


def test_spirals_that_cannot_be_are_refused(monkeypatch):
    with pytest.raises(ValueError, match=r"takes \d+\.\d+ ms, got a readout of 1\.20 ms"):
        slowed(design(), 300)
    with pytest.raises(ValueError, match="positive slew, got 0"):
        design(slew=0)
    with pytest.raises(ValueError, match="positive up to the radius"):
        design(fov=(0.22, -1e-3))
    with pytest.raises(ValueError, match="field of view grows too fast"):
        hargreaves_spiral(design(fov=(0.05, *[0.0] * 15, 0.5 / 290**16), interleaves=32, slew=200, gradient=80))
    monkeypatch.setattr(hargreaves, "_MOST_SAMPLES", 1000)
    with pytest.raises(ValueError, match="at most 1000 samples"):
        hargreaves_spiral(design(radius=1e6))


def test_archimedean_spiral_has_one_cycle_between_turns_everywhere():
    spiral = archimedean_spiral(6, 4000, (96, 96))
    assert spiral.shape == (2, 6, 4000)
    assert spiral[:, 0, -1].norm() == pytest.approx(48)
    for radius in (10, 30, 45):
        assert turn_spacing(spiral[:, 0], 6, radius) == pytest.approx(1, rel=1e-3)


def test_variable_density_spiral_is_denser_in_the_middle_and_even_along_its_arc():
    spiral = variable_density_spiral(6, 8000, (96, 96), 2.0)[:, 0]
    for radius in (12, 24, 46):
        spacing = turn_spacing(spiral, 6, radius)
        assert spacing == pytest.approx(math.sqrt((radius + spacing / 2) / 48), rel=0.005)
    steps = spiral.diff(dim=-1).norm(dim=0)[100:]  # but for the tight turns at the very centre
    assert steps.max() < 1.01 * steps.min()
    with pytest.raises(ValueError, match=r"at least 1, got 0\.5"):
        variable_density_spiral(6, 100, (96, 96), 0.5)


def test_interleaves_share_the_circle_and_can_be_computed_one_by_one():
    spiral = archimedean_spiral(5, 300, (64, 64))
    for number in range(5):
        one = archimedean_spiral(5, 300, (64, 64), shots=torch.tensor([number]))
        torch.testing.assert_close(one[:, 0], spiral[:, number])
        complex_one = torch.complex(one[1, 0], one[0, 0])
        complex_first = torch.complex(spiral[1, 0], spiral[0, 0])
        torch.testing.assert_close(complex_one, complex_first * np.exp(-2j * math.pi * number / 5))


def test_turning_goes_from_x_to_y():
    along_x = torch.tensor([[0.0, 0.0], [1.0, 2.0]], dtype=torch.float64)
    quarter = turned(along_x, torch.tensor([math.pi / 2], dtype=torch.float64))
    torch.testing.assert_close(quarter[:, 0], torch.tensor([[1.0, 2.0], [0.0, 0.0]], dtype=torch.float64))
    assert interleaf_angles(4).tolist() == pytest.approx([0, -math.pi / 2, -math.pi, -3 * math.pi / 2])


def test_rectangular_matrices_reach_their_own_edges():
    extent = archimedean_spiral(4, 5000, (64, 128)).abs().amax(dim=(1, 2))
    np.testing.assert_allclose(extent, [32, 64], rtol=0.01)
    assert radial_spokes(linear_angles(2), 256, (64, 128))[:, :, 0].abs().amax(1).tolist() == pytest.approx([32, 64])


def test_angles_follow_their_definitions():
    assert torch.rad2deg(linear_angles(4)).tolist() == pytest.approx([0, 45, 90, 135])
    assert math.degrees(golden_angles(2)[1]) == pytest.approx(111.246117975)
    torch.testing.assert_close(golden_angles(3, first=1000), golden_angles(1003)[1000:])


def test_spokes_pass_through_the_centre_sample():
    spokes = radial_spokes(golden_angles(7), 129, (64, 64), centre_sample=40)
    assert (spokes[:, :, 40] == 0).all()
    torch.testing.assert_close(spokes.diff(dim=-1).norm(dim=0), torch.full((7, 128), 64 / 129, dtype=torch.float64))
    full = radial_spokes(linear_angles(1), 128, (64, 64))[:, 0]
    assert full[0].abs().max() == 0  # the angle 0 lies along x, the last axis
    assert (full[1, 0], full[1, 64]) == (-32, 0)


def test_cartesian_lines_are_the_frequencies_of_the_fft():
    steps = torch.arange(16) - 8
    y, x = cartesian_lines(steps[None], samples=20, centre_sample=10)
    frequencies = np.fft.fftshift(np.fft.fftfreq(20, 1 / 20))
    np.testing.assert_array_equal(x, np.broadcast_to(frequencies, (16, 20)))
    np.testing.assert_array_equal(y[:, 3], np.fft.fftshift(np.fft.fftfreq(16, 1 / 16)))


def test_cartesian_lines_take_two_phase_axes_and_oversampling():
    lines = cartesian_lines(torch.tensor([[1, 2], [3, 4]]), samples=4, centre_sample=2, spacing=0.5)
    assert lines.shape == (3, 2, 4)
    assert lines[:, 1, 0].tolist() == [2, 4, -1]
    with pytest.raises(ValueError, match=r"\[phase axis, line\], got the shape \(3,\)"):
        cartesian_lines(torch.arange(3), 4, 2)
