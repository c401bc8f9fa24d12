"""Field maps of frames: from their echoes, and from what an earlier session stored."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from functools import cache
from pathlib import Path

import ismrmrd
import numpy as np
import pytest
import torch

from gadgets import field_map
from gadgets.coil_compression import CoilCompression
from gadgets.coil_maps import CoilMaps
from gadgets.field_map import FieldMap
from gadgets.field_map_file import FieldMapFile
from gadgets.frame import Frame, SeriesImage
from gadgets.frame_assembly import FrameAssembly
from gadgets.image_export import ImageExport
from gadgets.stored import FIELD_MAP, pseudonym, stored_at
from gadgets.trajectory import Trajectory

from phantom_scan import SIZE, SPACE, Phantom, X, Y, cartesian, head, signal, spokes
from scans import header, run, session, te

TIMES = (4.0, 9.0, 15.0)
FIELD = 90 * X - 70 * Y + 200 * np.exp(-((X - 0.1) ** 2 + Y**2) / 0.02)
BRIGHT = np.abs(head()) > 0.3
ENCODING = {"matrix": (SIZE, SIZE, 1), "fov": (240, 240, 5)}


@cache
def echo(time_ms) -> Phantom:
    return phantom(time_ms)


def phantom(time_ms, field=FIELD, trajectory=None, **more) -> Phantom:
    image = head() * np.exp(-2j * np.pi * field * time_ms * 1e-3)
    return Phantom.scanned(cartesian() if trajectory is None else trajectory, image=image, **more)


def frames(times=TIMES, reference=None, **more) -> list[Frame]:
    """Echoes of one slice."""
    result = []
    for contrast, time in enumerate(times):
        frame = (phantom(time, **more) if more else echo(time)).frame(with_maps=True)
        frame.reference = copy.copy(reference or ismrmrd.AcquisitionHeader())
        frame.reference.idx.contrast = contrast
        result.append(frame)
    return result


def of_slice(number, repetition=0) -> ismrmrd.AcquisitionHeader:
    reference = ismrmrd.AcquisitionHeader()
    reference.idx.slice, reference.idx.repetition = number, repetition
    reference.position = (10.0, 20.0, 7.0 * number)
    reference.read_dir, reference.phase_dir, reference.slice_dir = (0, 1, 0), (-1, 0, 0), (0, 0, 1)
    return reference


def head_of(own="", depends=(), times=TIMES, kind="fieldmap"):
    """A header of echoes with a measurementID, and measurements on which it depends."""
    parts = f"<measurementID>{own}</measurementID>" if own else ""
    parts += "<patientPosition>HFS</patientPosition>" + "".join(
        f"<measurementDependency><dependencyType>{kind}</dependencyType><measurementID>{name}</measurementID>"
        "</measurementDependency>"
        for name in depends
    )
    before = f"<measurementInformation>{parts}</measurementInformation>"
    return header(before=before, after=te(*times), **ENCODING)


def mapped(items, opened=None, **properties):
    return run([FieldMap(**{"source": "echoes", **properties})], items, opened or session(head_of()))


def misfit(field, truth=FIELD, where=BRIGHT) -> float:
    return float(np.sqrt(np.mean((np.asarray(field) - truth)[where] ** 2)))


# From echoes
@pytest.mark.parametrize(
    ("trajectory", "limit"),
    [(cartesian(), 0.02), (cartesian(range(0, SIZE, 2)), 1.0), (spokes(), 2.0)],
    ids=["cartesian", "every second line", "radial"],
)
def test_the_field_comes_from_the_echoes_with_its_sign(trajectory, limit):
    result, *after = mapped(frames(trajectory=trajectory), smoothing=0.0)
    assert isinstance(result, SeriesImage)
    assert result.kind == "field_map"
    assert misfit(result.data) < limit
    assert misfit(-result.data) > 20
    assert len(after) == 3
    assert all(frame.field_map is result.data for frame in after)


def test_smoothing_halves_the_noise_and_continues_the_map():
    noisy = frames(noise=0.1)
    raw, *_ = mapped(noisy, smoothing=0.0)
    smooth, *_ = mapped(noisy)
    assert misfit(smooth.data) < 0.5 * misfit(raw.data)
    around = (np.abs(head()) < 0.05) & (np.hypot(X / 0.34, Y / 0.4) < 1.25)
    assert not raw.data[np.abs(head()) < 1e-3].any()
    assert misfit(smooth.data, where=around) < 15


def test_frames_wait_for_their_echoes_and_leave_in_order():
    slices = [frames(reference=of_slice(number), times=TIMES) for number in range(2)]
    arrived = [echo for echoes in zip(*slices, strict=True) for echo in echoes]
    gadget = FieldMap(source="echoes")
    gadget.open(session(head_of()))
    left = [list(gadget.take(frame)) for frame in arrived]
    assert [len(items) for items in left] == [0, 0, 0, 0, 4, 4]
    for items, own in zip(left[4:], slices, strict=True):
        assert items[0].frame is own[0]
        assert all(a is b for a, b in zip(items[1:], own, strict=True))


def test_repetitions_have_maps_of_their_own():
    again = frames(reference=of_slice(0, 1), field=FIELD + 30)
    first, *_, second, _, _, _ = mapped([*frames(reference=of_slice(0)), *again], smoothing=0.0)
    assert misfit(second.data - first.data, 30 + 0 * FIELD) < 0.5


def test_the_first_echoes_may_be_enough():
    result, *after = mapped(frames(), echoes=2, smoothing=0.0)
    assert misfit(result.data) < 0.02
    assert len(after) == 3
    assert "from echoes at 4, 9 ms" in after[2].history[-1]
    assert "multiples of 200 Hz left open" in after[2].history[-1]


def test_the_history_says_how_the_map_was_made():
    result, *after = mapped(frames())
    for frame in after:
        assert len(frame.history) == 1
        assert frame.history[0].startswith("FieldMap: from echoes at 4, 9, 15 ms, ")
        assert "smoothed over 1 pixels" in frame.history[0]
        assert "left open" not in frame.history[0]
    low, middle, high = np.percentile(result.data[BRIGHT], [1, 50, 99])
    stated = [float(word) for word in after[0].history[0].replace(",", "").split() if "." in word][-3:]
    np.testing.assert_allclose(stated, [low, middle, high], atol=15)


def test_two_of_three_echoes_at_the_end_make_a_map():
    opened = session(head_of())
    result, *after = mapped(frames()[:2], opened)
    assert misfit(result.data) < 3
    assert len(after) == 2
    (said,) = opened.tell.about("echoes are missing")
    assert "of 1 image(s)" in said
    assert "slice 0, repetition 0 has 2 of the 3 that the header announces" in said


def test_no_signal_gives_an_empty_map():
    empty = frames()
    for frame in empty:
        frame.samples.kspace.zero_()
    result, *_ = mapped(empty)
    assert not result.data.any()
    assert empty[0].history[-1].endswith("no signal")


def test_one_echo_is_refused():
    with pytest.raises(ValueError, match="two echoes or more, but all that came is slice 0, contrast 0, repetition 0"):
        mapped(frames()[:1])


def test_a_header_without_echoes_is_refused():
    with pytest.raises(ValueError, match="needs a header that announces them"):
        mapped([], session(head_of(times=(4.0,))))


def test_contrasts_without_an_echo_time_are_refused():
    limits = {"kspace_encoding_step_1": (0, SIZE - 1, SIZE // 2), "contrast": (0, 2, 0)}
    with pytest.raises(ValueError, match=r"no echo time \(sequenceParameters.TE\) for slice 0, contrast 1"):
        mapped(frames(), session(header(after=te(4.0), limits=limits, **ENCODING)))


def test_frames_wait_as_long_as_there_is_memory(monkeypatch):
    size = frames()[0].samples.kspace.nbytes
    monkeypatch.setattr(field_map, "free_memory", lambda device: 8 * size)
    first_echoes = [frames(TIMES[:1], of_slice(number))[0] for number in range(8)]
    with pytest.raises(MemoryError, match="announces 3 contrasts, slice 3, repetition 0 has 1 so far"):
        mapped(first_echoes)


def test_all_slices_of_an_echo_may_come_before_the_next_echo():
    """As many as 400; the frames share their samples here."""
    arrived = []
    for echo in frames(times=(4.0, 9.0)):
        for number in range(400):
            arrived.append(copy.copy(echo))
            arrived[-1].reference = of_slice(number)
            arrived[-1].reference.idx.contrast = echo.reference.idx.contrast
    gadget = FieldMap(source="echoes")
    gadget.open(session(head_of(times=(4.0, 9.0))))
    left = [list(gadget.take(frame)) for frame in arrived[:401]]
    assert [len(items) for items in left] == [0] * 400 + [3]


@pytest.mark.parametrize(("times", "listed"), [
    ((0.004, 0.009, 0.015), "0.004, 0.009, 0.015 ms"), ((4000.0, 9000.0, 15000.0), "4000, 9000, 15000 ms"),
    ((4.0, 9.0, math.inf), "4, 9, inf ms"), ((4.0, 4.0, 9.0), "4, 4, 9 ms"),
], ids=["seconds", "microseconds", "infinite", "twice"])  # fmt: skip
def test_echo_times_that_are_not_in_milliseconds_are_refused(times, listed):
    opened = session(head_of())
    opened.header.sequenceParameters.TE = list(times)
    with pytest.raises(ValueError, match=f"0.05 to 100 ms from echo to echo, got echo times of {listed}; MRD gives TE"):
        mapped(frames(), opened)


# In a chain
def lines(field=FIELD, coils=6):
    """Of three contrasts, one after the other."""
    result = []
    for contrast, time in enumerate(TIMES):
        last = len(result)
        scan = phantom(time, field, number=coils)
        result += scan.lines(counters={"contrast": contrast}, position=(1, 2, 3), read_dir=(1, 0, 0))
        for item in result[last:]:
            item.phase_dir, item.slice_dir = (0, 1, 0), (0, 0, 1)
    return result


def chain(*more):
    return [Trajectory(), FrameAssembly(), CoilCompression(), CoilMaps(), *more]


def decaying(times=(3.0, 9.0), field=0.3 * FIELD) -> list[Frame]:
    """Echoes whose right half decays fast, so that each echo has virtual coils of its own."""
    decay = np.where(X > 0, 200.0, 5.0)
    result = []
    for contrast, time in enumerate(times):
        image = head() * np.exp(-(2j * np.pi * field + decay) * time * 1e-3)
        frame = Phantom.scanned(cartesian(), number=8, image=image).frame()
        frame.reference.idx.contrast = contrast
        result.append(frame)
    return result


@pytest.mark.parametrize("before", [[CoilCompression()], []], ids=["compressed", "all coils"])
@pytest.mark.parametrize("method", ["espirit", "walsh"])
def test_each_echo_may_have_virtual_coils_and_maps_of_its_own(before, method):
    """Walsh's maps carry the phase of the coils they come from, and even the number of coils differs."""
    gadgets = [*before, CoilMaps(method=method), FieldMap(source="echoes", smoothing=0.0)]
    result, first, second = run(gadgets, decaying(), session(head_of(times=(3.0, 9.0))))
    assert (len(first.coil_maps) != len(second.coil_maps)) == bool(before)
    assert misfit(result.data, 0.3 * FIELD, BRIGHT & (result.data != 0).numpy()) < 0.15


