"""Total variation of frames, against the truth; the minimum itself is tested with the solver."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gadgets.cg_sense import CgSense
from gadgets.total_variation import TotalVariation

from phantom_scan import SIZE, Phantom, X, Y, cartesian, error
from scans import header, run, session

BLOCKS = 10.0 * ((abs(X) < 0.3) & (abs(Y) < 0.35)) - 6.0 * ((abs(X + 0.1) < 0.1) & (abs(Y) < 0.15))
"""An image of few edges."""


def scanned(steps=range(0, SIZE, 2)):
    """With noise of unit variance, a tenth of the brightest pixel."""
    return Phantom.scanned(cartesian(steps), noise=1.0, image=BLOCKS).frame(with_maps=True)


def solved(frame, opened=None, **properties):
    return run([TotalVariation(**properties)], [frame], opened or session(header()))


def test_it_is_much_nearer_to_the_truth_than_least_squares():
    image, frame = solved(scanned())
    least_squares, _ = run([CgSense()], [scanned()], session(header()))
    assert image.kind == "image"
    assert frame.image is image.data
    assert error(image.data, BLOCKS) < 0.6 * error(least_squares.data, BLOCKS)
    assert frame.history[0].startswith("TotalVariation: weight 0.7, 60 of 60 steps in ")


def test_a_larger_weight_makes_the_image_smoother():
    (rough, _), (smooth, _) = solved(scanned(), weight=0.2), solved(scanned(), weight=5.0)
    assert roughness(smooth.data) < 0.5 * roughness(rough.data)


def roughness(image) -> float:
    return float(image.diff(dim=0).abs().sum() + image.diff(dim=1).abs().sum())


def test_a_field_map_undoes_what_the_field_did():
    """All samples at one time: the field turns the phase by up to a cycle."""
    frame = scanned(range(SIZE))
    turned = np.exp(-2j * np.pi * 150 * Y * 5e-3)
    frame.samples = Phantom.scanned(cartesian(), image=BLOCKS * turned, noise=1.0).samples()
    frame.times = torch.full_like(frame.times, 5e-3)
    frame.field_map = torch.from_numpy((150 * Y).astype(np.float32))
    image, _ = solved(frame)
    assert error(image.data, BLOCKS) < 0.1


def test_no_signal_gives_an_empty_image_and_says_so():
    frame = scanned()
    frame.samples.kspace.zero_()
    opened = session(header())
    image, _ = solved(frame, opened)
    assert not image.data.any()
    assert opened.tell.about("TotalVariation: all samples are zero, and so is the image")


def test_a_single_coil():
    phantom = Phantom.scanned(cartesian(), number=1, image=BLOCKS, noise=1.0)
    image, _ = solved(phantom.frame(with_maps=True))
    assert error(image.data, BLOCKS) < 0.1


def test_says_which_samples_are_not_finite():
    frame = scanned()
    frame.samples.kspace[1, 2, 3] = torch.inf
    with pytest.raises(ValueError, match="1 of .* samples of k-space are not finite"):
        solved(frame)
