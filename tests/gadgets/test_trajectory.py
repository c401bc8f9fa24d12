"""The trajectory gadget, against signals that are summed up directly at known places in k-space."""

from __future__ import annotations

import ismrmrd
import numpy as np
import pytest

from gadgets.mrd import NOT_IMAGING, Readout
from gadgets.trajectory import Trajectory

from scans import encoding_xml, header, line, run, session, te

POINTS = np.array([[3, -2], [-5, 1], [0, 3], [7, 2]])  # pixels (x, y) off the centre
WEIGHTS = np.array([1.0, 0.5 - 1j, 2j, -0.7])
MATRIX = np.array([16, 8])


def signal(k) -> np.ndarray:
    """Of the points, at k `[sample, (x, y)]` in cycles per field of view: `[1, sample]`."""
    return (np.exp(-2j * np.pi * np.asarray(k, float) @ (POINTS / MATRIX).T) @ WEIGHTS)[None]


def locate(item, head=None, **properties) -> Readout:
    (readout,) = run([Trajectory(**properties)], [item], session(head or header()))
    return readout


def assert_true(readout) -> None:
    """The data are the signal at the trajectory that stands beside them."""
    assert readout.data.shape[1] == readout.traj.shape[0] == len(readout.times) == readout.number_of_samples
    np.testing.assert_allclose(readout.data, signal(readout.traj), atol=1e-4)


def cartesian(samples=16, centre=8, ky=-3.0):
    return np.stack([np.arange(samples) - centre, np.full(samples, ky)], axis=1)


def test_cartesian_lines_follow_from_the_encoding_steps():
    head = header(limits={"kspace_encoding_step_1": (0, 6, 3)})
    readout = locate(line(1, signal(cartesian(ky=-2))), head)
    assert_true(readout)
    np.testing.assert_array_equal(readout.traj, cartesian(ky=-2))


def test_the_centre_of_the_matrix_is_the_default():
    head = header(limits={})
    assert_true(locate(line(1, signal(cartesian(ky=-3))), head))


def test_the_centre_of_a_full_reversed_line_may_be_that_of_a_forward_one():
    # Converters give all lines of an echo train the same center_sample; taken literally, these would leave the grid.
    k = np.stack([7 - np.arange(16), np.full(16, -3)], axis=1)
    item = line(1, signal(k), None, flags=[ismrmrd.ACQ_IS_REVERSE], center_sample=8)
    readout = locate(item, header(after=te(10)))
    assert_true(readout)
    np.testing.assert_array_equal(readout.traj[:, 0], np.arange(-8, 8))
    assert readout.center_sample == 8


@pytest.mark.parametrize(
    ("samples", "centre", "pre", "post", "carried"),
    [(16, 8, 0, 0, True), (16, 7, 0, 0, True), (16, 7, 0, 0, False), (12, 4, 3, 1, True), (12, 4, 3, 1, False)],
)
def test_reversed_readouts_are_turned_round(samples, centre, pre, post, carried):
    # In the order of time the readout runs down k-space; `centre` counts in that order.
    k = np.stack([centre - np.arange(samples), np.full(samples, -3)], axis=1)
    item = line(
        1,
        signal(k),
        k if carried else None,
        flags=[ismrmrd.ACQ_IS_REVERSE],
        center_sample=centre,
        discard_pre=pre,
        discard_post=post,
    )
    readout = locate(item, header(after=te(10)), unit="cycles/fov")
    assert_true(readout)
    assert readout.number_of_samples == samples - pre - post
    assert np.all(np.diff(readout.traj[:, 0]) == 1)
    assert not readout.isFlagSet(ismrmrd.ACQ_IS_REVERSE)
    assert readout.traj[readout.center_sample, 0] == 0
    # Time still runs against k, and the echo is where k is zero.
    np.testing.assert_allclose(readout.times, 10e-3 - 5e-6 * readout.traj[:, 0], atol=1e-9)
    # What is discarded before the readout are the samples that came first.
    assert readout.times.min() == pytest.approx(10e-3 + 5e-6 * (pre - centre), abs=1e-9)


@pytest.mark.parametrize("carried", [False, True], ids=["header", "stream"])
def test_samples_to_discard_are_cut_from_data_and_trajectory(carried):
    k = cartesian()
    item = line(1, signal(k), k if carried else None, discard_pre=2, discard_post=3)
    readout = locate(item, header(after=te(10)), unit="cycles/fov")
    assert_true(readout)
    np.testing.assert_array_equal(readout.traj[:, 0], np.arange(-6, 5))
    assert (readout.discard_pre, readout.discard_post, readout.center_sample) == (0, 0, 6)
    np.testing.assert_allclose(readout.times, 10e-3 + 5e-6 * readout.traj[:, 0], atol=1e-9)


