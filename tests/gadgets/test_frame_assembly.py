"""Sorting of readouts into frames: which lines end up together, and when they leave."""

from __future__ import annotations

import ismrmrd
import numpy as np
import pytest
import torch

from gadgets.frame import Frame
from gadgets.frame_assembly import FrameAssembly
from gadgets.mrd import NOT_IMAGING
from gadgets.trajectory import Trajectory

from scans import encoding_xml, header, line, run, session, te

LAST_IN_SLICE = ismrmrd.ACQ_LAST_IN_SLICE
LAST_IN_REPETITION = ismrmrd.ACQ_LAST_IN_REPETITION
LAST_IN_MEASUREMENT = ismrmrd.ACQ_LAST_IN_MEASUREMENT
CALIBRATION = ismrmrd.ACQ_IS_PARALLEL_CALIBRATION
BOTH = ismrmrd.ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING

FOUR = header(matrix=(16, 4, 1))


def scan(*lines):
    """Lines as (step, counters) or (step, counters, flag), numbered in the order in which they come."""
    return [
        line(step, counters=counters, flags=flags, scan_counter=number)
        for number, (step, counters, *flags) in enumerate(lines)
    ]


class Watched:
    """Sends items one by one and notes after which of them each frame left."""

    def __init__(self, items, head=FOUR, **properties):
        self.opened = session(head)
        self.left: list[tuple[object, Frame]] = []
        trajectory, assembly = Trajectory(unit="cycles/fov"), FrameAssembly(**properties)
        for gadget in (trajectory, assembly):
            gadget.open(self.opened)
        for number, item in enumerate(items):
            for readout in trajectory.take(item):
                self.left += [(number, frame) for frame in assembly.take(readout)]
        self.left += [("end", frame) for frame in assembly.finish()]
        assert not assembly._open

    @property
    def told(self):
        return self.opened.tell

    def summary(self):
        """When each frame left, which it is, and the phase encoding steps in it."""
        return [
            (
                when,
                frame.reference.idx.slice,
                frame.reference.idx.contrast,
                frame.reference.idx.repetition,
                steps(frame),
            )
            for when, frame in self.left
        ]


def steps(frame, head=FOUR) -> list[int]:
    centre = head.encoding[0].encodedSpace.matrixSize.y // 2
    return (frame.samples.trajectory[0, :, 0] + centre).int().tolist()


def frames(items, head=FOUR, **properties) -> list[Frame]:
    return [frame for _, frame in Watched(items, head, **properties).left]


def test_a_frame_holds_what_came():
    head = header(matrix=(16, 4, 1), after=te(3))
    items = scan(*[(step, {}) for step in (3, 2, 0, 1)])
    (frame,) = frames(items, head)
    assert frame.samples.kspace.dtype == torch.complex64
    assert frame.samples.kspace.shape == (2, 4, 16)
    assert frame.samples.trajectory.dtype == frame.times.dtype == torch.float32
    for shot, item in enumerate(items):
        kspace = frame.samples.kspace[:, shot].numpy()
        np.testing.assert_allclose(kspace, item.data / np.sqrt(2), rtol=1e-6)
    np.testing.assert_array_equal(frame.samples.trajectory[1, 0], np.arange(-8, 8))
    np.testing.assert_array_equal(frame.samples.trajectory[0, :, 5], [1, 0, -2, -1])
    np.testing.assert_allclose(frame.times[1], 3e-3 + 5e-6 * np.arange(-8, 8), atol=1e-9)
    assert frame.space.shape == (4, 16)
    assert frame.reference.scan_counter == 1  # step 2 is the central one
    assert frame.calibration is None
    assert frame.history[-1] == "FrameAssembly: 4 shots of 16 samples, 1 average(s)"
    assert "Trajectory: computed from the header (cartesian)" in frame.history


def test_unit_noise_per_real_channel_becomes_unit_complex_noise():
    rng = np.random.default_rng(0)
    items = [
        line(step, rng.standard_normal((4, 16)) + 1j * rng.standard_normal((4, 16)), counters={"repetition": r})
        for r in range(60)
        for step in range(4)
    ]
    variance = torch.stack([frame.samples.kspace.abs().square().mean() for frame in frames(items)]).mean()
    assert variance.item() == pytest.approx(1, abs=0.02)