def test_coils_and_maps_do_not_depend_on_the_contrasts_before():
    """A first contrast may be nulled, as by an inversion, and tells nothing about the coils."""
    bright = decaying()[1]
    nulled = Phantom.scanned(cartesian(), number=8, noise=1.0, image=1e-3 * head()).frame()
    gadgets = [CoilCompression(), CoilMaps()]
    opened = head_of(times=(3.0, 9.0))
    _, after = run(gadgets, [nulled, copy.copy(bright)], session(opened))
    (alone,) = run(gadgets, [copy.copy(bright)], session(opened))
    assert torch.equal(after.samples.kspace, alone.samples.kspace)
    assert torch.equal(after.coil_maps, alone.coil_maps)


def test_echoes_of_other_receivers_are_refused():
    items = [*frames(times=(4.0,)), *frames(times=(4.0, 9.0), number=3)[1:]]
    with pytest.raises(ValueError, match="contrast 0, repetition 0 has 4 and slice 0, contrast 1, repetition 0 has 3"):
        mapped(items, session(head_of(times=(4.0, 9.0))))


def test_averages_that_are_combined_do_not_part_the_echoes():
    items = lines()
    for number, item in enumerate(items):
        item.idx.average = number % 5 == 0
    result, *after = run(chain(FieldMap(source="echoes", smoothing=0.0)), items, session(head_of()))
    assert misfit(result.data) < 0.5
    assert len(after) == 3


