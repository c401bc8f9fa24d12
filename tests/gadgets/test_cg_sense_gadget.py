"""CG-SENSE of frames, against the truth."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gadgets.cg_sense import CgSense
from gadgets.gadget import Session

from phantom_scan import SIZE, Phantom, X, Y, cartesian, coils, error, head, signal, spokes
from scans import header, run, session


def solved(frame, **properties):
    return run([CgSense(**properties)], [frame], session(header()))


@pytest.mark.parametrize(
    ("trajectory", "limit"),
    [(cartesian(), 1e-5), (cartesian(range(0, SIZE, 2)), 1e-3), (spokes(36), 0.02)],
    ids=["cartesian", "every second line", "radial"],
)
def test_it_finds_the_image(trajectory, limit):
    phantom = Phantom.scanned(trajectory)
    image, frame = solved(phantom.frame(with_maps=True), iterations=60)
    assert image.kind == "image"
    assert image.frame is frame
    assert frame.image is image.data
    assert error(image.data, phantom.image) < limit


def test_the_history_says_how_it_ended():
    _, frame = solved(Phantom.scanned(spokes(36)).frame(with_maps=True), iterations=3, tolerance=0.0)
    assert len(frame.history) == 1
    assert frame.history[0].startswith("CgSense: 3 iterations, residual ")


def test_it_stops_at_the_tolerance():
    _, frame = solved(Phantom.scanned(cartesian()).frame(with_maps=True), iterations=50, tolerance=1e-3)
    assert int(frame.history[0].split()[1]) < 5


def test_regularisation_shrinks_the_image():
    phantom = Phantom.scanned(cartesian())
    image, _ = solved(phantom.frame(with_maps=True), regularisation=1.0, iterations=50)
    assert np.linalg.norm(image.data) < 0.9 * np.linalg.norm(phantom.image)


def test_no_signal_gives_an_empty_image():
    image, frame = solved(Phantom.scanned(spokes(10), image=np.zeros((SIZE, SIZE))).frame(with_maps=True))
    assert not image.data.any()
    assert frame.history[0].startswith("CgSense: 0 iterations, residual 0")


FIELD_HZ = 120 * np.exp(-((X - 0.05) ** 2 + (Y + 0.1) ** 2) / 0.03) - 60 + 80 * Y
TIMES = np.linspace(2e-3, 17e-3, 2 * SIZE)


def frame_with_field(field=FIELD_HZ):
    """Spokes that each take 15 ms, so that the field turns the phase by more than a cycle."""
    images = coils() * head()
    phases = np.exp(-2j * np.pi * field * TIMES[:, None, None])
    samples = [signal(images * phase, spokes(72)[:, i]) for i, phase in enumerate(phases)]
    phantom = Phantom(head(), coils(), spokes(72), np.moveaxis(samples, 0, -1).transpose(1, 0, 2))
    frame = phantom.frame(with_maps=True)
    frame.times = torch.from_numpy(np.tile(TIMES, (72, 1)).astype(np.float32))
    frame.field_map = torch.from_numpy(field.astype(np.float32))
    return frame


def test_a_field_map_undoes_what_the_field_did():
    with_map, without = frame_with_field(), frame_with_field()
    without.field_map = None
    (corrected, _), (blurred, _) = solved(with_map, iterations=60), solved(without, iterations=60)
    assert error(corrected.data, head()) < 0.02
    assert error(blurred.data.abs(), abs(head())) > 0.1
    assert with_map.history[0].startswith("off-resonance from -100 to 100 Hz in ")
    assert len(without.history) == 1


def test_a_field_of_the_wrong_sign_makes_it_worse():
    frame = frame_with_field()
    frame.field_map = -frame.field_map
    image, _ = solved(frame, iterations=60)
    assert error(image.data.abs(), abs(head())) > 0.2


def test_slices_whose_fields_differ_a_little_share_an_encoding():
    opened: Session = session(header())
    frames = [frame_with_field(), frame_with_field(FIELD_HZ + 3), frame_with_field(FIELD_HZ + 100)]
    held = []
    for frame in frames:
        run([CgSense(iterations=1)], [frame], opened)
        held.append(opened.cache.nbytes)
    assert held[0] == held[1] < held[2]


def test_says_that_a_field_map_is_not_finite():
    frame = frame_with_field()
    frame.field_map[3, 4] = torch.nan
    with pytest.raises(ValueError, match="field map holds values that are not finite"):
        solved(frame)
