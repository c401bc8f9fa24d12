"""MRD images and a full header that tests of what becomes of images use."""

from __future__ import annotations

import ismrmrd
import numpy as np

HEADER_XML = """<?xml version="1.0"?>
<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">
  <subjectInformation>
    <patientName>Doe^Jane</patientName><patientWeight_kg>61.5</patientWeight_kg><patientID>P-7</patientID>
    <patientBirthdate>1980-02-29</patientBirthdate><patientGender>F</patientGender>
  </subjectInformation>
  <studyInformation>
    <studyDate>2026-11-20</studyDate><studyTime>09:08:07</studyTime><studyID>a study of seventeen</studyID>
    <accessionNumber>4711</accessionNumber><studyInstanceUID>1.2.826.0.1.3680043.10.54321.7</studyInstanceUID>
  </studyInformation>
  <measurementInformation>
    <patientPosition>HFS</patientPosition><protocolName>spiral</protocolName>
    <frameOfReferenceUID>1.2.826.0.1.3680043.10.54321.9</frameOfReferenceUID>
  </measurementInformation>
  <acquisitionSystemInformation>
    <systemVendor>SIEMENS</systemVendor><systemModel>Terra</systemModel>
    <systemFieldStrength_T>6.98</systemFieldStrength_T>
  </acquisitionSystemInformation>
  <experimentalConditions><H1resonanceFrequency_Hz>297200000</H1resonanceFrequency_Hz></experimentalConditions>
  <encoding>
    <encodedSpace>
      <matrixSize><x>16</x><y>8</y><z>1</z></matrixSize>
      <fieldOfView_mm><x>320</x><y>160</y><z>5</z></fieldOfView_mm>
    </encodedSpace>
    <reconSpace>
      <matrixSize><x>8</x><y>8</y><z>1</z></matrixSize>
      <fieldOfView_mm><x>160</x><y>160</y><z>5</z></fieldOfView_mm>
    </reconSpace>
    <encodingLimits/>
    <trajectory>spiral</trajectory>
  </encoding>
  <sequenceParameters><TR>25</TR><TE>4.5</TE><TE>9.25</TE><flipAngle_deg>15</flipAngle_deg></sequenceParameters>
</ismrmrdHeader>"""

HEADER = ismrmrd.xsd.CreateFromDocument(HEADER_XML.encode())

# 30 degrees about L, then 20 degrees about P: no axis is along another's. Columns: read, phase, slice.
TILT, TURN = np.deg2rad(30), np.deg2rad(20)
OBLIQUE = np.array(
    [[np.cos(TURN), 0, np.sin(TURN)], [0, 1, 0], [-np.sin(TURN), 0, np.cos(TURN)]],
) @ np.array(
    [[1, 0, 0], [0, np.cos(TILT), -np.sin(TILT)], [0, np.sin(TILT), np.cos(TILT)]],
)  # fmt: skip

TYPES = [np.uint16, np.int16, np.uint32, np.float32, np.float64, np.complex64, np.complex128]


def mrd_image(array, axes=OBLIQUE, position=(10.0, -20.0, 35.0), fov=(160.0, 120.0, 4.0), meta=None, **fields):
    """An MRD image of an array `[channel, z, y, x]` (or fewer axes), whose directions are the columns of `axes`."""
    image = ismrmrd.Image.from_array(np.asarray(array), transpose=False)
    fields = {"position": position, "field_of_view": fov, "image_series_index": 1, "image_type": 1, **fields}
    for name, direction in zip(("read_dir", "phase_dir", "slice_dir"), np.asarray(axes).T, strict=True):
        fields[name] = tuple(direction)
    for name, value in fields.items():
        setattr(image, name, value)
    image.meta = dict(meta or {})
    return image


def bright_voxel(shape=(1, 3, 6, 8), at=(2, 1, 6), dtype=np.float32, **fields):
    """An image that is dark but for one voxel `(z, y, x)`, and where that voxel is in LPS mm, from first principles:
    the field of view's centre is the voxel N // 2."""
    array = np.zeros(shape, dtype)
    array[(0, *at)] = 1000
    image = mrd_image(array, **fields)
    point = np.array(list(image.position), float)
    for name, index, size, fov in zip(
        ("slice_dir", "phase_dir", "read_dir"), at, shape[1:], list(image.field_of_view)[::-1], strict=True
    ):
        point += np.array(list(getattr(image, name))) * (index - size // 2) * fov / size
    return image, point
