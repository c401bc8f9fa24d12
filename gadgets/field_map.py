"""Where the main field is off, and by how much."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain, pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gadgets.echoes import EchoKey, announced_echoes
from gadgets.field_map_file import FieldMapFile, save_slices
from gadgets.frame import Frame, SeriesImage
from gadgets.gadget import COIL_MAPS, FRAMES, Gadget, Session
from gadgets.geometry import Affine, affine_of_frame
from gadgets.imaging_model import encoding_of
from gadgets.memory import CPU, fitting
from gadgets.property import AUTO, choice, integer, path, real, text
from gadgets.stored import FIELD_MAP, dependencies, find_stored, pseudonym, stored_at
from gadgets.trajectory import echo_time_of
from recon_core.calibration.field_map import FieldEstimate, field_from_echoes
from recon_core.calibration.smooth_map import smooth_map
from recon_core.operators.linear_model import LinearModel
from recon_core.operators.memory import free_memory
from recon_core.solvers.cg_sense import cg_sense

log = logging.getLogger("spinstream")

ECHOES, NONE = "echoes", "none"
HZ, RADIANS, PPM = "hz", "rad/s", "ppm"
OF_MAPS, OF_FILES, OF_ECHOES = ("file", "offset"), ("array", "unit", "field_sign"), ("echoes", "threshold", "smoothing")
"""Properties that only act on maps made elsewhere, on those in a file, and on those from echoes."""

DEPENDENCIES = ("fieldmap", "b0")

SPACING_S = 0.05e-3, 0.1
"""Shortest and longest time between echoes that can be meant: MRD gives TE in ms, but not everybody who writes it."""

ITERATIONS, TOLERANCE = 10, 1e-3
"""Of the echo images: their common phase matters, not their last detail."""


class FieldMap(Gadget[Frame]):
    """Gives frames a map of the off-resonance psi in Hz, signal ~ exp(-2 pi i psi t), for the solvers behind it.

    With `source` = auto, it is the map of the property `file`, else the one that an earlier session stored for the
    measurement on which the header says this one depends (measurementDependency of the type fieldmap or b0); it is
    brought to each frame by its position in the patient. Where there is neither, frames pass unchanged.

    With `source` = echoes, the frames of a slice that differ by contrast are held until all contrasts have come that
    the header announces. Their map comes from the phase between their echoes (Funai et al., IEEE Trans Med Imaging
    27:1484, 2008); it leaves as a series of its own, and is stored under the measurementID of the header.

    Maps are read and stored on the machine of the session, so frames never go elsewhere for them.
    """

    takes = Frame
    needs = frozenset({FRAMES, COIL_MAPS})

    source = choice(
        AUTO,
        (AUTO, ECHOES, NONE),
        "where the map comes from: a file or an earlier measurement if there is one, the echoes of the frames "
        "themselves, or nowhere",
    )
    file = path(
        None,
        "a map made elsewhere: .npz with [slice, y, x] over the reconstruction field of view, .nii or .nii.gz, or .h5 "
        "with a field map series that this program made; slices are found by position, or by number without geometry",
    )
    array = text("", "name of the array in an .npz file or of the images in an .h5 file; empty for the one that fits")
    unit = choice(HZ, (HZ, RADIANS, PPM), "unit of the file; ppm are of the header's proton frequency")
    field_sign = choice("-", ("-", "+"), "sign s in the file's convention, signal ~ exp(s 2 pi i psi t)")
    offset = real(
        0.0,
        "added to a map of a file or of an earlier measurement, after unit and sign: the scanner may have set another "
        "centre frequency since",
        unit="Hz",
    )
    echoes = integer(None, "echoes to make the map from, the first ones; auto takes all", low=2)
    threshold = real(
        0.1,
        "magnitude of the echoes from which a pixel has signal, relative to their 99th percentile; what does not stand "
        "out of the noise has none either",
        low=0.0,
        high=1.0,
    )
    smoothing = real(
        1.0,
        "structures of 2 pi times this width are halved in a map from echoes, finer ones vanish, and the map is "
        "continued to where there is no signal; 0 leaves it raw, and zero where there is no signal",
        unit="pixels",
        low=0.0,
        high=100.0,
    )

    def open(self, session: Session) -> None:
        """Finds the map, or reads from the header which echoes will come.

        Raises:
            ValueError: a property is set that has no effect, the file cannot be used, or the header does not announce
                as many echoes as are needed.
        """
        super().open(session)
        if self.source != AUTO:
            self.require_effect(f"with source {self.source}", *OF_MAPS)
        if self.source != ECHOES:
            self.require_effect(f"with source {self.source}", *OF_ECHOES)
        if self.file is None:
            self.require_effect("without a file", *OF_FILES)
        self._map = self._found() if self.source == AUTO else None
        self._outside_told = False
        self._expected = announced_echoes(session.header)
        if self.source == ECHOES and self._expected is None:
            raise ValueError(
                "a field map from echoes needs a header that announces them, by sequenceParameters.TE or by the "
                "encodingLimits of contrast; it announces no more than one"
            )
        if self.echoes is not None and self.echoes > (self._expected or 0):
            raise ValueError(f"a map from {self.echoes} echoes is wanted, but the header announces {self._expected}")
        self._waiting: dict[EchoKey, list[Frame]] = {}
        self._measured: dict[EchoKey, tuple[NDArray[np.float32], Affine]] = {}

    def take(self, item: Frame) -> Iterator[object]:
        """Yields the frame with its map; from echoes, all frames of a slice behind their map when the last has come."""
        if self.source == ECHOES:
            yield from self._collected(item)
        elif self._map is not None:
            yield from fitting(self, partial(self._looked_up, self._map), [item])
        else:
            yield item

    def finish(self) -> Iterator[object]:
        """Yields the frames of slices of which echoes are missing, and stores the maps that were made.

        Raises:
            ValueError: of a slice, there is a single echo only; all other maps are stored.
        """
        if self._waiting:
            key, frames = next(iter(self._waiting.items()))
            self.session.tell(
                f"FieldMap: echoes are missing of {len(self._waiting)} image(s) at the end of the stream; {key} has "
                f"{len(frames)} of the {self._expected} that the header announces. Maps are made from those that came."
            )
        try:
            # What cannot be mapped comes last, and stops nothing else.
            for frames in sorted(self._waiting.values(), key=len, reverse=True):
                yield from self._mapped(frames)
        finally:
            if self._measured:
                self._store()

    def _found(self) -> FieldMapFile | None:
        if self.file is not None:
            return FieldMapFile.load(self.file, self.array).scaled(self._to_hz())
        for measurement in dependencies(self.session.header, DEPENDENCIES):
            stored = find_stored(self.session.state_folder, FIELD_MAP, measurement)
            if stored is not None:
                return FieldMapFile.load(stored).named(f"measurement {measurement}")
            self.session.tell(
                f"The field map of measurement {measurement}, on which this one depends, is not stored here; without "
                "another, only a blind pipeline corrects for off-resonance."
            )
        log.debug("FieldMap: no map, frames pass unchanged")
        return None

    def _to_hz(self) -> float:
        """What a value of the file is in Hz with our sign."""
        sign = -1.0 if self.field_sign == "+" else 1.0
        if self.unit == PPM:
            frequency = float(self.session.header.experimentalConditions.H1resonanceFrequency_Hz)
            if not frequency > 0:
                raise ValueError(f"ppm need the header's H1resonanceFrequency_Hz, got {frequency:g} Hz")
            return sign * 1e-6 * frequency
        return sign / (2 * math.pi) if self.unit == RADIANS else sign

    def _looked_up(self, stored: FieldMapFile, frames: Sequence[Frame]) -> Iterator[object]:
        for frame in frames:
            self._look_up(frame, stored)
            yield frame

    def _look_up(self, frame: Frame, stored: FieldMapFile) -> None:
        field, outside = stored.at(frame)
        frame.field_map = field + self.offset
        note = f"FieldMap: from {stored.name}, {_range(frame.field_map)}"
        if self.file is not None:
            note += f", read as {self.unit} with signal ~ exp({self.field_sign} 2 pi i psi t)"
        if self.offset:
            note += f", {self.offset:g} Hz added"
        if outside:
            note += f", {outside:.1%} of the voxels lie outside of it"
            if not self._outside_told:
                self._outside_told = True
                self.session.tell(
                    f"FieldMap: {outside:.1%} of the voxels of {frame.label} lie outside of {stored.name} and get the "
                    "value of its edge (told once)."
                )
        frame.history.append(note)
        log.info("%s: %s", frame.label, note)

    def _collected(self, frame: Frame) -> Iterator[object]:
        key = EchoKey.of(frame)
        frames = self._waiting.setdefault(key, [])
        frames.append(frame)
        if len(frames) == self._expected:
            yield from self._mapped(self._waiting.pop(key))
            return
        held, free = sum(map(_nbytes, chain(*self._waiting.values()))), free_memory(self.session.device)
        if held > free:
            raise MemoryError(
                f"frames of {held >> 20} MiB wait for their other echoes, more than the {free >> 20} MiB that are free "
                f"besides: the header announces {self._expected} contrasts, {key} has {len(frames)} so far"
            )

    def _mapped(self, frames: Sequence[Frame]) -> Iterator[object]:
        """The same as `_with_map_of_echoes`, on the CPU where the memory of a GPU does not suffice."""
        if len({frame.device for frame in frames}) > 1:  # it did not suffice for some of them
            frames = [frame.on(CPU) for frame in frames]
        return fitting(self, self._with_map_of_echoes, frames)

    def _with_map_of_echoes(self, frames: Sequence[Frame]) -> Iterator[object]:
        """The map of a slice, then its frames in the order in which they came."""
        used = sorted(frames, key=self._echo_time)[: self.echoes]
        if len(used) < 2:
            raise ValueError(f"a field map needs two echoes or more, but all that came is {frames[0].label}")
        times = [self._echo_time(frame) for frame in used]
        _check_spacings(times)
        images = torch.stack([self._image(frame, used[0]) for frame in used])
        estimate = field_from_echoes(images[:, None], times, self.threshold)
        field = estimate.field_hz
        if self.smoothing > 0:
            field = smooth_map(field, estimate.deviation_hz**-2, self.smoothing)
        note = f"FieldMap: {self._described(estimate, times)}, {_range(field[estimate.regions > 0])}"
        log.info("%s: %s", used[0].label, note)
        for frame in frames:
            frame.field_map = field
            frame.history.append(note)
        self._keep(field, used[0])
        yield SeriesImage("field_map", field, used[0])
        yield from frames

    def _echo_time(self, frame: Frame) -> float:
        time = echo_time_of(self.session.header, frame.reference.idx.contrast)
        if time is None:
            raise ValueError(f"the header gives no echo time (sequenceParameters.TE) for {frame.label}")
        return time

    def _image(self, frame: Frame, first: Frame) -> Tensor:
        """The image of an echo, with the coil maps of the first, so that only the echo's own phase is in it."""
        model = LinearModel(encoding_of(frame, self.session), maps_in_coils_of(frame, first))
        return cg_sense(model, frame.samples.kspace, 0.0, ITERATIONS, TOLERANCE).image

    def _described(self, estimate: FieldEstimate, times: list[float]) -> str:
        listed = ", ".join(f"{time * 1e3:g}" for time in times)
        signal = (estimate.regions > 0).double().mean().item()
        smoothed = f"smoothed over {self.smoothing:g} pixels" if self.smoothing > 0 else "not smoothed"
        words = f"from echoes at {listed} ms, {signal:.0%} of the pixels have signal, {smoothed}"
        if not estimate.resolved:
            alias = 1 / min(after - before for before, after in pairwise(times))
            words += f", multiples of {alias:.4g} Hz left open and taken nearest to 0"
        return words

    def _keep(self, field: Tensor, frame: Frame) -> None:
        """For later measurements; of repetitions, the last, since the slice may have moved."""
        key = EchoKey.of(frame)._replace(repetition=0)
        self._measured.pop(key, None)
        self._measured[key] = field.cpu().numpy(), affine_of_frame(frame)

    def _store(self) -> None:
        information = self.session.header.measurementInformation
        if not information or not information.measurementID:
            self.session.tell("The field map is not stored for later measurements: the header has no measurementID.")
            return
        try:
            save_slices(
                stored_at(self.session.state_folder, FIELD_MAP, information.measurementID), [*self._measured.values()]
            )
        except (OSError, ValueError) as error:
            self.session.tell(f"The field map could not be stored for later measurements: {error}")
        else:
            name = pseudonym(information.measurementID)
            self.session.tell(f"The field map is stored for measurements that depend on measurement {name}.")


