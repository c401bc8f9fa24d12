"""Takes readout oversampling out of Cartesian data."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass

import ismrmrd
import numpy as np
from numpy.typing import NDArray

from gadgets.gadget import TRAJECTORY, Gadget, Session
from gadgets.mrd import Readout, check_encodings

TOLERANCE = 1e-2
"""How far samples of a Cartesian line may be from where they belong, in cycles per field of view."""


@dataclass(frozen=True)
class Crop:
    """From an encoded matrix along x to a smaller one with the same pixels.

    Attributes:
        matrix: pixels as encoded.
        kept: pixels that are left.
    """

    matrix: int
    kept: int

    @classmethod
    def of(cls, encoding: ismrmrd.xsd.encodingType) -> Crop | None:
        """To the recon field of view, or just above where no whole number of pixels fits it; None if nothing to do."""
        matrix = int(encoding.encodedSpace.matrixSize.x)
        ratio = encoding.reconSpace.fieldOfView_mm.x / encoding.encodedSpace.fieldOfView_mm.x
        kept = math.ceil(matrix * ratio - 1e-3)
        cartesian = encoding.trajectory == ismrmrd.xsd.trajectoryType.CARTESIAN
        return cls(matrix, kept) if cartesian and kept < matrix else None

    @property
    def ratio(self) -> float:
        """Of the fields of view."""
        return self.kept / self.matrix

    def readout(self, data: NDArray[np.complex64], first: float) -> tuple[NDArray[np.complex64], NDArray[np.float64]]:
        """Samples of the cropped image.

        Args:
            data: `[coil, sample]` at `first`, `first` + 1, ... in cycles per encoded field of view.
            first: any real number.

        Returns:
            `[coil, sample]`, and the whole numbers of cycles per kept field of view at which they lie: those within
            the range of the original samples. Of a complete line the transform is orthonormal up to the crop, so unit
            noise stays unit noise; beyond the end of an asymmetric echo it sees zeros.
        """
        samples = data.shape[1]
        lowest = math.ceil(first * self.ratio - TOLERANCE)
        highest = math.floor((first + samples - 1) * self.ratio + TOLERANCE)
        positions = np.arange(lowest, highest + 1, dtype=np.float64)
        image = np.fft.fftshift(np.fft.ifft(data, self.matrix, norm="ortho"), axes=-1)
        start = self.matrix // 2 - self.kept // 2
        r = (np.arange(self.kept) - self.kept // 2) / self.matrix
        # Both transforms count samples from zero; the ramp accounts for where each really starts.
        ramp = np.exp(2j * np.pi * (first - lowest / self.ratio) * r)
        kept = np.fft.ifftshift(image[:, start : start + self.kept] * ramp, axes=-1)
        return np.fft.fft(kept, norm="ortho")[:, : len(positions)].astype(np.complex64), positions


class RemoveOversampling(Gadget[Readout]):
    """Crops Cartesian readouts to the reconstruction's field of view, in image space.

    Later gadgets see an encoded space with the smaller matrix and field of view along x. Readouts that are not
    Cartesian pass as they are.
    """

    takes = Readout
    needs = frozenset({TRAJECTORY})

    def open(self, session: Session) -> None:
        """Replaces the session's header by one with the encoded spaces after the crop."""
        super().open(session)
        check_encodings(session.header)
        self._crops = [Crop.of(encoding) for encoding in session.header.encoding]
        session.header = copy.deepcopy(session.header)
        for encoding, crop in zip(session.header.encoding, self._crops, strict=True):
            if crop:
                encoding.encodedSpace.matrixSize.x = crop.kept
                encoding.encodedSpace.fieldOfView_mm.x *= crop.ratio
                session.history.append(f"RemoveOversampling: {crop.matrix} to {crop.kept} pixels along the readout")
            elif encoding.trajectory != ismrmrd.xsd.trajectoryType.CARTESIAN:
                session.tell(f"RemoveOversampling leaves {encoding.trajectory.value} readouts as they are.")

    def take(self, item: Readout) -> Iterator[object]:
        """Yields the readout of the cropped image."""
        crop = self._crops[item.encoding_space_ref]
        yield cropped(item, crop) if crop else item


def cropped(item: Readout, crop: Crop) -> Readout:
    """The readout of the cropped image.

    Raises:
        ValueError: its samples are not one cycle per field of view apart along x, all at the same ky and kz.
    """
    order = slice(None, None, -1 if item.traj[0, 0] > item.traj[-1, 0] else 1)
    kx, others = item.traj[order, 0].astype(np.float64), item.traj[:, 1:]
    steps = np.diff(kx)
    if (
        len(kx) > crop.matrix
        or np.any(np.abs(steps - 1) > TOLERANCE)
        or np.any(np.abs(others - others[:1]) > TOLERANCE)
    ):
        raise ValueError(
            f"the header says cartesian, but the readout is no line of up to {crop.matrix} samples one cycle per field "
            f"of view apart along x: it has {len(kx)}, {steps.min():g} to {steps.max():g} apart; correct the header, "
            "or leave RemoveOversampling out"
        )
    data, positions = crop.readout(item.data[:, order], kx[0])
    trajectory = np.hstack([positions[:, None], np.repeat(others[:1], len(positions), axis=0)]).astype(np.float32)
    times = np.interp(positions / crop.ratio, kx, item.times[order]).astype(np.float32)
    head = item.getHead()
    head.sample_time_us /= crop.ratio
    head.center_sample = int(np.abs(positions).argmin())
    return Readout(head, data, trajectory, times)
