"""Noise that was not measured, against the noise that was put in."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from recon_core.calibration.unmeasured_noise import MODELS_MISS, out_of_band_noise, outer_noise, unmeasured_noise

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


def dense_spokes(number=40, per_cycle=4) -> np.ndarray:
    """`[shot, sample, (x, y)]` with so many samples per cycle of the field of view."""
    radius = np.arange(-24 * per_cycle, 24 * per_cycle) / per_cycle
    angles = np.pi * np.arange(number) / number
    return radius[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=-1)[:, None]


@pytest.mark.parametrize("noise", [1e-3, 0.1])
def test_dense_readouts_tell_the_noise_though_signal_is_everywhere(noise):
    rough = np.random.default_rng(2).standard_normal((48, 48)) + 5 * head()
    found = Phantom.scanned(dense_spokes(), noise=noise, image=10 * rough).samples()
    assert out_of_band_noise(found.kspace, found.trajectory) == pytest.approx(noise, rel=0.1)
    assert outer_noise(found.kspace, found.trajectory) > 3


def test_readouts_as_dense_as_the_field_of_view_asks_for_tell_nothing_so():
    found = samples(dense_spokes(per_cycle=1))
    assert out_of_band_noise(found.kspace, found.trajectory) is None
    found = samples(cartesian())
    assert out_of_band_noise(found.kspace, found.trajectory) is None
    assert unmeasured_noise(found.kspace, found.trajectory) == outer_noise(found.kspace, found.trajectory)


def test_pieces_of_zeros_were_not_measured():
    found = samples(dense_spokes(), noise=0.5)
    found.kspace[..., 64:80] = 0
    assert out_of_band_noise(found.kspace, found.trajectory) == pytest.approx(0.5, rel=0.1)


def test_coils_that_measured_nothing_do_not_count():
    found = samples(dense_spokes(), noise=0.5)
    found.kspace[1:3] = 0
    assert out_of_band_noise(found.kspace, found.trajectory) == pytest.approx(0.5, rel=0.1)


def test_interpolated_readouts_do_not_make_it_too_small():
    """Of twice as many samples, half of all frequencies hold nothing."""
    found = samples(dense_spokes(number=160), noise=0.5)
    spectrum = torch.fft.fft(found.kspace)
    filled = torch.nn.functional.pad(torch.fft.fftshift(spectrum, dim=-1), (96, 96))
    kspace = 2 * torch.fft.ifft(torch.fft.ifftshift(filled, dim=-1))
    trajectory = samples(dense_spokes(160, 8)).trajectory
    assert out_of_band_noise(kspace, trajectory) > 0.45
    assert unmeasured_noise(kspace, trajectory) == pytest.approx(0.5, rel=0.1)


def test_data_are_not_taken_for_more_exact_than_models_are():
    found = samples(dense_spokes(), noise=1e-6)
    rms = float(found.kspace.abs().square().mean().sqrt())
    assert unmeasured_noise(found.kspace, found.trajectory) == pytest.approx(MODELS_MISS * rms)