def test_three_dimensional_frames():
    limits = {"kspace_encoding_step_1": (0, 3, 2), "kspace_encoding_step_2": (0, 2, 1)}
    head = header(matrix=(16, 4, 3), limits=limits)
    items = scan(*[(step, {"kspace_encode_step_2": z}) for z in range(3) for step in range(4)], (0, {"repetition": 1}))
    watched = Watched(items, head)
    (when, frame), _ = watched.left
    assert when == 11
    assert frame.space.shape == (3, 4, 16)
    np.testing.assert_array_equal(frame.samples.trajectory[0, :, 0], np.repeat([-1, 0, 1], 4))


# When a frame ends


def test_counters_end_a_frame_without_any_flag():
    watched = Watched(scan(*[(step, {"slice": s}) for s in range(2) for step in range(4)]))
    assert watched.summary() == [(3, 0, 0, 0, [0, 1, 2, 3]), (7, 1, 0, 0, [0, 1, 2, 3])]


def test_interleaved_slices_end_one_after_the_other():
    watched = Watched(scan(*[(step, {"slice": s}) for step in range(4) for s in range(2)]))
    assert watched.summary() == [(6, 0, 0, 0, [0, 1, 2, 3]), (7, 1, 0, 0, [0, 1, 2, 3])]


def test_an_undersampled_frame_ends_on_its_flag_when_the_next_begins():
    items = scan(
        (0, {"slice": 0}), (2, {"slice": 0}, LAST_IN_SLICE), (0, {"slice": 1}), (2, {"slice": 1}, LAST_IN_SLICE)
    )
    assert Watched(items).summary() == [(2, 0, 0, 0, [0, 2]), ("end", 1, 0, 0, [0, 2])]


def test_a_flag_before_the_last_line_loses_nothing():
    items = scan((0, {}), (3, {}, LAST_IN_SLICE), (1, {}), (2, {}), (0, {"slice": 1}))
    watched = Watched(items)
    assert watched.summary()[0] == (3, 0, 0, 0, [0, 3, 1, 2])
    assert not watched.told.about("after its image had been sent")


def test_an_early_flag_in_an_undersampled_interleaved_scan_loses_nothing():
    passes = [(0, []), (3, [LAST_IN_SLICE]), (1, [])]
    items = scan(*[(step, {"slice": s}, *flags) for step, flags in passes for s in (0, 1)])
    assert [entry[-1] for entry in Watched(items).summary()] == [[0, 3, 1], [0, 3, 1]]


def test_a_newer_repetition_ends_an_undersampled_frame_without_flags():
    items = scan(*[(step, {"repetition": r}) for r in range(3) for step in (0, 2)])
    assert Watched(items).summary() == [(2, 0, 0, 0, [0, 2]), (4, 0, 0, 1, [0, 2]), ("end", 0, 0, 2, [0, 2])]


def test_the_end_of_the_stream_ends_every_frame():
    items = scan((0, {"slice": 0}), (0, {"slice": 1}), (1, {"slice": 0}))
    assert Watched(items).summary() == [("end", 0, 0, 0, [0, 1]), ("end", 1, 0, 0, [0])]


def test_the_last_flag_of_an_echo_train_holds_for_all_its_echoes():
    items = scan(
        *[(step, {"contrast": c}) for step in (0, 2) for c in (0, 1)],
        (3, {"contrast": 0}),
        (3, {"contrast": 1}, LAST_IN_SLICE),
        (0, {"slice": 1}),
    )
    assert Watched(items).summary()[:2] == [(6, 0, 0, 0, [0, 2, 3]), (6, 0, 1, 0, [0, 2, 3])]


def test_the_flag_of_the_first_echo_does_not_cut_off_the_others():
    flagged = [(3, {"contrast": c}, LAST_IN_SLICE) for c in (0, 1, 2)]
    items = scan(*[(0, {"contrast": c}) for c in (0, 1, 2)], *flagged)
    assert [entry[-1] for entry in Watched(items).summary()] == [[0, 3]] * 3
    assert [entry[-1] for entry in Watched(items, ends="flags").summary()] == [[0, 3]] * 3


@pytest.mark.parametrize(("flag", "ended"), [(LAST_IN_REPETITION, 3), (LAST_IN_MEASUREMENT, 3), (LAST_IN_SLICE, 2)])
def test_flags_alone(flag, ended):
    first = [(step, {"slice": s}) for step in (0, 1) for s in (0, 1)]
    items = scan(*first, (2, {"slice": 1}, flag), (3, {"slice": 1, "repetition": 1}))
    left = Watched(items, ends="flags").summary()
    assert [when for when, *_ in left].count(4) == ended - 1
    assert len(left) == 3


def test_the_end_of_a_repetition_does_not_end_the_next():
    items = scan((0, {}), (0, {"repetition": 1}), (1, {}, LAST_IN_REPETITION), (1, {"repetition": 1}))
    assert Watched(items, ends="flags").summary() == [(2, 0, 0, 0, [0, 1]), ("end", 0, 0, 1, [0, 1])]


