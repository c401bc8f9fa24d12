"""Coil compression of frames."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gadgets.coil_compression import CoilCompression
from gadgets.frame import Samples

from phantom_scan import Phantom, cartesian, spokes
from scans import header, run, session


def compressed(frame, **properties):
    (result,) = run([CoilCompression(**properties)], [frame], session(header()))
    return result


@pytest.mark.parametrize("energy", [0.9, 0.999])
def test_the_energy_is_kept_with_as_few_coils_as_can_be(energy):
    phantom = Phantom.scanned(cartesian(), number=8)
    strengths = np.linalg.svd(phantom.data.transpose(1, 0, 2).reshape(8, -1), compute_uv=False) ** 2
    kept = np.cumsum(strengths) / strengths.sum()
    frame = compressed(phantom.frame(), energy=energy)
    fewest = int(np.argmax(kept >= energy)) + 1
    assert len(frame.samples.kspace) == fewest
    assert frame.samples.kspace.abs().square().sum().item() == pytest.approx(
        kept[fewest - 1] * strengths.sum(), rel=1e-4
    )
    assert frame.history == [f"CoilCompression: 8 to {fewest} coils, {kept[fewest - 1]:.2%} of the energy"]


def test_the_number_of_coils_can_be_limited():
    frame = compressed(Phantom.scanned(spokes(20), number=8).frame(), max_coils=2)
    assert len(frame.samples.kspace) == 2


def test_calibration_samples_are_mixed_alike():
    phantom = Phantom.scanned(cartesian(), number=8)
    samples = phantom.samples()
    part = Samples(samples.kspace[:, 10:20], samples.trajectory[:, 10:20])
    frame = compressed(phantom.frame(calibration=part), energy=0.95)
    torch.testing.assert_close(frame.calibration.kspace, frame.samples.kspace[:, 10:20])


def test_the_mixing_leads_from_the_receivers_to_the_samples():
    phantom = Phantom.scanned(cartesian(), number=8)
    received = phantom.samples().kspace
    frame = compressed(compressed(phantom.frame(), energy=0.999), max_coils=2)
    torch.testing.assert_close(torch.einsum("vc,cnm->vnm", frame.mixing, received), frame.samples.kspace)


def test_unit_noise_stays_unit_noise():
    phantom = Phantom.scanned(cartesian(), number=6, noise=1.0, image=np.zeros((48, 48)))
    kspace = compressed(phantom.frame(), energy=0.8).samples.kspace.flatten(1)
    assert 1 < len(kspace) < 6
    covariance = kspace @ kspace.mH / kspace.shape[1]
    torch.testing.assert_close(covariance, torch.eye(len(kspace)).to(covariance), atol=0.1, rtol=0)


@pytest.mark.parametrize("frame", [Phantom.scanned(cartesian(), number=1).frame()], ids=["single coil"])
def test_a_single_coil_stays(frame):
    before = frame.samples
    assert compressed(frame).samples is before


def test_a_frame_of_zeros_stays():
    frame = Phantom.scanned(cartesian(), number=3, image=np.zeros((48, 48))).frame()
    before = frame.samples
    assert compressed(frame).samples is before
