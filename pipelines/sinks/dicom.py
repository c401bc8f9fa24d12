"""Images as DICOM MR Image Storage, one file per plane."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import ismrmrd
import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.uid import PYDICOM_IMPLEMENTATION_UID, UID, ExplicitVRLittleEndian, MRImageStorage, generate_uid
from pydicom.valuerep import format_number_as_ds

from pipelines.sinks.attributes import (
    Array,
    Header,
    components,
    number_of,
    sequence_values,
    series_description,
    text_of,
    values_of,
    window_of,
)
from pipelines.sinks.folder import output_folder
from pipelines.sinks.geometry import FloatArray, affine_lps

# DICOM elements by keyword.
Elements = dict[str, Any]

# The phase of a complex image is a series of its own, numbered this much higher than the magnitude.
PHASE_SERIES = 1000

# Siemens time stamps count 2.5 ms from midnight; what others count from is not said, so no time of day follows.
SIEMENS_TICK_MS = 2.5

# How many characters DICOM allows.
SH, LO, ST, LT = 16, 64, 1024, 10240

# Elements that must be there even where their value is not known (type 2).
UNKNOWN: Elements = dict.fromkeys(
    (
        *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "PatientPosition", "Laterality"),
        *("StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName"),
        *("Manufacturer", "PositionReferenceIndicator"),
        *("ScanOptions", "EchoTime", "RepetitionTime", "EchoTrainLength"),
    ),
    "",
)


class DicomSink:
    """Writes one MR Image Storage file per plane (z and channel).

    16-bit integers are stored as they are. All else is stored as int16 with a RescaleSlope and RescaleIntercept per
    file that give each value back to within half a slope. SpacingBetweenSlices is written for 3-D images only: a lone
    slice does not know its neighbours, and readers find their distance in ImagePositionPatient.

    Args:
        folder: of the files, named by series and running number.
        header: gives patient, study, scanner and sequence; UIDs that it does not give are made for this run.
        overwrite: replace files of the same names.

    Raises:
        FileExistsError: there are DICOM files in the folder and they may not be overwritten.
    """

    def __init__(self, folder: Path, header: Header | None = None, overwrite: bool = False) -> None:
        self._folder = output_folder(folder, ".dcm", overwrite)
        self._header = header
        self._measurement = {
            **UNKNOWN,
            **_run(),
            **_patient(header),
            **_study(header),
            **_measurement(header),
            **_system(header),
        }
        self._series_uids: defaultdict[int, str] = defaultdict(generate_uid)
        self._written: Counter[int] = Counter()

    def write(self, image: ismrmrd.Image) -> None:
        """Writes all planes of one image.

        Raises:
            ValueError: non-finite values, which DICOM cannot hold, or directions that are no axes.
        """
        affine = affine_lps(image.getHead())
        for part, (letter, values) in enumerate(components(image)):
            series = image.image_series_index + part * PHASE_SERIES
            about = {**self._measurement, **self._about(image, letter, series)}
            if part == 0:
                about |= _window(*window_of(image, values))
            for channel, z in np.ndindex(values.shape[:2]):
                plane = {**_place(affine, z, values.shape[1]), **_pixels(image, values[channel, z])}
                self._save({**about, **plane, "ImageComments": _comment(image, channel)}, series)

    def close(self) -> None:
        """Nothing is left to do."""

    def _about(self, image: ismrmrd.Image, letter: str, series: int) -> Elements:
        """What all planes of one image share."""
        head = image.getHead()
        quantitative = text_of(image, "DataRole") == "Quantitative"
        measured = sequence_values(self._header, head.contrast)
        return {
            **{keyword: _decimal(value) for keyword, value in measured.items()},
            **_time_of_day(self._header, head.acquisition_time_stamp),
            "SeriesInstanceUID": self._series_uids[series],
            "SeriesNumber": series,
            "SeriesDescription": _text(series_description(image, self._header), LO),
            "AcquisitionNumber": head.repetition + 1,
            "EchoNumbers": head.contrast + 1,
            "ImageType": ["DERIVED" if quantitative else "ORIGINAL", "PRIMARY", letter],
            "MRAcquisitionType": "3D" if head.matrix_size[2] > 1 else "2D",
            "DerivationDescription": _text("; ".join(values_of(image, "ImageProcessingHistory")), ST),
        }

    def _save(self, elements: Elements, series: int) -> None:
        self._written[series] += 1
        number = self._written[series]
        path = self._folder / f"series{series:03d}_{number:05d}.dcm"
        save(path, {**elements, "InstanceNumber": number})


def save(path: Path, elements: Mapping[str, Any]) -> None:
    """Writes an MR Image Storage file with the given elements and a new SOPInstanceUID."""
    meta = FileMetaDataset()
    meta.FileMetaInformationGroupLength = 0  # pydicom puts the right number here
    meta.FileMetaInformationVersion = b"\x00\x01"
    meta.MediaStorageSOPClassUID = MRImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = PYDICOM_IMPLEMENTATION_UID
    file = FileDataset(str(path), {}, file_meta=meta, preamble=bytes(128), is_implicit_VR=False, is_little_endian=True)
    file.SpecificCharacterSet = "ISO_IR 192"
    file.SOPClassUID = MRImageStorage
    file.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    for keyword, value in elements.items():
        setattr(file, keyword, value)
    dcmwrite(str(path), file)


def _run() -> Elements:
    now = datetime.now()
    return {
        "ContentDate": f"{now:%Y%m%d}",
        "ContentTime": f"{now:%H%M%S}",
        "Modality": "MR",
        "ScanningSequence": "RM",  # research mode: MRD does not say which of DICOM's kinds a sequence is
        "SequenceVariant": "NONE",
        "BurnedInAnnotation": "NO",
    }


def _patient(header: Header | None) -> Elements:
    subject = header.subjectInformation if header else None
    if subject is None:
        return {}
    return _known(
        PatientName=_text(subject.patientName, LO),
        PatientID=_text(subject.patientID, LO),
        PatientBirthDate=_date(subject.patientBirthdate),
        PatientSex=subject.patientGender if subject.patientGender in ("M", "F", "O") else None,
        PatientWeight=_decimal(subject.patientWeight_kg),
        PatientSize=_decimal(subject.patientHeight_m),
    )


def _study(header: Header | None) -> Elements:
    study = header.studyInformation if header else None
    if study is None:
        return {"StudyInstanceUID": generate_uid()}
    return _known(
        StudyInstanceUID=_uid(study.studyInstanceUID),
        StudyDate=_date(study.studyDate),
        StudyTime=_time(study.studyTime),
        StudyID=_text(study.studyID, SH),
        StudyDescription=_text(study.studyDescription, LO),
        AccessionNumber=_text(study.accessionNumber, SH),
        ReferringPhysicianName=_text(study.referringPhysicianName, LO),
        BodyPartExamined=_text((study.bodyPartExamined or "").upper(), SH),
    )


def _measurement(header: Header | None) -> Elements:
    measurement = header.measurementInformation if header else None
    if measurement is None:
        return {"FrameOfReferenceUID": generate_uid()}
    return _known(
        FrameOfReferenceUID=_uid(measurement.frameOfReferenceUID),
        SeriesDate=_date(measurement.seriesDate),
        SeriesTime=_time(measurement.seriesTime),
        PatientPosition=measurement.patientPosition.value if measurement.patientPosition else None,
        ProtocolName=_text(measurement.protocolName, LO),
        SequenceName=_text(measurement.sequenceName, SH),
    )


def _system(header: Header | None) -> Elements:
    system = header.acquisitionSystemInformation if header else None
    if system is None:
        return {}
    return _known(
        Manufacturer=_text(system.systemVendor, LO),
        ManufacturerModelName=_text(system.systemModel, LO),
        InstitutionName=_text(system.institutionName, LO),
        StationName=_text(system.stationName, SH),
        DeviceSerialNumber=_text(system.deviceSerialNumber, LO),
    )


def _time_of_day(header: Header | None, stamp: int) -> Elements:
    system = header.acquisitionSystemInformation if header else None
    if not stamp or system is None or "siemens" not in (system.systemVendor or "").lower():
        return {}
    clock = datetime.min + timedelta(milliseconds=SIEMENS_TICK_MS * stamp)
    return {"AcquisitionTime": f"{clock:%H%M%S.%f}"}


def _place(affine: FloatArray, z: int, slices: int) -> Elements:
    """Where a plane lies: DICOM gives the centre of its first pixel."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    rows, columns = affine[:3, 0] / spacing[0], affine[:3, 1] / spacing[1]
    corner = affine[:3, 2] * z + affine[:3, 3]
    between = {"SpacingBetweenSlices": _decimal(spacing[2])} if slices > 1 else {}
    return {
        "ImagePositionPatient": [_decimal(x) for x in corner],
        "ImageOrientationPatient": [_decimal(x) for x in (*rows, *columns)],
        "PixelSpacing": [_decimal(spacing[1]), _decimal(spacing[0])],
        "SliceThickness": _decimal(spacing[2]),
        "SliceLocation": _decimal(float(corner @ np.cross(rows, columns))),
        **between,
    }


