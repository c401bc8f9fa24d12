"""Removal of readout oversampling, against signals of points summed up directly on the smaller grid."""

from __future__ import annotations

import ismrmrd
import numpy as np
import pytest

from gadgets.remove_oversampling import RemoveOversampling
from gadgets.trajectory import Trajectory

from scans import encoding_xml, header, line, run, session, te

PIXELS = np.array([-20, -3, 0, 11, 15])  # off the centre of the field of view, within the recon field of view
VALUES = np.array([1.0, -0.5, 2j, 0.3 + 1j, 1.5])


def signal(k, matrix) -> np.ndarray:
    """Of the points on a grid of `matrix` pixels, in orthonormal scaling: `[1, sample]`."""
    return (np.exp(-2j * np.pi * np.outer(k, PIXELS) / matrix) @ VALUES)[None] / np.sqrt(matrix)


def oversampled(matrix=128, kept=64, **more):
    return header(
        matrix=(matrix, 8, 1), fov=(2.0 * matrix, 160, 5), recon=(kept, 8, 1), recon_fov=(2.0 * kept, 160, 5), **more
    )


def remove(items, head):
    opened = session(head)
    return run([Trajectory(unit="cycles/fov"), RemoveOversampling()], items, opened), opened


@pytest.mark.parametrize(("matrix", "kept"), [(128, 64), (128, 61), (127, 64), (96, 64), (65, 64)])
def test_complete_lines_become_the_lines_of_the_smaller_grid(matrix, kept):
    k = np.arange(matrix) - matrix // 2
    (readout,), _ = remove([line(1, signal(k, matrix))], oversampled(matrix, kept))
    assert readout.number_of_samples in (kept - 1, kept)
    assert readout.traj[readout.center_sample, 0] == 0
    np.testing.assert_array_equal(np.diff(readout.traj[:, 0]), 1)
    np.testing.assert_array_equal(readout.traj[:, 1], -3)
    np.testing.assert_allclose(readout.data, signal(readout.traj[:, 0], kept), atol=1e-5)


@pytest.mark.parametrize("shift", [-0.5, -0.26, 0.1, 0.5])
def test_lines_between_the_grid_points_keep_their_exact_places(shift):
    k = np.arange(128) - 64 + shift
    trajectory = np.stack([k, np.zeros(128)], axis=1)
    (readout,), _ = remove([line(0, signal(k, 128), trajectory)], oversampled())
    np.testing.assert_allclose(readout.data, signal(readout.traj[:, 0], 64), atol=1e-5)
    assert readout.number_of_samples in (63, 64)


def test_rounding_in_the_trajectory_does_not_change_the_number_of_samples():
    k = np.arange(128) - 64
    trajectories = [np.stack([k + error, np.zeros(128)], axis=1) for error in (-1e-4, 0, 1e-4)]
    readouts, _ = remove([line(0, signal(k, 128), trajectory) for trajectory in trajectories], oversampled())
    assert [readout.number_of_samples for readout in readouts] == [64, 64, 64]


