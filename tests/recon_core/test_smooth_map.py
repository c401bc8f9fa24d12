"""Smoothing against the dense solution and the transfer function."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import sparse
from scipy.sparse.linalg import spsolve

from recon_core.calibration.smooth_map import TENSION, smooth_map

WIDTH = 1.5


def grid(*shape):
    return torch.meshgrid(*[torch.arange(n, dtype=torch.float64) for n in shape], indexing="ij")


def minimum(values, weights, width) -> np.ndarray:
    """Of the stated sum, by its sparse normal equations."""
    shape = values.shape

    def along(axis, shape):
        """First differences along an axis of a flattened map."""
        first = sparse.diags([-1.0, 1.0], [0, 1], shape=(shape[axis] - 1, shape[axis]))
        before, after = (sparse.identity(math.prod(part)) for part in (shape[:axis], shape[axis + 1 :]))
        return sparse.kron(sparse.kron(before, first), after)

    weights = weights / weights[weights > 0].mean()
    matrix = sparse.diags(weights.ravel())
    for axis in (axis for axis, size in enumerate(shape) if size > 1):
        first = along(axis, shape)
        matrix += (TENSION * width) ** 2 * first.T @ first
        smaller = [n - (i == axis) for i, n in enumerate(shape)]
        for other in (other for other, size in enumerate(smaller) if size > 1):
            second = along(other, smaller) @ first
            matrix += width**4 * second.T @ second
    return spsolve(matrix.tocsc(), (weights * values).ravel()).reshape(shape)


@pytest.mark.parametrize("shape", [(9, 12), (4, 6, 5), (1, 7, 6)])
def test_it_is_the_minimum_of_the_stated_sum(shape):
    rng = np.random.default_rng(1)
    values, weights = rng.standard_normal(shape), rng.uniform(0, 2, shape) * (rng.uniform(size=shape) > 0.3)
    found = smooth_map(torch.from_numpy(values), torch.from_numpy(weights), WIDTH)
    np.testing.assert_allclose(found, minimum(values, weights, WIDTH), atol=1e-4)


@pytest.mark.parametrize("width", [1.0, 5.0, 20.0])
def test_so_it_is_far_from_the_signal(caplog, width):
    """Up to 40 pixels away, at values of up to 100 and more."""
    y, x = grid(96, 96)
    values, weights = 3 * x - 2 * y + 0.02 * x * y, (torch.hypot(x - 48, y - 48) < 30).double()
    found = smooth_map(values, weights, width)
    np.testing.assert_allclose(found, minimum(values.numpy(), weights.numpy(), width), atol=0.3)
    assert not caplog.records


def test_the_log_says_when_it_is_not_the_minimum(caplog, monkeypatch):
    monkeypatch.setattr("recon_core.calibration.smooth_map.ITERATIONS", 3)
    y, x = grid(32, 32)
    smooth_map(x, (torch.hypot(x - 16, y - 16) < 8).double(), 1.0)
    assert "a smooth map is not the best one" in caplog.text


@pytest.mark.parametrize("factor", [0.25, 1.0, 4.0])
def test_a_wave_shrinks_by_the_transfer_function(factor):
    n, width = 256, 4.0
    k = 2 * math.pi * round(factor / width * n / math.pi / 2) / n
    _, x = grid(16, n)
    wave = torch.cos(k * (x + 0.5))  # even about both ends, as the penalty sees the image
    found = smooth_map(wave, torch.ones_like(wave), width)
    sine = 2 * math.sin(k / 2)
    expected = 1 / (1 + (sine * width) ** 4 + (TENSION * sine * width) ** 2)
    inner = slice(n // 4, -n // 4)
    torch.testing.assert_close(found[8, inner], expected * wave[8, inner], atol=5e-3, rtol=0)


def test_a_slope_is_kept_up_to_the_edge_of_the_signal_and_beyond():
    y, x = grid(48, 64)
    ramp = 3 * x - 2 * y
    inside = torch.hypot(x - 32, y - 24) < 15
    found = smooth_map(torch.where(inside, ramp, 1e4), inside.double(), 2.0)
    assert (found - ramp)[inside].abs().max() < 1
    near = (torch.hypot(x - 32, y - 24) < 18) & ~inside
    assert (found - ramp)[near].abs().max() < 4
    assert found.abs().max() < 3 * ramp[inside].abs().max()


def test_neither_the_scale_of_the_weights_nor_an_offset_matters():
    y, x = grid(20, 20)
    values, weights = torch.sin(x / 3) + torch.cos(y / 2), 1 + torch.sin(x) ** 2
    plain = smooth_map(values, weights, 1.0)
    torch.testing.assert_close(smooth_map(values, 1e-9 * weights, 1.0), plain, atol=1e-5, rtol=0)
    torch.testing.assert_close(smooth_map(values + 500, weights, 1.0) - 500, plain, atol=1e-3, rtol=0)


def test_noise_falls():
    noise = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    assert smooth_map(noise, torch.ones(64, 64), 2.0).std() < 0.2


def test_values_without_weight_may_be_anything():
    values = torch.full((8, 8), torch.nan)
    values[2:5, 2:5] = 7.0
    torch.testing.assert_close(smooth_map(values, (~values.isnan()).float(), 1.0), torch.full((8, 8), 7.0))
    assert not smooth_map(values, torch.zeros(8, 8), 1.0).any()


@pytest.mark.parametrize(("weight", "width", "message"), [
    (1.0, 0.0, "a width above 0 pixels, got 0"), (-1.0, 1.0, "weights of at least 0"), (math.inf, 1.0, "not finite"),
])  # fmt: skip
def test_mistakes(weight, width, message):
    with pytest.raises(ValueError, match=message):
        smooth_map(torch.ones(8, 8), torch.full((8, 8), weight), width)