def test_flags_alone_do_not_ask_the_counters():
    items = scan(*[(step, {}) for step in range(4)], (1, {}), (2, {}, LAST_IN_SLICE))
    assert Watched(items, ends="flags").summary() == [(5, 0, 0, 0, [0, 1, 2, 3, 1, 2])]


def test_counters_alone_do_not_ask_the_flags():
    items = scan((0, {}, LAST_IN_SLICE), (1, {"slice": 1}), (1, {}), (2, {}), (3, {}))
    assert Watched(items, ends="counters").summary() == [(4, 0, 0, 0, [0, 1, 2, 3]), ("end", 1, 0, 0, [1])]


def test_nothing_but_the_end_of_the_stream():
    items = scan(*[(step, {"repetition": r}, LAST_IN_SLICE) for r in range(2) for step in range(4)])
    assert [when for when, *_ in Watched(items, ends="stream").summary()] == ["end", "end"]


def test_single_shots_without_limits_worth_the_name():
    # Limits of 0 to 0 are often just not filled in.
    head = header(matrix=(16, 4, 1), limits={"kspace_encoding_step_1": (0, 0, 0)})
    watched = Watched(scan(*[(0, {"repetition": r}) for r in range(3)]), head)
    assert [when for when, *_ in watched.summary()] == [1, 2, "end"]
    flagged = Watched(scan(*[(0, {"repetition": r}, LAST_IN_SLICE) for r in range(3)]), head)
    assert [when for when, *_ in flagged.summary()] == [0, 1, 2]


def test_a_late_line_makes_a_further_frame():
    items = scan(*[(step, {}) for step in range(4)], (1, {}), (2, {}))
    watched = Watched(items)
    assert watched.summary() == [(3, 0, 0, 0, [0, 1, 2, 3]), ("end", 0, 0, 0, [1, 2])]
    assert len(watched.told.about("slice 0, contrast 0, repetition 0 came after its image had been sent")) == 1


def test_memory_is_bounded_by_the_open_frames():
    trajectory, assembly = Trajectory(), FrameAssembly()
    opened = session(FOUR)
    for gadget in (trajectory, assembly):
        gadget.open(opened)
    for repetition in range(50):
        for item in scan(
            *[(step, {"slice": s, "repetition": repetition}, BOTH) for step in range(4) for s in range(2)]
        ):
            for readout in trajectory.take(item):
                list(assembly.take(readout))
                assert len(assembly._open) <= 2
                kept = assembly._calibration._lines.values()
                assert sum(len(lines) for by_repetition in kept for lines in by_repetition.values()) <= 16


# What belongs together


@pytest.mark.parametrize("counter", ["slice", "contrast", "repetition", "set", "phase"])
def test_each_of_these_counters_makes_frames(counter):
    items = scan(*[(step, {counter: value}) for value in range(2) for step in range(4)])
    assert len(frames(items)) == 2


@pytest.mark.parametrize("counter", ["segment", "user"])
def test_these_counters_make_no_frames(counter):
    items = scan(*[(step, {}) for step in range(4)])
    for number, item in enumerate(items):
        if counter == "user":
            item.idx.user[5] = number  # converters of Siemens data put other things there
        else:
            item.idx.segment = number
    assert [steps(frame) for frame in frames(items)] == [[0, 1, 2, 3]]


def averages(count, limited=True):
    limits = {"kspace_encoding_step_1": (0, 3, 2)} | ({"average": (0, count - 1, 0)} if limited else {})
    return header(matrix=(16, 4, 1), limits=limits)


def test_averages_are_further_shots_of_one_frame():
    items = scan(*[(step, {"average": a}, LAST_IN_SLICE) for a in range(2) for step in range(4)])
    for ends in ("auto", "counters"):
        assert Watched(items, averages(2), ends=ends).summary() == [(7, 0, 0, 0, [0, 1, 2, 3] * 2)]


def test_flags_of_an_average_wait_for_the_averages_announced():
    one = [(0, {}), (2, {}, LAST_IN_SLICE)]
    items = scan(*[(step, {**c, "average": a, "slice": s}, *f) for a in (0, 1) for s in (0, 1) for step, c, *f in one])
    for ends in ("auto", "flags"):
        assert [entry[-1] for entry in Watched(items, averages(2), ends=ends).summary()] == [[0, 2, 0, 2]] * 2


