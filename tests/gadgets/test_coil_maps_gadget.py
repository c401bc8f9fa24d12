"""Coil maps of frames, against the maps that made the data."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gadgets.coil_maps import CoilMaps

from phantom_scan import SIZE, Phantom, X, Y, cartesian, signal, spokes
from scans import header, run, session

TRAJECTORIES = {"cartesian": cartesian(), "radial": spokes()}


def mapped(frame, **properties):
    (result,) = run([CoilMaps(**properties)], [frame], session(header()))
    return result


def misfit(maps, phantom) -> float:
    """The largest part of the true maps that lies outside the estimated ones, anywhere in the bright disc."""
    bright = np.abs(phantom.image) > 0.3 * np.abs(phantom.image).max()
    overlap = np.abs((maps.numpy().conj() * phantom.maps).sum(0))
    return float(np.sqrt(np.maximum(1 - overlap**2, 0))[bright].max())


@pytest.mark.parametrize("trajectory", TRAJECTORIES)
@pytest.mark.parametrize(("method", "limit"), [("espirit", 0.06), ("walsh", 0.12)])
def test_the_maps_are_those_of_the_scan(trajectory, method, limit):
    phantom = Phantom.scanned(TRAJECTORIES[trajectory])
    frame = mapped(phantom.frame(), method=method)
    assert frame.coil_maps.dtype == torch.complex64
    assert frame.coil_maps.shape == (4, SIZE, SIZE)
    assert misfit(frame.coil_maps, phantom) < limit
    strength = frame.coil_maps.abs().square().sum(0).sqrt()
    assert torch.all((strength - 1).abs().minimum(strength) < 1e-4)
    assert frame.history[0].startswith(f"CoilMaps: {'ESPIRiT' if method == 'espirit' else 'Walsh'} from 24 x 24")


def test_calibration_lines_come_before_the_centre_of_the_image():
    phantom = Phantom.scanned(cartesian())
    other = Phantom.scanned(cartesian(), number=4)
    other.data = other.data[:, ::-1]  # another order of coils
    other.maps = other.maps[::-1]
    frame = mapped(phantom.frame(calibration=other.samples()))
    assert misfit(frame.coil_maps, other) < 0.06
    assert "of the calibration lines" in frame.history[0]


def test_few_calibration_lines_are_used_as_far_as_they_reach():
    steps = range(SIZE // 2 - 8, SIZE // 2 + 8)
    calibration = Phantom.scanned(cartesian(steps)).samples()
    phantom = Phantom.scanned(cartesian(range(0, SIZE, 3)))
    frame = mapped(phantom.frame(calibration=calibration))
    assert misfit(frame.coil_maps, phantom) < 0.1
    assert frame.history == ["CoilMaps: ESPIRiT from 16 x 24 of the calibration lines, kernel of 6 samples"]


def test_a_field_map_takes_the_off_resonance_out_but_of_calibration_lines():
    """Each spoke of 12 ms reaches the centre in its middle; the field would turn what is late against what is early."""
    phantom = Phantom.scanned(spokes())
    field_hz = 150 * (X + 2 * (Y**2 - X**2))
    times = np.linspace(0, 12e-3, phantom.trajectory.shape[1])
    for sample, time in enumerate(times):
        turned = phantom.maps * phantom.image * np.exp(-2j * np.pi * field_hz * time)
        phantom.data[:, :, sample] = signal(turned, phantom.trajectory[:, sample]).T
    calibration = Phantom.scanned(cartesian(range(SIZE // 2 - 12, SIZE // 2 + 12))).samples()

    def frame_of(field=None, **more):
        frame = phantom.frame(**more)
        frame.times = torch.from_numpy(times).float().expand_as(frame.times)
        frame.field_map = field
        return frame

    known = torch.from_numpy(field_hz).float()
    blurred, sharp = mapped(frame_of()), mapped(frame_of(known))
    assert misfit(sharp.coil_maps, phantom) < 0.06
    assert misfit(blurred.coil_maps, phantom) > 1.5 * misfit(sharp.coil_maps, phantom)
    assert sharp.history == [
        "CoilMaps: ESPIRiT from 24 x 24 of the samples without their off-resonance, kernel of 6 samples"
    ]
    lines = [mapped(frame_of(field, calibration=calibration)) for field in (None, known)]
    torch.testing.assert_close(lines[0].coil_maps, lines[1].coil_maps)
    assert "off-resonance" not in lines[1].history[0]


def test_an_undersampled_centre_is_refused():
    with pytest.raises(ValueError, match="not fully sampled"):
        mapped(Phantom.scanned(cartesian(range(0, SIZE, 2))).frame())


@pytest.mark.parametrize(("lines", "height", "limit"), [(14, 14, 0.05), (11, 12, 0.1), (10, 10, 0.12)])
def test_the_largest_fully_sampled_region_is_used(lines, height, limit):
    """Also along the lines, where it is wider: 10 x 10 points would leave a misfit of 0.16."""
    centre = range(SIZE // 2 - lines // 2, SIZE // 2 + (lines + 1) // 2)
    phantom = Phantom.scanned(cartesian(sorted({*range(0, SIZE, 3), *centre})))
    frame = mapped(phantom.frame())
    assert misfit(frame.coil_maps, phantom) < limit
    kernel = min(6, height // 2)
    assert frame.history == [f"CoilMaps: ESPIRiT from {height} x 24 of the samples, kernel of {kernel} samples"]


def test_a_smaller_kernel_fits_few_lines_better_and_a_width_that_is_set_stays():
    steps = range(SIZE // 2 - 5, SIZE // 2 + 5)
    phantom = Phantom.scanned(cartesian(range(0, SIZE, 3)), noise=0.02)
    calibration = Phantom.scanned(cartesian(steps), noise=0.02).samples()
    chosen = mapped(phantom.frame(calibration=calibration))
    wide = mapped(phantom.frame(calibration=calibration), kernel=6)
    assert "kernel of 5 samples" in chosen.history[0]
    assert "kernel of 6 samples" in wide.history[0]
    assert misfit(chosen.coil_maps, phantom) < misfit(wide.coil_maps, phantom)


def test_a_frame_that_ended_before_the_centre_is_refused():
    phantom = Phantom.scanned(cartesian(range(SIZE // 4)))
    with pytest.raises(ValueError, match=f"the centre of k-space, which the {SIZE // 4} readouts do not surround"):
        mapped(phantom.frame())


def test_a_single_coil_gets_ones():
    frame = mapped(Phantom.scanned(cartesian(), number=1).frame())
    torch.testing.assert_close(frame.coil_maps, torch.ones(1, SIZE, SIZE, dtype=torch.complex64))


def test_without_signal_all_coils_are_alike():
    frame = mapped(Phantom.scanned(cartesian(), image=np.zeros((SIZE, SIZE))).frame())
    torch.testing.assert_close(frame.coil_maps, torch.full((4, SIZE, SIZE), 0.5, dtype=torch.complex64))