def _pixels(image: ismrmrd.Image, plane: Array) -> Elements:
    stored, rescale = _stored(plane)
    if not rescale:  # whoever scaled these integers may have said how
        slope, intercept = number_of(image, "RescaleSlope"), number_of(image, "RescaleIntercept")
        rescale = (
            {} if slope is None else {"RescaleSlope": _decimal(slope), "RescaleIntercept": _decimal(intercept or 0)}
        )
    return {
        **rescale,
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": stored.shape[0],
        "Columns": stored.shape[1],
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": int(stored.dtype.kind == "i"),
        "PixelData": stored.tobytes(),
    }


def _stored(plane: Array) -> tuple[Array, Elements]:
    """The plane as 16-bit integers, and how to get its values back where they had to be scaled.

    Raises:
        ValueError: non-finite values.
    """
    if plane.dtype in (np.uint16, np.int16):
        return plane.astype(plane.dtype.newbyteorder("<")), {}
    values = plane.astype(np.float64)
    broken = int((~np.isfinite(values)).sum())
    if broken:
        raise ValueError(f"{broken} of {values.size} pixels are not finite, which DICOM cannot hold")
    low, high = values.min(), values.max()
    # One step less than int16 has: rounding the slope to DICOM's 16 characters cannot push a value over the end.
    slope = _decimal((high - low) / 65534 or 1.0)
    intercept = _decimal((high + low) / 2)
    stored = np.rint((values - float(intercept)) / float(slope)).astype("<i2")
    return stored, {"RescaleSlope": slope, "RescaleIntercept": intercept, "RescaleType": "US"}