def test_discarding_everything_is_refused():
    with pytest.raises(ValueError, match=r"no sample is left of 16: discard_pre is 10, discard_post 6"):
        locate(line(discard_pre=10, discard_post=6))


def test_discarding_past_the_centre_keeps_the_time():
    k = np.stack([np.arange(10), np.zeros(10)], axis=1) / 2
    item = line(0, signal(k), k, center_sample=0, discard_pre=4)
    readout = locate(item, header(kind="spiral", after=te(2)), unit="cycles/fov")
    assert_true(readout)
    assert readout.center_sample == 0
    np.testing.assert_allclose(readout.times, 2e-3 + 5e-6 * np.arange(4, 10), atol=1e-9)


def test_asymmetric_echoes_keep_their_centre():
    k = cartesian(samples=11, centre=3)
    assert_true(locate(line(1, signal(k), center_sample=3)))


def test_a_centre_beyond_a_full_line_means_the_middle():
    # Left over from before somebody removed the readout oversampling.
    opened = session(header())
    items = [line(step, signal(cartesian(ky=step - 4)), center_sample=16) for step in (1, 2)]
    first, second = run([Trajectory()], items, opened)
    assert_true(first)
    assert_true(second)
    assert len(opened.tell.about("center_sample 16 of 16 samples")) == 1


def test_a_centre_beyond_a_partial_line_is_taken_at_its_word():
    k = cartesian(samples=6, centre=8)
    readout = locate(line(1, signal(k), center_sample=8))
    assert_true(readout)


def test_an_echo_after_a_spiral_in_is_taken_at_its_word():
    k = np.linspace(8, 0.5, 16)[:, None] * [1, 0]
    item = line(0, signal(k), k, center_sample=16)
    readout = locate(item, header(kind="spiral", after=te(10)), unit="cycles/fov")
    np.testing.assert_allclose(readout.times, 10e-3 + 5e-6 * np.arange(-16, 0), atol=1e-9)


def test_times_without_an_echo_time_count_from_the_first_sample():
    readout = locate(line(discard_pre=2))
    np.testing.assert_allclose(readout.times, 5e-6 * np.arange(14), atol=1e-9)


def test_each_contrast_has_its_echo_time():
    head = header(after=te(4, 9))
    items = [line(counters={"contrast": contrast}) for contrast in (0, 1)]
    readouts = run([Trajectory()], items, session(head))
    np.testing.assert_allclose([r.times[8] for r in readouts], [4e-3, 9e-3], atol=1e-9)


@pytest.mark.parametrize("flag", NOT_IMAGING, ids=NOT_IMAGING.values())
def test_lines_that_make_no_image_pass_untouched(flag):
    item = line(trajectory=np.full((16, 2), 1e9), flags=[flag, ismrmrd.ACQ_IS_REVERSE], discard_pre=5)
    before = item.to_bytes()
    (after,) = run([Trajectory()], [item], session(header()))
    assert after is item
    assert after.to_bytes() == before


@pytest.mark.parametrize(
    "flags",
    [[ismrmrd.ACQ_IS_PARALLEL_CALIBRATION], [ismrmrd.ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING]],
    ids=["calibration", "calibration and imaging"],
)
def test_calibration_lines_get_their_trajectory(flags):
    assert isinstance(locate(line(1, flags=flags)), Readout)


def test_what_came_stays_as_it_was():
    item = line(1, signal(cartesian()), flags=[ismrmrd.ACQ_IS_REVERSE], discard_pre=2)
    before = item.to_bytes()
    locate(item)
    assert item.to_bytes() == before


FACTORS = {
    "cycles/fov": [1, 1],
    "cycles/voxel": 1 / MATRIX,
    "rad/voxel": 2 * np.pi / MATRIX,
    "1/m": [1 / 0.32, 1 / 0.16],
}


@pytest.mark.parametrize("unit", FACTORS)
@pytest.mark.parametrize("chosen", [True, False], ids=["set", "recognised"])
def test_every_unit_becomes_cycles_per_field_of_view(unit, chosen):
    k = cartesian(ky=0)
    item = line(0, signal(k), k * FACTORS[unit])
    opened = session(header())
    (readout,) = run([Trajectory(unit=unit if chosen else "auto")], [item], opened)
    assert_true(readout)
    np.testing.assert_allclose(readout.traj, k, atol=1e-5)
    assert f"Trajectory: taken from the stream in {unit}" in opened.history
    assert len(opened.tell.about(f"unit {unit}, recognised")) == (0 if chosen else 1)


@pytest.mark.parametrize("angle", [0, 45, 90, 200])
@pytest.mark.parametrize("scale", [0.5, 128 / 256 * 2 * np.pi, 128], ids=["cycles/voxel", "rad/voxel", "cycles/fov"])
def test_a_spoke_out_of_the_centre_tells_its_unit(angle, scale):
    radius = np.arange(64) / 64 * scale
    spoke = radius[:, None] * [np.cos(np.radians(angle)), np.sin(np.radians(angle))]
    head = header(matrix=(256, 256, 1), fov=(256, 256, 5), kind="radial")
    readout = locate(line(0, samples=64, trajectory=spoke, center_sample=0), head)
    assert np.linalg.norm(readout.traj, axis=1).max() == pytest.approx(128 * 63 / 64, rel=1e-5)


