"""The preview, against the truth."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gadgets.frame import SeriesImage
from gadgets.preview import Preview
from gadgets.trajectory_cache import REMEMBERED, TrajectoryCache, sampling_of

from phantom_scan import Phantom, cartesian, error, spokes
from scans import header, run, session


def previewed(*frames):
    return run([Preview()], frames, session(header()))


@pytest.mark.parametrize(
    ("trajectory", "limit"), [(cartesian(), 1e-5), (cartesian([*range(48), *range(20, 30)]), 1e-5), (spokes(), 0.05)]
)
def test_it_shows_the_image_in_its_scale(trajectory, limit):
    phantom = Phantom.scanned(trajectory)
    preview, frame = previewed(phantom.frame(with_maps=True))
    assert isinstance(preview, SeriesImage)
    assert preview.kind == "preview"
    assert preview.frame is frame
    assert error(preview.data, phantom.image) < limit
    assert frame.image is preview.data


def test_the_preview_leaves_before_the_frame_goes_on():
    gadget = Preview()
    gadget.open(session(header()))
    results = gadget.take(Phantom.scanned(cartesian()).frame(with_maps=True))
    assert isinstance(next(results), SeriesImage)


def test_no_signal_gives_an_empty_image():
    preview, _ = previewed(Phantom.scanned(spokes(10), image=np.zeros((48, 48))).frame(with_maps=True))
    assert not preview.data.any()


def test_frames_of_one_trajectory_share_what_was_built_and_no_others_do():
    built = []
    cache = TrajectoryCache(lambda frame: built.append(frame) or len(built))
    first, again = (Phantom.scanned(spokes(6)).frame() for _ in range(2))
    turned = Phantom.scanned(spokes(6) + 1e-3).frame()
    assert [cache.of(frame) for frame in (first, again, turned, first)] == [1, 1, 2, 1]
    reshaped = Phantom.scanned(spokes(6).reshape(3, -1, 2)).frame()
    assert cache.of(reshaped) == 3


def test_the_trajectories_that_were_used_last_are_remembered():
    built = []
    cache = TrajectoryCache(lambda frame: built.append(frame))
    frames = [Phantom.scanned(spokes(2) * scale).frame() for scale in np.linspace(0.5, 1, REMEMBERED + 1)]
    for frame in [*frames[:-1], frames[0], frames[-1], frames[0]]:
        cache.of(frame)
    assert len(built) == REMEMBERED + 1
    assert len(cache._built) == REMEMBERED
    cache.of(frames[1])
    assert len(built) == REMEMBERED + 2


def test_gadgets_of_a_session_share_the_sampling_operator():
    opened, other = session(header()), session(header())
    frame = Phantom.scanned(spokes(6)).frame()
    assert sampling_of(frame, opened) is sampling_of(frame, opened)
    assert sampling_of(frame, opened) is not sampling_of(frame, other)


def test_the_samples_stay_as_they_are():
    frame = Phantom.scanned(cartesian()).frame(with_maps=True)
    before = frame.samples.kspace.clone()
    previewed(frame)
    torch.testing.assert_close(frame.samples.kspace, before)
