"""Noise of a receive array, and smooth random functions: their statistics."""

import numpy as np
import pytest
import torch

from recon_core.simulation import coil_covariance, coil_maps, correlated_noise
from recon_core.simulation.smooth_noise import smooth_noise


def covariance(coils=6) -> torch.Tensor:
    axis = (torch.arange(24, dtype=torch.float64) - 12) * 0.22 / 24
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    maps = coil_maps(coils, torch.stack([x, y, torch.zeros_like(x)], dim=-1))
    return coil_covariance(maps[None], (torch.hypot(x, y) < 0.09)[None])


def test_covariance_is_a_covariance_with_mean_variance_one():
    psi = covariance()
    torch.testing.assert_close(psi, psi.mH)
    assert psi.diagonal().real.mean() == pytest.approx(1)
    assert torch.linalg.eigvalsh(psi).min() > 0.7


def test_neighbours_share_more_noise_than_coils_that_face_each_other():
    correlation = covariance().abs()
    for coil in range(6):
        assert correlation[coil, (coil + 1) % 6] > correlation[coil, (coil + 3) % 6]
        assert 0.05 < correlation[coil, (coil + 1) % 6] < 0.4


def test_an_empty_body_is_refused():
    with pytest.raises(ValueError, match="got an empty one"):
        coil_covariance(torch.ones(1, 2, 4, 4, dtype=torch.complex64), torch.zeros(1, 4, 4, dtype=torch.bool))


def test_noise_has_the_covariance_asked_for():
    psi = 4 * covariance()
    count = 100_000
    noise = correlated_noise(psi, (100, count // 100), torch.Generator().manual_seed(0)).flatten(1).to(torch.complex128)
    scale = 4 / np.sqrt(count)  # standard error of an element
    assert (noise @ noise.mH / count - psi).abs().max() < 5 * scale
    assert (noise @ noise.mT / count).abs().max() < 6 * scale  # circular: no preferred phase
    assert noise.mean(1).abs().max() < 5 * 2 / np.sqrt(count)


def test_smooth_noise_is_standard_normal_and_smooth():
    axis = torch.arange(200, dtype=torch.float64)
    points = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), dim=-1)
    values = torch.stack([smooth_noise(points, 20, torch.Generator().manual_seed(s)) for s in range(8)])
    assert abs(values.mean()) < 0.05
    assert values.var() == pytest.approx(1, abs=0.15)
    assert 2.4 < (values**4).mean() / values.var() ** 2 < 3.6
    # A wave of length 20 has a slope of 2 pi / 20; random directions share it over two axes.
    slope = values.diff(dim=1).square().mean().sqrt() * 20 / (2 * np.pi)
    assert slope == pytest.approx(np.sqrt(0.5), rel=0.15)


def test_smooth_noise_does_not_depend_on_the_grid():
    points = torch.rand(50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole = smooth_noise(points, 0.3, torch.Generator().manual_seed(1))
    part = smooth_noise(points[10:20], 0.3, torch.Generator().manual_seed(1))
    torch.testing.assert_close(part, whole[10:20])
