"""Sorts readouts into frames, and decides when a frame has all it will get."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import ismrmrd
import numpy as np
import torch
from numpy.typing import NDArray

from gadgets.frame import Frame, Samples, Space
from gadgets.gadget import ACQUISITIONS, FRAMES, TRAJECTORY, Gadget, Session
from gadgets.header_trajectory import steps_of
from gadgets.memory import moved
from gadgets.mrd import Readout, calibrates, limit_of, makes_image, not_imaging
from gadgets.property import AUTO, choice, real

UNIT_COMPLEX_NOISE = 1 / math.sqrt(2)
"""Gadgetron's users know whitened acquisitions as unit noise variance in the real and in the imaginary channel; from
frames on, it is unit variance of the complex sample. Here is the border between the two."""

ENDING = (ismrmrd.ACQ_LAST_IN_MEASUREMENT, ismrmrd.ACQ_LAST_IN_REPETITION, ismrmrd.ACQ_LAST_IN_SLICE)

GIBIBYTE = 1 << 30
OVERHEAD = 2048
"""Of the Python objects that hold a readout."""

FLAGS, COUNTERS, STREAM = "flags", "counters", "stream"
COMBINE, SEPARATE = "combine", "separate"


class Key(NamedTuple):
    """What the readouts of one frame have in common; the average is 0 where averages are combined."""

    encoding: int
    slice: int
    contrast: int
    repetition: int
    set: int
    phase: int
    average: int

    @property
    def place(self) -> tuple[int, int, int, int]:
        """What is imaged again and again, repetition after repetition."""
        return self.slice, self.contrast, self.set, self.phase


class OpenFrame:
    """The readouts of a frame so far.

    Attributes:
        key: of all readouts.
        readouts: in the order in which they came.
        lines: the encoding steps of each average that have come.
        averages: that have come.
        flagged: whether a flag said that this frame ends.
        nbytes: that the readouts take.
    """

    def __init__(self, key: Key) -> None:
        self.key = key
        self.readouts: list[Readout] = []
        self.lines: set[tuple[int, int, int]] = set()
        self.averages: set[int] = set()
        self.flagged = False
        self.nbytes = 0

    def add(self, item: Readout) -> None:
        """Takes one more readout."""
        self.readouts.append(item)
        self.nbytes += _nbytes(item)
        idx = item.idx
        self.lines.add((idx.kspace_encode_step_1, idx.kspace_encode_step_2, idx.average))
        self.averages.add(idx.average)


class FrameAssembly(Gadget[ismrmrd.Acquisition]):
    """Collects the readouts of each image: one encoding, slice, contrast, repetition, set and phase.

    With `ends` = auto, a frame ends as soon as all encoding steps that the header announces have come, for all of its
    averages. A frame of which fewer come, as in undersampled scans, ends on a flag (last in slice, repetition or
    measurement) and the first line of a frame not yet begun, since flags may come before the last line; on a line of a
    newer repetition; at the latest at the end of the stream. A flag on one contrast holds for the contrasts before it,
    and on an average for the image only if the header announces no further average.

    Lines for parallel calibration only stand beside the frame; those for both are in both. A frame without calibration
    lines of its own gets the closest before it of its slice. Lines that make no image are left out and counted.
    """

    takes = ismrmrd.Acquisition
    needs = frozenset({TRAJECTORY})
    adds = frozenset({FRAMES})
    removes = frozenset({ACQUISITIONS})

    ends = choice(
        AUTO,
        (AUTO, FLAGS, COUNTERS, STREAM),
        "when a frame ends: by all signs together, by flags alone, by the header's encoding steps and newer "
        "repetitions alone, or at the end of the stream alone",
    )
    averages = choice(COMBINE, (COMBINE, SEPARATE), "averages as further shots of one image, or as an image each")
    memory_limit = real(
        8.0,
        "most that readouts may take that wait for the rest of their images, and lines for calibration with them; "
        "beyond it the session ends: lines that repeat without end make no image",
        unit="GiB",
        low=0.0,
    )

    def open(self, session: Session) -> None:
        """Begins with no frame."""
        super().open(session)
        self._header = session.header
        self._spaces = [Space.from_encoding(encoding) for encoding in session.header.encoding]
        self._open: dict[Key, OpenFrame] = {}
        self._sent: set[Key] = set()
        self._most_lines: dict[tuple[int, int], int] = {}
        self._calibration = CalibrationLines()
        self._left_out: Counter[str] = Counter()
        self._late = False
        self._missing_told = False

    def take(self, item: ismrmrd.Acquisition) -> Iterator[object]:
        """Yields the frames that end with a readout."""
        kind = not_imaging(item)
        if kind is not None:
            self._left_out[kind] += 1
            return
        if not np.isfinite(item.data).all():
            raise ValueError("the acquisition holds samples that are not finite")
        key = self._key(item)
        yield from self._sent_off(self._overtaken(key, makes_image(item)))
        if calibrates(item):
            self._calibration.add(key, item)
        if makes_image(item):
            frame = self._frame_for(key)
            frame.add(item)
            self._mark(item, key)
            yield from self._sent_off(self._ended(frame))
        self._limit_memory()

    def finish(self) -> Iterator[object]:
        """Yields the frames that are left, and says what was left out."""
        left = list(self._open.values())
        for frame in left:
            self._count_lines(frame)
        for frame in left:
            self._tell_of_early_end(frame)
        yield from self._sent_off(left)
        if self._left_out:
            lines = ", ".join(f"{count} {kind}" for kind, count in self._left_out.items())
            self.session.tell(f"FrameAssembly left out lines that make no image: {lines}.")
        if not self._sent:
            self.session.tell("FrameAssembly: no imaging line came, so there is no image.")

    def _limit_memory(self) -> None:
        open_frames = self._open.values()
        images, calibration = sum(frame.nbytes for frame in open_frames), self._calibration.nbytes
        if images + calibration > self.memory_limit * GIBIBYTE:
            largest = max((len(frame.readouts) for frame in open_frames), default=0)
            raise MemoryError(
                f"the readouts of {len(open_frames)} unfinished images take {images / GIBIBYTE:.3g} GiB and the lines "
                f"for calibration {calibration / GIBIBYTE:.3g} GiB, more than the property memory_limit of "
                f"FrameAssembly allows, {self.memory_limit:g} GiB; one image has {largest} readouts. A scan that needs "
                "as much takes a higher limit; else see whether lines repeat, and at the property ends"
            )

    def _count_lines(self, frame: OpenFrame) -> None:
        kind = frame.key.encoding, frame.key.contrast
        self._most_lines[kind] = max(self._most_lines.get(kind, 0), len(frame.lines))

    def _tell_of_early_end(self, frame: OpenFrame) -> None:
        """Of a scan that was broken off, the last image looks like any other."""
        key, lines, most = frame.key, len(frame.lines), self._most_lines[frame.key.encoding, frame.key.contrast]
        if lines < most:
            self.session.tell(
                f"FrameAssembly: the data end within slice {key.slice}, contrast {key.contrast}, repetition "
                f"{key.repetition}, after {lines} readouts where others have {most}: do not trust its image."
            )

    def _key(self, item: ismrmrd.Acquisition) -> Key:
        idx = item.idx
        average = idx.average if self.averages == SEPARATE else 0
        return Key(item.encoding_space_ref, idx.slice, idx.contrast, idx.repetition, idx.set, idx.phase, average)

    def _frame_for(self, key: Key) -> OpenFrame:
        if key not in self._open:
            if key in self._sent and not self._late:
                self._late = True
                self.session.tell(
                    f"FrameAssembly: a line of slice {key.slice}, contrast {key.contrast}, repetition {key.repetition} "
                    "came after its image had been sent; such lines make further images. If the flags or the "
                    "header's encoding limits are wrong, set the property ends of FrameAssembly."
                )
            self._open[key] = OpenFrame(key)
        return self._open[key]

    def _overtaken(self, key: Key, imaging: bool) -> list[OpenFrame]:
        """Frames that can get no more once a line of `key` has come."""
        begins = imaging and key not in self._open
        return [
            frame
            for frame in self._open.values()
            if (self._trusts(COUNTERS) and frame.key.place == key.place and frame.key.repetition < key.repetition)
            or (self._trusts(FLAGS) and begins and frame.flagged)
        ]

    def _ended(self, frame: OpenFrame) -> list[OpenFrame]:
        """Frames that end with the line that came last, which is one of `frame`."""
        if self.ends == FLAGS:
            return [each for each in self._open.values() if each.flagged]
        expected = self._expected_lines(frame)
        if not self._trusts(COUNTERS) or expected is None or len(frame.lines) < expected:
            return []
        # Limits of 0 to 0 may also mean that somebody left them out.
        return [frame] if expected > 1 or frame.flagged else []

    def _trusts(self, sign: str) -> bool:
        return self.ends in (AUTO, sign)

    def _expected_lines(self, frame: OpenFrame) -> int | None:
        """How many lines the header announces for a frame, None where it does not say."""
        encoding = self._header.encoding[frame.key.encoding]
        lines = steps_of(limit_of(encoding, "kspace_encoding_step_1"))
        if lines is None:
            return None
        partitions = steps_of(limit_of(encoding, "kspace_encoding_step_2")) or 1
        announced = 1 if self.averages == SEPARATE else steps_of(limit_of(encoding, "average")) or 1
        return lines * partitions * max(announced, len(frame.averages))

    def _mark(self, item: Readout, key: Key) -> None:
        """Notes on which frames the flags of a line bear."""
        everything, repetition, slice_ = (item.isFlagSet(flag) for flag in ENDING)
        limit = limit_of(self._header.encoding[key.encoding], "average")
        if self.averages == COMBINE and limit is not None and item.idx.average < limit.maximum:
            slice_ = False
        if not (everything or repetition or slice_):
            return
        for frame in self._open.values():
            other = frame.key
            echo_before = other._replace(contrast=key.contrast) == key and other.contrast <= key.contrast
            earlier = other.repetition <= key.repetition
            frame.flagged |= everything or (repetition and earlier) or (slice_ and echo_before)

    def _sent_off(self, frames: Iterable[OpenFrame]) -> Iterator[Frame]:
        for frame in frames:
            del self._open[frame.key]
            self._sent.add(frame.key)
            self._count_lines(frame)
            yield moved(self._assembled(frame), self, self.session.device)

    def _assembled(self, ended: OpenFrame) -> Frame:
        reference = most_central(ended.readouts).getHead()
        reference.idx.average = ended.key.average
        frame = Frame(
            samples=stacked(ended.readouts),
            times=torch.from_numpy(np.stack([readout.times for readout in ended.readouts])),
            space=self._spaces[ended.key.encoding],
            reference=reference,
            calibration=self._calibration_of(ended.key),
            history=[*self.session.history],
        )
        _, shots, samples = frame.samples.kspace.shape
        frame.history.append(f"FrameAssembly: {shots} shots of {samples} samples, {len(ended.averages)} average(s)")
        self._tell_of_missing_lines(ended, frame.label)
        if not frame.samples.kspace.any():
            self.session.tell(f"FrameAssembly: all samples of {frame.label} are zero; its image will be empty.")
        return frame

    def _tell_of_missing_lines(self, ended: OpenFrame, label: str) -> None:
        """Says once that a Cartesian scan that should be complete is not: it was aborted, or lines were lost."""
        encoding = self._header.encoding[ended.key.encoding]
        expected = self._expected_lines(ended)
        complete = encoding.trajectory == ismrmrd.xsd.trajectoryType.CARTESIAN and encoding.parallelImaging is None
        if complete and expected and len(ended.lines) < expected and not self._missing_told:
            self._missing_told = True
            self.session.tell(
                f"FrameAssembly: {label} has {len(ended.lines)} of the {expected} lines that the header announces "
                "(told once; a header that describes an accelerated scan has <parallelImaging>)."
            )

    def _calibration_of(self, key: Key) -> Samples | None:
        lines = self._calibration.for_frame(key)
        if not lines:
            return None
        own, wanted = self._spaces[lines[0].encoding_space_ref], self._spaces[key.encoding]
        return in_field_of_view(stacked(lines), own, wanted)


class CalibrationLines:
    """Lines for parallel calibration, by slice and by what else they were acquired with.

    Attributes:
        nbytes: that they take.
    """

    def __init__(self) -> None:
        self._lines: dict[int, dict[Key, list[Readout]]] = {}
        self.nbytes = 0

    def add(self, key: Key, item: Readout) -> None:
        """Takes one more line."""
        self.nbytes += _nbytes(item)
        self._lines.setdefault(key.slice, {}).setdefault(key._replace(average=0), []).append(item)

    def for_frame(self, key: Key) -> list[Readout]:
        """The lines that are closest to a frame of their slice; forgets the repetitions before them.

        Scanners often calibrate once for all contrasts, sets and phases, and under an encoding of its own.
        """

        def closeness(other: Key) -> tuple[bool | int, ...]:
            same = (getattr(other, name) == getattr(key, name) for name in ("encoding", "contrast", "set", "phase"))
            return *same, other.repetition

        of_slice = self._lines.get(key.slice, {})
        usable = [other for other in of_slice if other.repetition <= key.repetition]
        if not usable:
            return []
        best = max(usable, key=closeness)
        for other in usable:
            if other.repetition < best.repetition and other._replace(repetition=best.repetition) == best:
                self.nbytes -= sum(map(_nbytes, of_slice.pop(other)))
        return of_slice[best]


def stacked(readouts: Sequence[Readout]) -> Samples:
    """Readouts as shots, scaled to unit complex noise.

    Raises:
        ValueError: they differ in the numbers of channels, samples or trajectory axes.
    """
    first = readouts[0]
    for readout in readouts:
        if readout.data.shape != first.data.shape or readout.traj.shape != first.traj.shape:
            raise ValueError(f"the readouts of one image must be alike: {_size(first)}, but {_size(readout)}")
    kspace = np.stack([readout.data for readout in readouts], axis=1)
    kspace *= np.float32(UNIT_COMPLEX_NOISE)
    trajectory: NDArray[np.float32] = np.stack([readout.traj.T[::-1] for readout in readouts], axis=1)
    return Samples(torch.from_numpy(kspace), torch.from_numpy(trajectory))


def _nbytes(readout: Readout) -> int:
    return int(readout.data.nbytes + readout.traj.nbytes + readout.times.nbytes) + OVERHEAD


def _size(readout: Readout) -> str:
    channels, samples = readout.data.shape
    axes = readout.traj.shape[1]
    return f"acquisition {readout.scan_counter} has {channels} channels, {samples} samples, {axes} trajectory axes"


def most_central(readouts: Iterable[Readout]) -> Readout:
    """The readout that comes closest to the centre of k-space; the first of several."""
    return min(readouts, key=lambda readout: float(np.square(readout.traj).sum(axis=1).min()))


def in_field_of_view(samples: Samples, own: Space, wanted: Space) -> Samples:
    """The same samples with the trajectory in cycles per field of view of another space.

    Raises:
        ValueError: one of the spaces is two-dimensional, the other three-dimensional.
    """
    axes = samples.trajectory.shape[0]
    if axes != len(wanted.shape):
        raise ValueError(f"the calibration lines have {axes} axes, but the image has {len(wanted.shape)}")
    factors = torch.tensor(wanted.encoded_fov_mm) / torch.tensor(own.encoded_fov_mm)
    return Samples(samples.kspace, samples.trajectory * factors[-axes:, None, None])
