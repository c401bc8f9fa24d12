"""The preview, against the truth."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from gadgets import imaging_model, preview
from gadgets.frame import SeriesImage
from gadgets.imaging_model import encoding_of
from gadgets.preview import Preview
from recon_core.cache import ContentCache

from phantom_scan import SPACE, Phantom, cartesian, error, spokes
from scans import header, run, session


def previewed(*frames):
    return run([Preview()], frames, session(header()))


@pytest.mark.parametrize(
    ("trajectory", "limit"), [(cartesian(), 1e-5), (cartesian([*range(48), *range(20, 30)]), 1e-5), (spokes(), 0.05)]
)
def test_it_shows_the_image_in_its_scale(trajectory, limit):
    phantom = Phantom.scanned(trajectory)
    image, frame = previewed(phantom.frame(with_maps=True))
    assert isinstance(image, SeriesImage)
    assert image.kind == "preview"
    assert image.frame is frame
    assert error(image.data, phantom.image) < limit
    assert frame.image is image.data


def test_the_preview_leaves_before_the_frame_goes_on():
    gadget = Preview()
    gadget.open(session(header()))
    results = gadget.take(Phantom.scanned(cartesian()).frame(with_maps=True))
    assert isinstance(next(results), SeriesImage)


def test_no_signal_gives_an_empty_image():
    image, _ = previewed(Phantom.scanned(spokes(10), image=np.zeros((48, 48))).frame(with_maps=True))
    assert not image.data.any()


def test_frames_of_one_trajectory_share_what_was_built_and_no_others_do():
    opened = session(header())
    first, again = (encoding_of(Phantom.scanned(spokes(6)).frame(), opened) for _ in range(2))
    assert first is again
    turned = encoding_of(Phantom.scanned(spokes(6) + 1e-3).frame(), opened)
    reshaped = encoding_of(Phantom.scanned(spokes(6).reshape(3, -1, 2)).frame(), opened)
    regridded = replace(Phantom.scanned(spokes(6)).frame(), space=replace(SPACE, encoded_matrix=(1, 50, 48)))
    assert len({id(e) for e in (first, turned, reshaped, encoding_of(regridded, opened))}) == 4


def test_a_second_session_builds_nothing_for_a_trajectory_that_the_first_had(monkeypatch):
    frames = [Phantom.scanned(spokes(20)).frame(with_maps=True) for _ in range(2)]
    cache = ContentCache(2**28)
    first, _ = run([Preview()], frames[:1], session(header(), cache=cache))
    monkeypatch.setattr(preview, "pipe_menon", None)
    monkeypatch.setattr(imaging_model, "sampling_operator", None)
    second, _ = run([Preview()], frames[1:], session(header(), cache=cache))
    torch.testing.assert_close(first.data, second.data, rtol=0, atol=0)


def test_sessions_without_a_common_cache_share_nothing():
    frame = Phantom.scanned(spokes(6)).frame()
    assert encoding_of(frame, session(header())) is not encoding_of(frame, session(header()))


def test_the_samples_stay_as_they_are():
    frame = Phantom.scanned(cartesian()).frame(with_maps=True)
    before = frame.samples.kspace.clone()
    previewed(frame)
    torch.testing.assert_close(frame.samples.kspace, before)
