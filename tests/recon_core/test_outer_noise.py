"""Noise that was not measured, against the noise that was put in."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from recon_core.calibration.outer_noise import outer_noise

from phantom_scan import Phantom, cartesian, head, spokes


def samples(trajectory, noise=1.0, brightness=30.0):
    return Phantom.scanned(trajectory, noise=noise, image=brightness * head()).samples()


@pytest.mark.parametrize(
    "trajectory", [cartesian(), cartesian(range(0, 48, 3)), spokes()], ids=["grid", "R = 3", "radial"]
)
@pytest.mark.parametrize("noise", [0.02, 1.0, 50.0])
def test_the_noise_is_found_where_the_signal_has_died_away(trajectory, noise):
    found = samples(trajectory, noise, 30.0 * noise)
    assert outer_noise(found.kspace, found.trajectory) == pytest.approx(noise, rel=0.1)


def test_signal_at_the_edge_makes_it_too_large_and_never_too_small():
    found = samples(cartesian(), 0.01, 100.0)
    rng = np.random.default_rng(1)
    everywhere = torch.from_numpy(rng.standard_normal(found.kspace.shape)).to(torch.complex64)
    found.kspace.add_(0.03 * everywhere)
    assert outer_noise(found.kspace, found.trajectory) > 0.01


def test_a_few_bright_samples_do_not_matter():
    found = samples(cartesian())
    found.kspace[:, 0, ::4] *= 1e3
    assert outer_noise(found.kspace, found.trajectory) == pytest.approx(1, rel=0.15)


def test_samples_that_were_not_measured_do_not_count():
    found = samples(cartesian())
    found.kspace[:, :1] = 0
    found.kspace[3] = 0
    assert outer_noise(found.kspace, found.trajectory) == pytest.approx(1, rel=0.1)


@pytest.mark.parametrize("edge", [0.0, 1e-6])
def test_zeros_for_noise_are_refused(edge):
    found = samples(cartesian())
    found.kspace[:, found.trajectory.square().sum(0) > 18**2] = edge
    with pytest.raises(ValueError, match="expected noise in the 10% of the samples"):
        outer_noise(found.kspace, found.trajectory)