@pytest.mark.parametrize("backwards", [False, True])
def test_asymmetric_echoes(backwards):
    # The object is smooth enough that nothing is left at the short end of the echo.
    x = np.arange(128) - 64
    image = np.exp(-(((x - 3) / 8.0) ** 2)) * np.exp(0.02j * x)

    def smooth_signal(k, matrix):
        grid = x[64 - matrix // 2 : 64 + matrix // 2]
        values = image[64 - matrix // 2 : 64 + matrix // 2]
        return np.exp(-2j * np.pi * np.outer(k, grid) / matrix) @ values / np.sqrt(matrix)

    k = np.arange(88) - 24
    data = smooth_signal(k, 128)[None]
    item = line(1, data[:, ::-1], flags=[ismrmrd.ACQ_IS_REVERSE], center_sample=63) if backwards else None
    item = item or line(1, data, center_sample=24)
    (readout,), _ = remove([item], oversampled(after=te(5)))
    np.testing.assert_array_equal(readout.traj[:, 0], np.arange(-12, 32))
    assert readout.center_sample == 12
    np.testing.assert_allclose(readout.data[0], smooth_signal(readout.traj[:, 0], 64), atol=1e-3)
    assert readout.sample_time_us == 10.0
    sign = -1 if backwards else 1
    np.testing.assert_allclose(readout.times, 5e-3 + sign * 10e-6 * np.arange(-12, 32), atol=1e-8)


def test_descending_trajectories_of_the_stream():
    k = 63 - np.arange(128)
    trajectory = np.stack([k, np.zeros(128)], axis=1)
    (readout,), _ = remove([line(0, signal(k, 128), trajectory, center_sample=63)], oversampled(after=te(5)))
    np.testing.assert_allclose(readout.data, signal(readout.traj[:, 0], 64), atol=1e-5)
    np.testing.assert_allclose(readout.times, 5e-3 - 10e-6 * readout.traj[:, 0], atol=1e-8)


def test_what_lies_outside_the_recon_field_of_view_is_gone():
    k = np.arange(128) - 64
    outside = np.exp(-2j * np.pi * k * 40 / 128)[None]
    (readout,), _ = remove([line(1, outside)], oversampled())
    np.testing.assert_allclose(readout.data, 0, atol=1e-6)


def test_unit_noise_stays_unit_noise():
    rng = np.random.default_rng(1)
    noise = (rng.standard_normal((2000, 128)) + 1j * rng.standard_normal((2000, 128))) / np.sqrt(2)
    (readout,), _ = remove([line(1, noise)], oversampled())
    covariance = readout.data.T @ readout.data.conj() / 2000
    np.testing.assert_allclose(covariance.diagonal().real.mean(), 1, atol=0.01)
    np.testing.assert_allclose(covariance, np.eye(64), atol=0.12)


def test_later_gadgets_see_the_smaller_space():
    before = oversampled(127, 64)
    _, opened = remove([], before)
    space = opened.header.encoding[0].encodedSpace
    assert space.matrixSize.x == 64
    assert space.fieldOfView_mm.x == pytest.approx(128)
    assert (space.matrixSize.y, space.fieldOfView_mm.y) == (8, 160)
    assert before.encoding[0].encodedSpace.matrixSize.x == 127


def test_the_pixel_size_stays_where_no_whole_number_of_pixels_fits():
    head = header(matrix=(100, 8, 1), fov=(300, 160, 5), recon=(64, 8, 1), recon_fov=(200, 160, 5))
    _, opened = remove([], head)
    space = opened.header.encoding[0].encodedSpace
    assert (space.matrixSize.x, space.fieldOfView_mm.x) == (67, pytest.approx(201))


def test_without_oversampling_nothing_happens():
    items = [line(1)]
    located = run([Trajectory()], items, session(header()))
    (after,) = run([RemoveOversampling()], located, session(header()))
    assert after is located[0]


def test_only_cartesian_readouts_are_touched():
    spiral = encoding_xml(
        matrix=(32, 32, 1), fov=(200, 200, 5), recon=(16, 16, 1), recon_fov=(100, 100, 5), kind="spiral"
    )
    head = header(spiral, encoding_xml(matrix=(32, 8, 1), recon=(16, 8, 1), recon_fov=(160, 160, 5)))
    k = np.linspace(0, 16, 16)[:, None] * [1, 0]
    items = [line(0, trajectory=k), line(0, trajectory=k), line(0, samples=32, encoding_space_ref=1)]
    (first, second, cartesian), opened = remove(items, head)
    np.testing.assert_array_equal(first.data, items[0].data)
    np.testing.assert_allclose(second.traj, k, atol=1e-6)
    assert cartesian.number_of_samples == 16
    assert [space.encodedSpace.matrixSize.x for space in opened.header.encoding] == [32, 16]
    assert len(opened.tell.about("leaves spiral readouts as they are")) == 1


@pytest.mark.parametrize(
    "trajectory",
    [
        np.stack([np.linspace(-32, 31, 128), np.zeros(128)], axis=1),
        np.stack([np.arange(128) - 64, np.linspace(-1, 1, 128)], axis=1),
    ],
    ids=["other spacing", "slanted"],
)
def test_readouts_that_are_not_what_the_header_says_are_refused(trajectory):
    with pytest.raises(ValueError, match="the header says cartesian, but the readout is no line"):
        remove([line(0, samples=128, trajectory=trajectory)], oversampled())