def test_averages_in_the_inner_loop_need_no_announcement():
    items = scan(*[(step, {"average": a}) for step in range(4) for a in range(2)])
    assert Watched(items, averages(2, limited=False)).summary() == [(7, 0, 0, 0, [0, 0, 1, 1, 2, 2, 3, 3])]


def test_a_frame_of_combined_averages_is_of_none_of_them():
    """The most central line may be of any average; what compares frames must not see that."""
    items = scan(*[(step, {"average": step // 2}) for step in range(4)])  # step 2 is the central one
    for treated, averages in (("combine", [0]), ("separate", [0, 1])):
        assert [frame.reference.idx.average for frame in frames(items, averages=treated, ends="stream")] == averages


def test_averages_can_be_images_each():
    items = scan(*[(step, {"average": a}) for a in range(2) for step in range(4)])
    watched = Watched(items, averages(2), averages="separate")
    assert watched.summary() == [(3, 0, 0, 0, [0, 1, 2, 3]), (7, 0, 0, 0, [0, 1, 2, 3])]


# Calibration


def test_calibration_only_lines_stand_beside_the_image():
    items = scan((1, {}, CALIBRATION), (0, {}), (2, {}, BOTH), (3, {}, CALIBRATION))
    (frame,) = frames(items)
    assert steps(frame) == [0, 2]
    assert (frame.calibration.trajectory[0, :, 0] + 2).tolist() == [1, 2, 3]
    np.testing.assert_allclose(frame.calibration.kspace[:, 0].numpy(), items[0].data / np.sqrt(2), rtol=1e-6)


def test_lines_with_both_calibration_flags_are_imaging_too():
    items = scan((0, {}), (1, {}, CALIBRATION, BOTH), (2, {}), (3, {}))
    (frame,) = frames(items)
    assert steps(frame) == [0, 1, 2, 3]
    assert frame.calibration.kspace.shape[1] == 1


def test_calibration_in_its_own_encoding_keeps_its_places_in_the_patient():
    imaging, small = encoding_xml(matrix=(16, 4, 1)), encoding_xml(matrix=(8, 4, 1), fov=(640, 80, 5))
    head = header(imaging, small)
    calibration = [line(step, samples=8, flags=[CALIBRATION], encoding_space_ref=1) for step in range(4)]
    (frame,) = frames([*calibration, *scan(*[(step, {}) for step in range(4)])], head)
    # The calibration's field of view is twice as wide along x (320 mm) and half as wide along y (160 mm).
    np.testing.assert_allclose(frame.calibration.trajectory[1, 0], np.arange(-4, 4) / 2)
    np.testing.assert_allclose(frame.calibration.trajectory[0, :, 0], np.arange(-2, 2) * 2)
    assert frame.samples.kspace.shape[1] == 4


def test_later_repetitions_use_the_calibration_before_them():
    items = scan(
        (1, {}, CALIBRATION),
        (2, {}, CALIBRATION),
        *[(step, {"repetition": r}) for r in range(2) for step in (0, 2)],
        (3, {"repetition": 2}, CALIBRATION),
        *[(step, {"repetition": 2}) for step in (0, 2)],
    )
    used = [(frame.calibration.trajectory[0, :, 0] + 2).tolist() for frame in frames(items)]
    assert used == [[1, 2], [1, 2], [3]]


def test_no_frame_uses_the_calibration_of_a_later_repetition():
    items = scan(
        *[(step, {"repetition": r}, flag) for r in range(2) for step, flag in [(1 + r, CALIBRATION), (2 * r, BOTH)]]
    )
    used = [(frame.calibration.trajectory[0, :, 0] + 2).tolist() for frame in frames(items, ends="stream")]
    assert used == [[1, 0], [2, 2]]


@pytest.mark.parametrize("counter", ["contrast", "set", "phase"])
def test_calibration_acquired_once_serves_all_contrasts_sets_and_phases(counter):
    items = scan((1, {}, CALIBRATION), *[(step, {counter: value}) for value in range(2) for step in range(4)])
    assert all(frame.calibration is not None for frame in frames(items))


@pytest.mark.parametrize("counter", ["contrast", "set", "phase"])
def test_a_frame_prefers_the_calibration_of_its_own_kind(counter):
    items = scan(
        *[(1 + value, {counter: value}, CALIBRATION) for value in range(2)],
        *[(step, {counter: value}) for value in range(2) for step in range(4)],
    )
    used = [(frame.calibration.trajectory[0, :, 0] + 2).tolist() for frame in frames(items)]
    assert used == [[1], [2]]


def test_calibration_lines_of_two_encodings_are_not_mixed():
    imaging, small = encoding_xml(matrix=(16, 4, 1)), encoding_xml(matrix=(8, 4, 1), fov=(320, 160, 5))
    calibration = [line(step, samples=8, flags=[BOTH], encoding_space_ref=1) for step in range(4)]
    both = scan(*[(step, {}, BOTH) for step in range(4)])
    found = frames([*calibration, *both], header(imaging, small))
    assert [frame.calibration.kspace.shape[2] for frame in found] == [8, 16]


def test_calibration_belongs_to_its_slice():
    items = scan((1, {"slice": 1}, CALIBRATION), *[(step, {"slice": s}) for s in range(2) for step in range(4)])
    first, second = frames(items)
    assert first.calibration is None
    assert second.calibration is not None


@pytest.mark.parametrize("flag", NOT_IMAGING, ids=NOT_IMAGING.values())
def test_lines_that_make_no_image_are_left_out_and_counted(flag):
    items = scan((0, {}, flag), (0, {}), (1, {}, flag, BOTH), (1, {}), (2, {}), (3, {}, flag), (3, {}))
    watched = Watched(items)
    assert [entry[-1] for entry in watched.summary()] == [[0, 1, 2, 3]]
    assert len(watched.told.about(f"left out lines that make no image: 3 {NOT_IMAGING[flag]}")) == 1


def test_a_scan_without_imaging_lines_says_so():
    watched = Watched(scan((0, {}, ismrmrd.ACQ_IS_NOISE_MEASUREMENT)))
    assert watched.left == []
    assert watched.told.about("no imaging line came")


# What is refused


def test_readouts_of_different_length_are_refused():
    items = [line(0), line(1, samples=12)]
    with pytest.raises(
        ValueError, match=r"acquisition 0 has 2 channels, 16 samples, .* acquisition 1 has 2 channels, 12 samples"
    ):
        frames(items)


def test_readouts_with_other_channels_are_refused():
    with pytest.raises(ValueError, match=r"acquisition 0 has 2 channels, .* acquisition 1 has 3 channels"):
        frames([line(0), line(1, channels=3)])


@pytest.mark.parametrize("flag", [None, CALIBRATION])
def test_lines_that_repeat_without_end_are_refused_before_they_fill_the_memory(flag):
    taken = []

    def lines():
        for number in range(100):
            taken.append(number)
            yield line(number % 2, samples=1 << 10, flags=(flag,) if flag else ())

    head = header(matrix=(1 << 10, 4, 1))
    with pytest.raises(MemoryError, match=r"property memory_limit of FrameAssembly allows, 0.0005 GiB; one image has"):
        frames(lines(), head, memory_limit=0.0005)
    each = 1024 * (2 * 8 + 2 * 4 + 4)
    assert (len(taken) - 1) * each < 0.0005 * (1 << 30) < len(taken) * 1.1 * each


def test_what_has_become_images_counts_no_more():
    with_calibration = [
        item
        for repetition in range(40)
        for item in scan(
            *((step, {"repetition": repetition}, CALIBRATION) for step in range(4)),
            *((step, {"repetition": repetition}) for step in range(4)),
        )
    ]
    assert len(frames(with_calibration, memory_limit=30 * 3000 / (1 << 30))) == 40


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_samples_that_are_not_finite_are_refused(value):
    with pytest.raises(ValueError, match="not finite"):
        frames([line(0, np.full((2, 16), value))])


def test_a_frame_of_zeros_is_announced():
    watched = Watched([line(step, np.zeros((2, 16))) for step in range(4)])
    assert len(watched.left) == 1
    assert watched.told.about("all samples of slice 0, contrast 0, repetition 0 are zero")


def test_items_of_other_types_pass():
    waveform, image = ismrmrd.Waveform(), ismrmrd.Image()
    assert run([Trajectory(), FrameAssembly()], [waveform, image], session(FOUR)) == [waveform, image]


@pytest.mark.parametrize(("lines", "told"), [(4, 0), (3, 1)])
def test_missing_lines_of_a_scan_that_should_be_complete_are_told(lines, told):
    watched = Watched(scan(*[(step, {}) for step in range(lines)]))
    assert len(watched.left) == 1
    assert len(watched.told.about(f"has {lines} of the 4 lines that the header announces")) == told


def test_data_that_end_within_a_frame_are_told():
    whole = [(step, {"repetition": repetition}) for repetition in range(2) for step in range(4)]
    assert not Watched(scan(*whole)).told.about("the data end within")
    (told,) = Watched(scan(*whole[:-1])).told.about("the data end within")
    assert "slice 0, contrast 0, repetition 1, after 3 readouts where others have 4" in told