def maps_in_coils_of(frame: Frame, other: Frame) -> Tensor:
    """The coil maps of another frame for the virtual coils of this one: by way of the receivers, which they share.

    Raises:
        ValueError: the frames have different numbers of receivers.
    """
    assert other.coil_maps is not None
    own, others = _mixing(frame), _mixing(other)
    if own.shape[1] != others.shape[1]:
        raise ValueError(
            f"echoes need the same receiver coils, but {other.label} has {others.shape[1]} and {frame.label} has "
            f"{own.shape[1]}"
        )
    return torch.einsum("vw,w...->v...", own @ others.mH, other.coil_maps)


def _check_spacings(times: list[float]) -> None:
    shortest, longest = SPACING_S
    if not all(shortest <= after - before <= longest for before, after in pairwise(times)):
        listed = ", ".join(f"{time * 1e3:g}" for time in times)
        raise ValueError(
            f"expected {shortest * 1e3:g} to {longest * 1e3:g} ms from echo to echo, got echo times of {listed} ms; "
            "MRD gives TE in milliseconds"
        )


def _nbytes(frame: Frame) -> int:
    maps = 0 if frame.coil_maps is None else frame.coil_maps.nbytes
    return int(frame.samples.kspace.nbytes + frame.samples.trajectory.nbytes + maps)


def _mixing(frame: Frame) -> Tensor:
    kspace = frame.samples.kspace
    return torch.eye(len(kspace)).to(kspace) if frame.mixing is None else frame.mixing


def _range(field: Tensor) -> str:
    if not field.numel():
        return "no signal"
    low, middle, high = np.percentile(field.cpu().numpy(), [1, 50, 99])
    return f"{low:.1f}, {middle:.1f} and {high:.1f} Hz at the percentiles 1, 50 and 99"
