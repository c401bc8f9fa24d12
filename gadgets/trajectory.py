"""Says where in k-space each sample lies, and when it was taken."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import ismrmrd
import numpy as np
from numpy.typing import NDArray

from gadgets.gadget import ACQUISITIONS, TRAJECTORY, Gadget, Session
from gadgets.header_trajectory import InPlane, in_plane_trajectory, step_centre
from gadgets.mrd import Readout, check_encodings, encoding_of, limit_of, not_imaging
from gadgets.property import AUTO, choice
from gadgets.trajectory_unit import HALF_A_SAMPLE, UNITS, factors, recognised

STREAM, HEADER = "stream", "header"


@dataclass(frozen=True, eq=False)
class Line:
    """The samples of an acquisition from low to high readout index.

    Attributes:
        data: `[coil, sample]`.
        trajectory: `[sample, axis]` as it came with the acquisition.
        centre: the sample at the centre of k-space; may lie outside.
        first: how many samples of the line lie before the ones that are left.
        backwards: whether the last of these samples was taken first.
    """

    data: NDArray[np.complex64]
    trajectory: NDArray[np.float32]
    centre: int
    first: int = 0
    backwards: bool = False

    @property
    def samples(self) -> int:
        """How many are left."""
        return int(self.data.shape[1])

    def part(self, start: int, stop: int) -> Line:
        """The samples `start` to `stop`."""
        part = slice(start, stop)
        return replace(self, data=self.data[:, part], trajectory=self.trajectory[part], first=self.first + start)


class Trajectory(Gadget[ismrmrd.Acquisition]):
    """Gives every sample its place in k-space, in cycles per encoded field of view, and its time.

    The trajectory comes with the acquisitions or is computed from the header: Cartesian lines, linear and golden-angle
    radial spokes, and spirals as `gadgets.header_trajectory` lists them. A two-dimensional trajectory of a
    three-dimensional encoding is a stack; its kz is kspace_encode_step_2.

    Samples to discard are cut off, and readouts that are marked as reversed are turned round, data and trajectory
    alike. `center_sample` counts samples in the order in which they came. Where it lies beyond a full Cartesian line or
    any radial spoke it is left over from before the readout was shortened, and the middle is meant; elsewhere it is
    taken at its word.
    """

    takes = ismrmrd.Acquisition
    needs = frozenset({ACQUISITIONS})
    adds = frozenset({TRAJECTORY})

    source = choice(
        AUTO,
        (AUTO, STREAM, HEADER),
        "where trajectories come from: the acquisitions, the header, or the acquisitions if they carry any",
    )
    unit = choice(
        AUTO,
        (AUTO, *UNITS),
        "unit of trajectories in the stream; auto takes the one that fits the matrix, if only one does",
    )

    def open(self, session: Session) -> None:
        """Keeps the header as it is here: later gadgets may change the encoded space."""
        super().open(session)
        check_encodings(session.header)
        self._header = session.header
        self._unit = None if self.unit == AUTO else self.unit
        self._computed: dict[int, InPlane] = {}
        self._noted: set[str] = set()

    def take(self, item: ismrmrd.Acquisition) -> Iterator[object]:
        """Yields a `Readout`; lines that belong to no image pass."""
        yield item if not_imaging(item) else self._located(item)

    def _located(self, item: ismrmrd.Acquisition) -> Readout:
        encoding = encoding_of(self._header, item)
        line = self._line(item, encoding)
        if self._carried(item):
            line = kept(line, item)
            trajectory = self._from_stream(line.trajectory, encoding)
        else:
            trajectory = self._from_header(line, item, encoding)
            line = kept(line.part(0, len(trajectory)), item)
            trajectory = trajectory[line.first : line.first + line.samples]
        trajectory = self._with_all_axes(trajectory, item, encoding)
        check_inside(trajectory, encoding, self._unit)
        head = item.getHead()
        head.clearFlag(ismrmrd.ACQ_IS_REVERSE)
        head.discard_pre = head.discard_post = 0
        head.center_sample = max(line.centre - line.first, 0)
        return Readout(head, line.data, trajectory, self._times(line, item))

    def _line(self, item: ismrmrd.Acquisition, encoding: ismrmrd.xsd.encodingType) -> Line:
        samples, centre = int(item.number_of_samples), int(item.center_sample)
        backwards = item.isFlagSet(ismrmrd.ACQ_IS_REVERSE)
        if centre >= samples and _crosses_the_middle(samples, encoding):
            self._note(f"center_sample {centre} of {samples} samples lies outside: the middle is taken", tell=True)
            centre = samples // 2
        elif backwards:
            centre = samples - 1 - centre
            full = _crosses_the_middle(samples, encoding) and not self._carried(item)
            if full and centre == samples // 2 - 1:
                # Literally, the line would end beyond the last point of the grid: the converter counted it as forward.
                self._note(f"center_sample of reversed lines of {samples} samples is that of forward ones", tell=True)
                centre = samples // 2
        order = slice(None, None, -1 if backwards else 1)
        return Line(item.data[:, order], item.traj[order], centre, backwards=backwards)

    def _carried(self, item: ismrmrd.Acquisition) -> bool:
        """Whether to take the trajectory that came with an acquisition."""
        if self.source == AUTO:
            return bool(item.trajectory_dimensions)
        if self.source == STREAM and not item.trajectory_dimensions:
            raise ValueError("the acquisition carries no trajectory; set the property source of Trajectory to header")
        return self.source == STREAM

    def _from_stream(self, trajectory: NDArray[np.float32], encoding: ismrmrd.xsd.encodingType) -> NDArray[np.float32]:
        """The first two or three columns, in cycles per field of view."""
        matrix, fov_m = _axes(encoding)
        if trajectory.shape[1] < 2:
            raise ValueError(f"expected a trajectory with columns kx, ky(, kz), got {trajectory.shape[1]} column(s)")
        if not np.isfinite(trajectory).all():
            raise ValueError("the trajectory holds values that are not finite")
        extra = trajectory[:, len(matrix) :]
        if extra.any():
            # Some programs put density weights there.
            self._note(f"the trajectory's columns beyond {len(matrix)} are left out", tell=True)
        trajectory = trajectory[:, : len(matrix)]
        axes = trajectory.shape[1]
        if self._unit is None:
            self._unit = recognised(trajectory, matrix[:axes], fov_m[:axes])
            self._note(f"unit {self._unit}, recognised from values up to {np.abs(trajectory).max():g}", tell=True)
        self._note(f"taken from the stream in {self._unit}")
        return (trajectory * factors(matrix, fov_m)[self._unit][:axes]).astype(np.float32)

    def _from_header(
        self, line: Line, item: ismrmrd.Acquisition, encoding: ismrmrd.xsd.encodingType
    ) -> NDArray[np.float32]:
        """In-plane positions of the line's samples, or of those before a spiral ends."""
        ref = item.encoding_space_ref
        if ref not in self._computed:
            self._computed[ref] = in_plane_trajectory(encoding)
        trajectory = self._computed[ref](item.idx.kspace_encode_step_1, line.samples, line.centre)
        self._note(f"computed from the header ({encoding.trajectory.value})")
        if len(trajectory) < line.samples:
            self._note(f"the spiral ends after {len(trajectory)} of {line.samples} samples: the rest is cut", tell=True)
        return trajectory

    def _with_all_axes(
        self, trajectory: NDArray[np.float32], item: ismrmrd.Acquisition, encoding: ismrmrd.xsd.encodingType
    ) -> NDArray[np.float32]:
        """Adds kz to the trajectory of a stack."""
        matrix, _ = _axes(encoding)
        if trajectory.shape[1] == len(matrix):
            return trajectory
        centre = step_centre(limit_of(encoding, "kspace_encoding_step_2"), matrix[2])
        kz = np.full((len(trajectory), 1), item.idx.kspace_encode_step_2 - centre, dtype=np.float32)
        return np.hstack([trajectory, kz])

    def _times(self, line: Line, item: ismrmrd.Acquisition) -> NDArray[np.float32]:
        """Seconds from the excitation, or from the first sample where the echo time is not known."""
        if not item.sample_time_us:
            self._note("no sampling time: all samples of a readout are taken as simultaneous", tell=True)
        step = float(item.sample_time_us) * 1e-6 * (-1 if line.backwards else 1)
        times = step * (np.arange(line.samples) + line.first - line.centre)
        echo_time = echo_time_of(self._header, item.idx.contrast)
        if echo_time is None:
            self._note("no echo time in the header: times count from the first sample")
            return np.asarray(times - times.min(), dtype=np.float32)
        return np.asarray(times + echo_time, dtype=np.float32)

    def _note(self, what: str, tell: bool = False) -> None:
        """Puts a decision into the history, and before the person if it needs one, the first time it is made."""
        if what in self._noted:
            return
        self._noted.add(what)
        self.session.history.append(f"Trajectory: {what}")
        if tell:
            self.session.tell(f"Trajectory: {what}.")


