"""Writes a simulated scan as an ISMRMRD file: header, noise scan, imaging readouts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import ismrmrd
import numpy as np
import torch
from ismrmrd import xsd
from torch import Tensor
from xsdata.formats.dataclass.serializers import XmlSerializer

from pipelines.simulated_readouts import Readouts
from recon_core.simulation import correlated_noise

NOISE_SAMPLES = 8192
NOISE_DWELL_S = 5e-6
NOISE_BANDWIDTH_RATIO = 0.79
TICK_S = 2.5e-3  # of time stamps
_PAUSE_S = 3e-3  # between a readout and the next excitation
_FIELD_STRENGTH_T, _FREQUENCY_HZ = 3.0, 127_740_000


@dataclass(frozen=True, kw_only=True)
class Scan:
    """What goes into the file.

    Attributes:
        name: the measurementID.
        readouts: the shots of one image.
        matrix: image size (y, x).
        pixel_mm, slice_mm: size of a voxel.
        positions_mm: z of each slice.
        acceleration: R.
        repetitions: of all slices.
        signal: without noise, complex64 `[slice, coil, shot, sample]`.
        noise_covariance: of the readouts, `[coil, coil]`; all zero for no noise.
    """

    name: str
    readouts: Readouts
    matrix: tuple[int, int]
    pixel_mm: float
    slice_mm: float
    positions_mm: list[float]
    acceleration: int
    repetitions: int
    signal: Tensor
    noise_covariance: Tensor

    @property
    def noisy(self) -> bool:
        """Whether there is noise, and with it a noise scan."""
        return bool(self.noise_covariance.any())

    @property
    def repetition_time_s(self) -> float:
        """From one excitation to the next, in whole milliseconds."""
        return math.ceil((self.readouts.times[-1].item() + _PAUSE_S) * 1e3) / 1e3


def write_scan(path: Path, scan: Scan, generator: torch.Generator) -> None:
    """Writes header and acquisitions into the group `dataset` of a new file.

    Noise is drawn here, for the noise scan first. The noise scan has its own dwell time: its variance is that of the
    readouts times the ratio of dwell times and times the relative bandwidth of the receiver's filter, which is what
    prewhitening undoes.

    Raises:
        OSError: the file cannot be written.
    """
    with closing(ismrmrd.Dataset(str(path), "dataset", True)) as dataset:
        dataset.write_xml_header(_xml(_header(scan)))
        for number, acquisition in enumerate(_acquisitions(scan, generator)):
            acquisition.scan_counter = number
            acquisition.acquisition_time_stamp = round(number * scan.repetition_time_s / TICK_S)
            dataset.append_acquisition(acquisition)


def _xml(header: xsd.ismrmrdHeader) -> bytes:
    # Not xsd.ToXML: that of ismrmrd 1.14 fails with the xsdata that is installed beside it today.
    return XmlSerializer().render(header, ns_map={"": "http://www.ismrm.org/ISMRMRD"}).encode()


def _acquisitions(scan: Scan, generator: torch.Generator) -> Iterator[ismrmrd.Acquisition]:
    if scan.noisy:
        yield _noise_scan(scan, generator)
    for repetition, number in product(range(scan.repetitions), range(len(scan.positions_mm))):
        data = scan.signal[number]
        if scan.noisy:
            data = data + correlated_noise(scan.noise_covariance, tuple(data.shape[1:]), generator)
        for shot in range(len(scan.readouts.steps)):
            yield _readout(scan, data[:, shot].numpy(), repetition, number, shot)


def _noise_scan(scan: Scan, generator: torch.Generator) -> ismrmrd.Acquisition:
    scale = NOISE_BANDWIDTH_RATIO * scan.readouts.dwell_s / NOISE_DWELL_S
    noise = correlated_noise(scan.noise_covariance * scale, (NOISE_SAMPLES,), generator)
    acquisition = ismrmrd.Acquisition.from_array(noise.numpy(), sample_time_us=NOISE_DWELL_S * 1e6)
    acquisition.setFlag(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)
    return acquisition


def _readout(scan: Scan, data: np.ndarray, repetition: int, slice_: int, shot: int) -> ismrmrd.Acquisition:
    readouts = scan.readouts
    trajectory = None
    if readouts.kind != xsd.trajectoryType.CARTESIAN:
        # MRD has kx first.
        trajectory = np.ascontiguousarray(readouts.trajectory[:, shot].flip(0).T.numpy(), dtype=np.float32)
    acquisition = ismrmrd.Acquisition.from_array(
        np.ascontiguousarray(data),
        trajectory,
        sample_time_us=readouts.dwell_s * 1e6,
        center_sample=readouts.centre_sample,
        position=(0, 0, scan.positions_mm[slice_]),
        read_dir=(1, 0, 0),
        phase_dir=(0, 1, 0),
        slice_dir=(0, 0, 1),
    )
    acquisition.idx.kspace_encode_step_1 = readouts.steps[shot]
    acquisition.idx.slice = slice_
    acquisition.idx.repetition = repetition
    for flag in _flags(scan, repetition, slice_, shot):
        acquisition.setFlag(flag)
    return acquisition


def _flags(scan: Scan, repetition: int, slice_: int, shot: int) -> Iterator[int]:
    first, last = shot == 0, shot == len(scan.readouts.steps) - 1
    last_slice = slice_ == len(scan.positions_mm) - 1
    signs = {
        ismrmrd.ACQ_FIRST_IN_SLICE: first,
        ismrmrd.ACQ_LAST_IN_SLICE: last,
        ismrmrd.ACQ_FIRST_IN_REPETITION: first and slice_ == 0,
        ismrmrd.ACQ_LAST_IN_REPETITION: last and last_slice,
        ismrmrd.ACQ_LAST_IN_MEASUREMENT: last and last_slice and repetition == scan.repetitions - 1,
        ismrmrd.ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING: scan.readouts.steps[shot] in scan.readouts.calibration,
    }
    return (flag for flag, holds in signs.items() if holds)


def _header(scan: Scan) -> xsd.ismrmrdHeader:
    return xsd.ismrmrdHeader(
        measurementInformation=xsd.measurementInformationType(
            measurementID=scan.name,
            patientPosition=xsd.patientPositionType.HFS,
            protocolName=f"simulated {scan.readouts.kind.value}",
        ),
        acquisitionSystemInformation=xsd.acquisitionSystemInformationType(
            systemVendor="spinstream simulation (time stamps in 2.5 ms as of Siemens)",
            systemFieldStrength_T=_FIELD_STRENGTH_T,
            relativeReceiverNoiseBandwidth=NOISE_BANDWIDTH_RATIO,
            receiverChannels=scan.signal.shape[1],
        ),
        experimentalConditions=xsd.experimentalConditionsType(H1resonanceFrequency_Hz=_FREQUENCY_HZ),
        encoding=[_encoding(scan)],
        sequenceParameters=xsd.sequenceParametersType(
            TR=[scan.repetition_time_s * 1e3], TE=[scan.readouts.echo_time_s * 1e3]
        ),
    )


def _encoding(scan: Scan) -> xsd.encodingType:
    parallel = xsd.parallelImagingType(
        accelerationFactor=xsd.accelerationFactorType(
            kspace_encoding_step_1=scan.acceleration, kspace_encoding_step_2=1
        ),
        calibrationMode=xsd.calibrationModeType.EMBEDDED if scan.readouts.calibration else None,
    )
    return xsd.encodingType(
        encodedSpace=_space(scan, scan.readouts.oversampling),
        reconSpace=_space(scan, 1),
        encodingLimits=_limits(scan),
        trajectory=scan.readouts.kind,
        trajectoryDescription=scan.readouts.description,
        parallelImaging=parallel if scan.acceleration > 1 else None,
    )


def _space(scan: Scan, oversampling: int) -> xsd.encodingSpaceType:
    ny, nx = scan.matrix[0], scan.matrix[1] * oversampling
    return xsd.encodingSpaceType(
        matrixSize=xsd.matrixSizeType(x=nx, y=ny, z=1),
        fieldOfView_mm=xsd.fieldOfViewMm(x=nx * scan.pixel_mm, y=ny * scan.pixel_mm, z=scan.slice_mm),
    )


def _limits(scan: Scan) -> xsd.encodingLimitsType:
    def limit(count: int, centre: int = 0) -> xsd.limitType:
        return xsd.limitType(minimum=0, maximum=count - 1, center=centre)

    readouts = scan.readouts
    return xsd.encodingLimitsType(
        kspace_encoding_step_0=limit(readouts.samples, readouts.centre_sample),
        kspace_encoding_step_1=limit(readouts.all_steps, readouts.centre_step),
        kspace_encoding_step_2=limit(1),
        slice=limit(len(scan.positions_mm)),
        repetition=limit(scan.repetitions),
    )