def test_the_map_leaves_as_a_quantitative_series():
    image = run([*chain(FieldMap(source="echoes", smoothing=0.0)), ImageExport()], lines(), session(head_of()))[0]
    assert isinstance(image, ismrmrd.Image)
    assert (image.image_series_index, image.image_type, image.data.dtype) == (3, ismrmrd.IMTYPE_REAL, np.float32)
    assert image.meta["DataRole"] == "Quantitative"
    assert any(line.startswith("FieldMap: from echoes") for line in image.meta["ImageProcessingHistory"])
    assert misfit(image.data[0, 0]) < 0.5


# From an earlier measurement
def stored(tmp_path):
    """Runs a session that measures the field of slices 0 and 1."""
    items = [echo for number in range(2) for echo in frames(reference=of_slice(number), field=FIELD + 20 * number)]
    return mapped(items, session(head_of("b0 scan"), state_folder=tmp_path), smoothing=0.0)


@pytest.mark.parametrize("kind", ["fieldmap", "B0", "FieldMap"])
def test_a_stored_map_serves_the_measurements_that_depend_on_it(tmp_path, kind):
    measured = [item for item in stored(tmp_path) if isinstance(item, SeriesImage)]
    later = session(head_of("image", ["b0 scan"], times=(4.0,), kind=kind), state_folder=tmp_path)
    frame = frames(reference=of_slice(1))[0]
    frame.reference.idx.slice = 0  # only its position says which slice it is
    (result,) = run([FieldMap()], [frame], later)
    assert result is frame
    torch.testing.assert_close(frame.field_map, measured[1].data, atol=1e-3, rtol=0)
    assert frame.history[0].startswith(f"FieldMap: from measurement {pseudonym('b0 scan')}, ")
    assert not later.tell


