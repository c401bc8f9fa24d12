"""CG-SENSE of frames, against the truth."""

from __future__ import annotations

import numpy as np
import pytest

from gadgets.cg_sense import CgSense

from phantom_scan import SIZE, Phantom, cartesian, error, spokes
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
