"""Unwrapping of phases that are known without wraps."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from recon_core.calibration.phase_unwrapping import unwrapped

from analytic import complex_noise

SHAPE = (40, 50)
Y, X = torch.meshgrid(*[torch.arange(n, dtype=torch.float64) - n // 2 for n in SHAPE], indexing="ij")
EVERYWHERE = torch.ones(SHAPE, dtype=torch.bool)


def wrapped(phase):
    return torch.polar(torch.ones_like(phase), phase).angle()


def turns(found, truth, where):
    """The difference in whole turns, which must be the same everywhere in `where`."""
    difference = (found - truth)[where] / (2 * math.pi)
    assert (difference - difference[0].round()).abs().max() < 1e-6
    return difference[0].round()


@pytest.mark.parametrize("truth", [0.9 * X - 0.7 * Y, 0.02 * X * Y, 12 * torch.exp(-(X**2 + Y**2) / 100)])
def test_ramps_and_hills_of_many_turns_come_back(truth):
    found, regions = unwrapped(wrapped(truth), torch.ones(SHAPE), EVERYWHERE)
    turns(found, truth, EVERYWHERE)
    assert torch.all(regions == 1)


def test_three_axes():
    z, y, x = torch.meshgrid(*[torch.arange(n, dtype=torch.float64) for n in (6, 12, 14)], indexing="ij")
    truth = 1.5 * z + 0.8 * y - 1.1 * x
    found, _ = unwrapped(wrapped(truth), torch.ones(truth.shape), torch.ones(truth.shape, dtype=torch.bool))
    turns(found, truth, torch.ones(truth.shape, dtype=torch.bool))


def test_dim_pixels_of_random_phase_are_walked_around():
    """A row-by-row sum would carry the noise of the wall, which reaches over half of the image, beyond it."""
    wall = (X.abs() < 3) & (Y < 10)
    noise = complex_noise(*SHAPE, dtype=torch.complex128).angle()
    truth = 0.4 * X + 0.3 * Y
    found, _ = unwrapped(torch.where(wall, noise, wrapped(truth)), torch.where(wall, 0.05, 1.0), EVERYWHERE)
    turns(found, truth, ~wall)


def test_noise_moves_no_pixel_by_a_turn():
    truth = 0.8 * X - 0.5 * Y
    noisy = torch.polar(torch.ones_like(truth), truth) + 0.15 * complex_noise(*SHAPE, dtype=torch.complex128)
    found, _ = unwrapped(noisy.angle(), noisy.abs(), EVERYWHERE)
    difference = found - truth
    assert (difference - 2 * math.pi * (difference.mean() / (2 * math.pi)).round()).abs().max() < math.pi / 2


def test_regions_far_apart_are_numbered_and_each_is_unwrapped():
    left, right = X < -5, X > 5
    truth = torch.where(left, 0.9 * Y, 0.7 * X)
    found, regions = unwrapped(wrapped(truth), torch.ones(SHAPE), left | right)
    turns(found, truth, left)
    turns(found, truth, right)
    assert sorted(regions.unique().tolist()) == [0, 1, 2]
    assert len(regions[left].unique()) == len(regions[right].unique()) == 1
    assert not found[regions == 0].any()


def test_thin_gaps_are_crossed():
    gap = (X == 0) | (X == 1)
    truth = 0.3 * X + 0.9 * Y
    found, regions = unwrapped(wrapped(truth), torch.ones(SHAPE), ~gap)
    assert regions.max() == 1
    turns(found, truth, ~gap)


def test_the_brightest_pixel_keeps_its_phase():
    truth = 0.9 * X
    magnitude = torch.ones(SHAPE)
    magnitude[3, 44] = 2
    found, _ = unwrapped(wrapped(truth), magnitude, EVERYWHERE)
    assert found[3, 44] == pytest.approx(wrapped(truth)[3, 44].item())


def test_without_signal_there_is_no_region():
    found, regions = unwrapped(torch.ones(SHAPE), torch.ones(SHAPE), ~EVERYWHERE)
    assert not found.any()
    assert not regions.any()


@pytest.mark.peers
def test_scikit_image_agrees():
    restoration = pytest.importorskip("skimage.restoration")
    inside = torch.hypot(X / 22, Y / 18).numpy() < 1
    truth = 15 * torch.exp(-((X - 4) ** 2 + Y**2) / 150) + 0.3 * Y
    peer = restoration.unwrap_phase(np.ma.masked_array(wrapped(truth).numpy(), ~inside))
    found, _ = unwrapped(wrapped(truth), torch.ones(SHAPE), torch.from_numpy(inside))
    turns(found, torch.from_numpy(peer.filled(0)), torch.from_numpy(inside))
