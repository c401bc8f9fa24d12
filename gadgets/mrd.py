"""What the gadgets read from MRD acquisitions and headers, and the readout that they hand on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ismrmrd
import numpy as np
from numpy.typing import NDArray

NOT_IMAGING: Mapping[int, str] = {
    ismrmrd.ACQ_IS_NOISE_MEASUREMENT: "noise",
    ismrmrd.ACQ_IS_NAVIGATION_DATA: "navigation",
    ismrmrd.ACQ_IS_PHASECORR_DATA: "phase correction",
    ismrmrd.ACQ_IS_HPFEEDBACK_DATA: "feedback",
    ismrmrd.ACQ_IS_RTFEEDBACK_DATA: "real-time feedback",
    ismrmrd.ACQ_IS_DUMMYSCAN_DATA: "dummy",
    ismrmrd.ACQ_IS_SURFACECOILCORRECTIONSCAN_DATA: "surface coil correction",
    ismrmrd.ACQ_IS_PHASE_STABILIZATION_REFERENCE: "phase stabilisation reference",
    ismrmrd.ACQ_IS_PHASE_STABILIZATION: "phase stabilisation",
}
"""Flags of lines that belong neither to an image nor to its parallel calibration, with their names for people."""

_NOT_IMAGING_BITS = sum(1 << (flag - 1) for flag in NOT_IMAGING)


def not_imaging(acquisition: ismrmrd.Acquisition) -> str | None:
    """Why a line belongs neither to an image nor to its parallel calibration; None when it does."""
    if not acquisition.flags & _NOT_IMAGING_BITS:
        return None
    return next(name for flag, name in NOT_IMAGING.items() if acquisition.isFlagSet(flag))


def calibrates(acquisition: ismrmrd.Acquisition) -> bool:
    """Whether a line belongs to the parallel calibration, be it for imaging as well or not."""
    return bool(
        acquisition.isFlagSet(ismrmrd.ACQ_IS_PARALLEL_CALIBRATION)
        or acquisition.isFlagSet(ismrmrd.ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING)
    )


def makes_image(acquisition: ismrmrd.Acquisition) -> bool:
    """Whether a line belongs to an image, be it for parallel calibration as well or not."""
    both = acquisition.isFlagSet(ismrmrd.ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING)
    calibration_only = acquisition.isFlagSet(ismrmrd.ACQ_IS_PARALLEL_CALIBRATION) and not both
    return not calibration_only and not_imaging(acquisition) is None


def check_encodings(header: ismrmrd.xsd.ismrmrdHeader) -> None:
    """Refuses a header whose encodings lack a grid.

    Raises:
        ValueError: there is no encoding, or one without an encoded and a recon space of positive size.
    """
    if not header.encoding:
        raise ValueError("the header describes no encoding")
    for number, encoding in enumerate(header.encoding):
        for name in ("encodedSpace", "reconSpace"):
            space = getattr(encoding, name)
            sizes = [getattr(part, axis) for part in _parts(space) for axis in "xyz"]
            if len(sizes) < 6 or not min(sizes) > 0:
                raise ValueError(f"encoding {number}: expected an {name} with a matrix and a field of view above zero")


def _parts(space: ismrmrd.xsd.encodingSpaceType | None) -> list[Any]:
    parts = [space.matrixSize, space.fieldOfView_mm] if space else []
    return [part for part in parts if part]


def limit_of(encoding: ismrmrd.xsd.encodingType, counter: str) -> ismrmrd.xsd.limitType | None:
    """Smallest, largest and central value of a counter such as kspace_encoding_step_1, if the header has them."""
    limits = encoding.encodingLimits
    return getattr(limits, counter) if limits else None


def encoding_of(header: ismrmrd.xsd.ismrmrdHeader, acquisition: ismrmrd.Acquisition) -> ismrmrd.xsd.encodingType:
    """The <encoding> that an acquisition refers to.

    Raises:
        ValueError: the header has no such encoding.
    """
    ref = acquisition.encoding_space_ref
    if ref >= len(header.encoding):
        raise ValueError(f"encoding_space_ref is {ref}, but the header describes {len(header.encoding)} encoding(s)")
    return header.encoding[ref]


class Readout(ismrmrd.Acquisition):  # type: ignore[misc]  # ismrmrd has no types
    """An acquisition of which every sample counts, with where and when each was taken.

    `data` is complex64 `[coil, sample]`, `traj` float32 `[sample, axis]` in cycles per encoded field of view with the
    axes x, y(, z), `times` float32 `[sample]` in seconds from the excitation (from the first sample where the header
    gives no echo time). `sample_time_us` and `center_sample` fit the data; nothing is left to discard or to reverse.
    """

    def __init__(
        self,
        head: ismrmrd.AcquisitionHeader,
        data: NDArray[np.complex64],
        trajectory: NDArray[np.float32],
        times: NDArray[np.float32],
    ) -> None:
        """Takes the arrays as they are and makes the sizes in `head` fit them."""
        head.number_of_samples = data.shape[1]
        head.active_channels = data.shape[0]
        head.trajectory_dimensions = trajectory.shape[1]
        super().__init__(head, data=data, trajectory=trajectory)
        self.times = times
