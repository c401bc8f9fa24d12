"""Bringing somebody's slices onto the simulated grid."""

import math

import pytest
import torch

from recon_core.object_mask import dilated, object_mask
from recon_core.simulation import fitted, smooth_phase


def disc(n=100, radius=40) -> torch.Tensor:
    axis = torch.arange(n, dtype=torch.float64) - n // 2
    return (torch.hypot(axis[:, None], axis) < radius).double()[None]


@pytest.mark.parametrize("matrix", [(50, 50), (64, 96), (200, 150)])
def test_a_disc_stays_a_disc_in_the_middle(matrix):
    result = fitted(disc(), (1, 1), matrix)[0]
    assert result.shape == matrix
    rows, columns = (result.sum(axis) for axis in (1, 0))
    scale = min(matrix) / 100
    assert result.sum() == pytest.approx(math.pi * (40 * scale) ** 2, rel=0.02)
    assert (rows > 0.5).sum() == pytest.approx(80 * scale, abs=2)
    assert (columns > 0.5).sum() == pytest.approx(80 * scale, abs=2)


def test_pixels_that_are_not_square_are_made_so():
    squeezed = disc()[:, ::2]  # rows of twice the height
    result = fitted(squeezed, (2.0, 1.0), (100, 100))[0]
    assert (result[50] > 0.5).sum() == pytest.approx((result[:, 50] > 0.5).sum(), abs=2)


def test_the_mask_is_everything_inside_the_outline():
    ring = disc() - disc(radius=25)
    noise = 0.02 * torch.rand(1, 100, 100, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert (object_mask(ring + noise) ^ disc().bool()).sum() < 10


def test_the_phase_is_smooth_and_as_strong_as_asked():
    axis = torch.linspace(-0.11, 0.11, 64, dtype=torch.float64)
    positions = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), dim=-1)
    for radians in (0.3, 0.6):
        phases = [smooth_phase(positions, torch.Generator().manual_seed(s), radians) for s in range(12)]
        torch.testing.assert_close(phases[0].abs(), torch.ones(64, 64))
        steps = torch.stack([(p[1:] * p[:-1].conj()).angle() for p in phases])
        assert steps.abs().max() < 0.2
        spread = torch.stack([(p * p.mean().conj()).angle().std() for p in phases])
        assert 0.4 * radians < spread.mean() < 1.1 * radians


def test_a_dilated_mask_is_wider_by_the_radius_of_each_axis_rounded_up():
    mask = torch.zeros(9, 11, dtype=torch.bool)
    mask[4, 5] = True
    expected = torch.zeros_like(mask)
    expected[3:6, 3:8] = True
    assert torch.equal(dilated(mask, [0.6, 2.0]), expected)