def kept(line: Line, item: ismrmrd.Acquisition) -> Line:
    """What is left of a line without the samples to discard.

    Raises:
        ValueError: nothing is left.
    """
    before, after = int(item.discard_pre), int(item.discard_post)
    if line.backwards:
        before, after = after, before
    stop = min(line.samples, item.number_of_samples - after)
    if before >= stop:
        raise ValueError(
            f"no sample is left of {line.samples}: discard_pre is {item.discard_pre}, discard_post {item.discard_post}"
        )
    return line.part(before, stop)


def check_inside(trajectory: NDArray[np.float32], encoding: ismrmrd.xsd.encodingType, unit: str | None) -> None:
    """Refuses a trajectory `[sample, axis]` that leaves the encoded k-space by more than half a sample.

    Raises:
        ValueError: it does; says along which axis and how far.
    """
    matrix, _ = _axes(encoding)
    for axis, n, reach in zip("xyz", matrix, np.abs(trajectory).max(axis=0), strict=False):
        if reach > n / 2 + HALF_A_SAMPLE:
            raise ValueError(
                f"the trajectory reaches {reach:g} cycles per field of view along {axis}, but an encoded matrix "
                f"of {n} ends at {n / 2:g}; check the header's matrix and the property unit of Trajectory"
                + (f" (now {unit})" if unit else "")
            )


def echo_time_of(header: ismrmrd.xsd.ismrmrdHeader, contrast: int) -> float | None:
    """Echo time of a contrast in seconds, None where the header gives none above zero."""
    times = header.sequenceParameters.TE if header.sequenceParameters else []
    return times[contrast] * 1e-3 if contrast < len(times) and times[contrast] > 0 else None


def _axes(encoding: ismrmrd.xsd.encodingType) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Encoded matrix and field of view in metres along x, y and, in a three-dimensional encoding, z."""
    size, fov = encoding.encodedSpace.matrixSize, encoding.encodedSpace.fieldOfView_mm
    axes = "xyz" if size.z > 1 else "xy"
    return tuple(int(getattr(size, a)) for a in axes), tuple(float(getattr(fov, a)) * 1e-3 for a in axes)


def _crosses_the_middle(samples: int, encoding: ismrmrd.xsd.encodingType) -> bool:
    """Whether a readout of that many samples must have the centre of k-space among them."""
    kinds = ismrmrd.xsd.trajectoryType
    full_line = encoding.trajectory == kinds.CARTESIAN and samples == encoding.encodedSpace.matrixSize.x
    return full_line or encoding.trajectory in (kinds.RADIAL, kinds.GOLDENANGLE)