def _window(low: float, high: float) -> Elements:
    width = high - low
    if width <= 0:
        return {}
    # DICOM's default function needs a width of 1 at least.
    function = {"VOILUTFunction": "LINEAR_EXACT"} if width < 1 else {}
    return {"WindowCenter": _decimal((low + high) / 2), "WindowWidth": _decimal(width), **function}


def _comment(image: ismrmrd.Image, channel: int) -> str:
    comment = text_of(image, "ImageComments")
    channels = image.getHead().channels
    return _text(f"{comment} channel {channel + 1} of {channels}" if channels > 1 else comment, LT)


def _known(**elements: object) -> Elements:
    return {keyword: value for keyword, value in elements.items() if value not in (None, "")}


def _text(value: object, length: int) -> str:
    """On one line, without DICOM's separator, and no longer than allowed, even for readers that count bytes."""
    line = "" if value is None else " ".join(str(value).split()).replace("\\", "/")
    return line.encode()[:length].decode(errors="ignore")


def _decimal(value: float | None) -> str:
    return "" if value is None else str(format_number_as_ds(float(value)))


def _date(date: Any) -> str:
    return f"{date.year:04d}{date.month:02d}{date.day:02d}" if date else ""


def _time(time: Any) -> str:
    return f"{time.hour:02d}{time.minute:02d}{time.second:02d}" if time else ""


def _uid(text: str | None) -> str:
    return text if text and UID(text).is_valid else generate_uid()