def test_nothing_is_left_beside_a_stored_map(tmp_path):
    for _ in range(2):
        stored(tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [stored_at(tmp_path, FIELD_MAP, "b0 scan")]


def test_the_last_repetition_is_what_is_stored(tmp_path):
    items = [*frames(reference=of_slice(0)), *frames(reference=of_slice(0, 1), field=FIELD + 25)]
    mapped(items, session(head_of("b0 scan"), state_folder=tmp_path), smoothing=0.0)
    with np.load(stored_at(tmp_path, FIELD_MAP, "b0 scan")) as file:
        assert file["field_map_hz"].shape == (1, SIZE, SIZE)
        assert misfit(file["field_map_hz"][0], FIELD + 25) < 0.02


def test_a_missing_map_of_a_dependency_is_told(tmp_path):
    opened = session(head_of("image", ["gone"]), state_folder=tmp_path)
    (frame,) = run([FieldMap()], frames()[:1], opened)
    assert frame.field_map is None
    assert opened.tell.about(
        f"The field map of measurement {pseudonym('gone')}, on which this one depends, is not stored here"
    )


@pytest.mark.parametrize(("source", "depends"), [("auto", []), ("none", ["b0 scan"])])
def test_without_a_map_frames_pass_as_they_are(tmp_path, source, depends):
    stored(tmp_path)
    opened = session(head_of("image", depends), state_folder=tmp_path)
    items = frames()
    after = run([FieldMap(source=source)], items, opened)
    assert all(a is b for a, b in zip(after, items, strict=True))
    assert all(frame.field_map is None and not frame.history for frame in items)
    assert not opened.tell


def test_a_frame_beside_the_stored_slices_is_refused(tmp_path):
    stored(tmp_path)
    opened = session(head_of("image", ["b0 scan"]), state_folder=tmp_path)
    with pytest.raises(ValueError, match=r"slice 5, .* at \(10.0, 20.0, 35.0\) mm lies outside of the field map"):
        run([FieldMap()], frames(reference=of_slice(5))[:1], opened)


@pytest.mark.parametrize("name", ["../../../etc/passwd", "..", "/etc/passwd", "a" * 5000, "con\x7f:*?"])
def test_ids_from_the_network_stay_in_the_state_folder(tmp_path, name):
    place = stored_at(tmp_path, FIELD_MAP, name)
    assert place.resolve().parent == (tmp_path / "field_map").resolve()
    assert len(place.name) < 100


def test_a_single_echo_at_the_end_does_not_take_the_other_maps_along(tmp_path):
    items = [frames(reference=of_slice(2))[0], *frames(reference=of_slice(0)), *frames(reference=of_slice(1))[:2]]
    with pytest.raises(ValueError, match="all that came is slice 2, contrast 0"):
        mapped(items, session(head_of("b0 scan"), state_folder=tmp_path))
    with np.load(stored_at(tmp_path, FIELD_MAP, "b0 scan")) as file:
        assert len(file["field_map_hz"]) == 2


def test_a_slice_that_moves_is_stored_where_it_was_last(tmp_path):
    items = []
    for repetition, distance in enumerate((0.0, 0.5, 1.2)):
        reference = of_slice(0, repetition)
        reference.position = (10.0, 20.0, distance)
        items += frames(reference=reference, field=FIELD + 25 * repetition)
    mapped(items, session(head_of("b0 scan"), state_folder=tmp_path), smoothing=0.0)
    with np.load(stored_at(tmp_path, FIELD_MAP, "b0 scan")) as file:
        assert len(file["field_map_hz"]) == 1
        assert misfit(file["field_map_hz"][0], FIELD + 50) < 0.02


@pytest.mark.parametrize(("properties", "message"), [
    ({"file": Path("map.npz")}, "file is set, but has no effect with source echoes"),
    ({"file": Path("map.npz"), "source": "none"}, "file is set, but has no effect with source none"),
    ({"offset": 100.0}, "offset is set, but has no effect with source echoes"),
    ({"unit": "ppm", "source": "auto"}, "unit is set, but has no effect without a file"),
    ({"field_sign": "+", "source": "auto"}, "field_sign is set, but has no effect without a file"),
    ({"array": "b0"}, "array is set, but has no effect without a file"),
    ({"echoes": 2, "source": "auto"}, "echoes is set, but has no effect with source auto"),
    ({"smoothing": 0.0, "source": "auto"}, "smoothing is set, but has no effect with source auto"),
    ({"threshold": 0.5, "source": "none"}, "threshold is set, but has no effect with source none"),
    ({"echoes": 7}, "a map from 7 echoes is wanted, but the header announces 3"),
])  # fmt: skip
def test_settings_without_effect_are_refused(properties, message):
    with pytest.raises(ValueError, match=message):
        mapped([], **properties)


def test_the_phantom_has_the_field_of_the_test():
    """The echoes are made as the field map is defined: signal ~ exp(-2 pi i psi t)."""
    data = phantom(4.0).data[SIZE // 2]
    expected = signal(phantom(0.0).maps * head() * np.exp(-2j * np.pi * FIELD * 4e-3), cartesian()[SIZE // 2])
    np.testing.assert_allclose(data, expected)
    assert SPACE.shape == FIELD.shape


GPU, CPU = torch.device("cuda", 0), torch.device("cpu")


@pytest.fixture
def full_gpu(monkeypatch) -> None:
    """Frames say that they are on a GPU, whose memory suffices for nothing that is done there."""

    def on(frame: Frame, device: torch.device) -> Frame:
        moved = replace(frame)
        moved.said = device
        return moved

    def image(gadget, frame, first, image=FieldMap._image):
        require_cpu(frame)
        return image(gadget, frame, first)

    def at(stored, frame, at=FieldMapFile.at):
        require_cpu(frame)
        return at(stored, frame)

    monkeypatch.setattr(Frame, "device", property(lambda frame: getattr(frame, "said", GPU)))
    monkeypatch.setattr(Frame, "on", on)
    monkeypatch.setattr(FieldMap, "_image", image)
    monkeypatch.setattr(FieldMapFile, "at", at)


def require_cpu(frame: Frame) -> None:
    if frame.device == GPU:
        raise torch.OutOfMemoryError("CUDA out of memory.")


def test_a_map_that_does_not_fit_on_the_gpu_is_made_and_looked_up_on_the_cpu(full_gpu, tmp_path):
    opened = session(head_of("b0 scan"), state_folder=tmp_path)
    measured, *three = mapped(frames(reference=of_slice(0)), opened, smoothing=0.0)
    assert misfit(measured.data) < 0.02
    later = session(head_of("image", ["b0 scan"], times=(4.0,)), state_folder=tmp_path)
    (looked_up,) = run([FieldMap()], frames(reference=of_slice(0))[:1], later)
    torch.testing.assert_close(looked_up.field_map, measured.data, atol=1e-3, rtol=0)
    for told in (opened.tell, later.tell):
        (words,) = told.about("CPU")
        assert words.endswith("FieldMap continues on the CPU, since the GPU's memory did not suffice")
    assert {frame.device for frame in [looked_up, *three]} == {GPU}
    assert looked_up.history[0] == "FieldMap: on the CPU, since the GPU's memory did not suffice"


def test_echoes_of_which_one_did_not_fit_on_the_gpu_are_all_mapped_on_the_cpu(full_gpu):
    echoes = frames(reference=of_slice(0))
    echoes[1].said = CPU
    measured, *three = mapped(echoes, smoothing=0.0)
    assert misfit(measured.data) < 0.02
    assert {frame.device for frame in three} == {CPU}