@pytest.mark.parametrize(
    ("reach", "fov"),
    [(0.6 * 128, 256), (0.3 * 128, 256), (0.02, 256), (0, 256), (2000, 256), (128, 600)],
    ids=["a little short", "short", "far too short", "all zero", "too far", "field of view near a metre"],
)
def test_units_that_are_not_certain_are_refused(reach, fov):
    head = header(matrix=(256, 256, 1), fov=(fov, fov, 5), kind="other")
    k = np.linspace(-reach, reach, 16)[:, None] * [1, 0]
    with pytest.raises(ValueError, match=rf"values go up to {reach:g}, on a matrix of 256 x 256 .* property unit"):
        locate(line(0, trajectory=k), head)


def test_a_readout_beyond_k_space_is_refused_not_wrapped():
    opened = session(header())
    gadget = Trajectory()
    run([gadget], [line(0, trajectory=cartesian())], opened)
    with pytest.raises(
        ValueError, match=r"reaches 9 cycles per field of view along x, .* 16 ends at 8.*now cycles/fov"
    ):
        list(gadget.take(line(1, trajectory=cartesian(samples=17, centre=9), samples=17)))


def test_half_a_sample_beyond_k_space_is_still_inside():
    k = cartesian() - [0.5, 0]
    np.testing.assert_allclose(locate(line(0, trajectory=k)).traj, k)


def test_a_header_that_does_not_fit_the_readout_is_refused():
    with pytest.raises(ValueError, match=r"reaches 16 cycles per field of view along x, .* 16 ends at 8"):
        locate(line(samples=32))


def test_trajectories_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="not finite"):
        locate(line(trajectory=np.full((16, 2), np.nan)))


def test_a_trajectory_of_one_column_is_refused():
    with pytest.raises(ValueError, match=r"columns kx, ky\(, kz\), got 1"):
        locate(line(trajectory=np.zeros((16, 1))))


def test_weights_beside_a_two_dimensional_trajectory_are_left_out():
    opened = session(header())
    k = cartesian()
    (readout,) = run([Trajectory()], [line(0, signal(k), np.hstack([k, np.full((16, 1), 77)]))], opened)
    assert_true(readout)
    assert len(opened.tell.about("columns beyond 2")) == 1


def test_the_source_can_be_set():
    wrong = np.zeros((16, 2))
    assert_true(locate(line(1, signal(cartesian()), wrong), source="header"))
    with pytest.raises(ValueError, match="carries no trajectory"):
        locate(line(1), source="stream")


@pytest.mark.parametrize("kind", ["epi", "other"])
def test_what_the_header_cannot_describe_must_come_in_the_stream(kind):
    with pytest.raises(ValueError, match=rf"the trajectory '{kind}' cannot be computed from the header"):
        locate(line(), header(kind=kind))


def test_stacks_get_kz_from_the_partition():
    limits = {"kspace_encoding_step_1": (0, 7, 4), "kspace_encoding_step_2": (0, 5, 3)}
    head = header(matrix=(16, 8, 6), kind="spiral", limits=limits)
    k = cartesian()
    readout = locate(line(1, trajectory=k, counters={"kspace_encode_step_2": 1}), head)
    np.testing.assert_allclose(readout.traj, np.hstack([k, np.full((16, 1), -2)]))


def test_three_dimensional_lines_have_both_steps():
    limits = {"kspace_encoding_step_1": (0, 7, 4), "kspace_encoding_step_2": (0, 5, 3)}
    head = header(matrix=(16, 8, 6), limits=limits)
    readout = locate(line(1, counters={"kspace_encode_step_2": 5}), head)
    np.testing.assert_allclose(readout.traj, np.hstack([cartesian(), np.full((16, 1), 2)]))


def test_an_encoding_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match=r"encoding_space_ref is 1, but the header describes 1 encoding"):
        locate(line(encoding_space_ref=1))


def test_each_encoding_has_its_own_matrix():
    head = header(encoding_xml(), encoding_xml(matrix=(8, 4, 1)))
    small = locate(line(0, samples=8, encoding_space_ref=1), head)
    np.testing.assert_array_equal(small.traj[:, 0], np.arange(-4, 4))
    np.testing.assert_array_equal(small.traj[:, 1], -2)


def test_a_header_without_a_grid_is_refused():
    head = header()
    head.encoding[0].encodedSpace.matrixSize.y = 0
    with pytest.raises(ValueError, match=r"encoding 0: expected an encodedSpace with a matrix .* above zero"):
        Trajectory().open(session(head))
