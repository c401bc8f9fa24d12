"""DICOM output, read back with pydicom and judged by dciodvfy."""

from __future__ import annotations

import shutil
import subprocess

import numpy as np
import pydicom
import pytest

from pipelines.sinks.dicom import DicomSink

from image_items import HEADER, OBLIQUE, TYPES, bright_voxel, mrd_image


def written(folder, *images, header=HEADER):
    sink = DicomSink(folder, header)
    for image in images:
        sink.write(image)
    sink.close()
    return [pydicom.dcmread(path) for path in sorted(folder.glob("*.dcm"))]


def values(file):
    return file.pixel_array * float(file.get("RescaleSlope", 1)) + float(file.get("RescaleIntercept", 0))


def world(file, row, column):
    """DICOM PS3.3, equation C.7.6.2.1-1."""
    along_row, along_column = np.reshape(np.array(file.ImageOrientationPatient, float), (2, 3))
    between_rows, between_columns = (float(x) for x in file.PixelSpacing)
    corner = np.array(file.ImagePositionPatient, float)
    return corner + along_row * between_columns * column + along_column * between_rows * row


def test_bright_voxel_lies_where_it_was(tmp_path):
    image, point = bright_voxel(fov=(160.0, 90.0, 12.0))
    files = written(tmp_path, image)
    brightest = max(files, key=lambda file: values(file).max())
    row, column = np.unravel_index(values(brightest).argmax(), brightest.pixel_array.shape)
    assert (brightest.InstanceNumber, row, column) == (3, 1, 6)
    np.testing.assert_allclose(world(brightest, row, column), point, atol=1e-4)


def test_planes_of_a_volume_step_along_the_slice_direction(tmp_path):
    image, _ = bright_voxel(fov=(160.0, 90.0, 12.0))
    files = written(tmp_path, image)
    assert [float(f.SpacingBetweenSlices) for f in files] == [float(f.SliceThickness) for f in files] == [4, 4, 4]
    steps = np.diff([np.array(f.ImagePositionPatient, float) for f in files], axis=0)
    np.testing.assert_allclose(steps, [4 * OBLIQUE[:, 2]] * 2, atol=1e-4)
    np.testing.assert_allclose(np.diff([float(f.SliceLocation) for f in files]), [4, 4], atol=1e-4)
    assert {f.MRAcquisitionType for f in files} == {"3D"}


def test_slices_with_a_gap_keep_thickness_and_position(tmp_path):
    centres = [np.array([3.0, 4.0, 5.0]) + 7.5 * n * OBLIQUE[:, 2] for n in range(3)]
    images = [mrd_image(np.ones((4, 4), np.uint16), position=tuple(c), fov=(80, 80, 5), slice=n)
              for n, c in enumerate(centres)]  # fmt: skip
    files = written(tmp_path, *images)
    for file, centre in zip(files, centres, strict=True):
        np.testing.assert_allclose(world(file, 2, 2), centre, atol=1e-4)
        assert (float(file.SliceThickness), file.MRAcquisitionType) == (5, "2D")
        assert "SpacingBetweenSlices" not in file


@pytest.mark.parametrize("dtype", [np.uint16, np.int16])
def test_short_integers_are_stored_as_they_are(tmp_path, dtype):
    limits = np.iinfo(dtype)
    pixels = np.array([[limits.min, 0, limits.max], [1, 2, 3]], dtype)
    (file,) = written(tmp_path, mrd_image(pixels))
    np.testing.assert_array_equal(file.pixel_array, pixels)
    assert "RescaleSlope" not in file


@pytest.mark.parametrize("scale", [1e-9, 1.0, 3e7])
def test_floats_come_back_to_half_a_step(tmp_path, scale):
    pixels = (scale * np.random.default_rng(2).standard_normal((64, 64))).astype(np.float32)
    pixels[0] += np.float32(100 * scale)
    (file,) = written(tmp_path, mrd_image(pixels, meta={"DataRole": "Quantitative"}, image_type=3))
    slope = float(file.RescaleSlope)
    assert slope < 1.01 * np.ptp(pixels) / 65535
    assert np.abs(values(file) - pixels).max() <= slope * (0.5 + 1e-6)
    assert list(file.ImageType) == ["DERIVED", "PRIMARY", "R"]


def test_constant_floats(tmp_path):
    (file,) = written(tmp_path, mrd_image(np.full((3, 3), 0.1, np.float32)))
    np.testing.assert_allclose(values(file), np.float32(0.1), rtol=1e-9)


def test_scale_that_another_server_gave_is_kept(tmp_path):
    """T1 times ten in ms, as integers."""
    image = mrd_image(np.array([[12000]], np.uint16), meta={"RescaleSlope": "0.1", "RescaleIntercept": "0"})
    (file,) = written(tmp_path, image)
    assert values(file)[0, 0] == pytest.approx(1200)


def test_complex_images_become_magnitude_and_phase(tmp_path):
    real, imaginary = np.random.default_rng(4).standard_normal((2, 5, 6))
    pixels = (real + 1j * imaginary).astype(np.complex64)
    magnitude, phase = written(tmp_path, mrd_image(pixels))
    np.testing.assert_allclose(values(magnitude), np.abs(pixels), atol=float(magnitude.RescaleSlope))
    np.testing.assert_allclose(values(phase), np.angle(pixels), atol=float(phase.RescaleSlope))
    assert (magnitude.ImageType[2], phase.ImageType[2]) == ("M", "P")
    assert (magnitude.SeriesNumber, phase.SeriesNumber) == (1, 1001)
    assert magnitude.SeriesInstanceUID != phase.SeriesInstanceUID


def test_channels_are_numbered(tmp_path):
    pixels = np.arange(2 * 3 * 2 * 2, dtype=np.uint16).reshape(2, 3, 2, 2)
    files = written(tmp_path, mrd_image(pixels, meta={"ImageComments": "coils"}))
    assert [f.InstanceNumber for f in files] == [1, 2, 3, 4, 5, 6]
    assert files[3].ImageComments == "coils channel 2 of 2"
    np.testing.assert_array_equal([f.pixel_array for f in files], pixels.reshape(6, 2, 2))


def test_what_the_header_says_is_written(tmp_path):
    meta = {"SeriesDescription": "spiral_image", "ImageComments": "reconstruction",
            "ImageProcessingHistory": ["whitened", "seed 3"], "WindowCenter": "512", "WindowWidth": "1024"}  # fmt: skip
    image = mrd_image(np.ones((2, 2), np.uint16), meta=meta, contrast=1, repetition=4, image_series_index=7,
                      acquisition_time_stamp=36610 * 400 + 1)  # fmt: skip
    (file,) = written(tmp_path, image)
    expected = {
        "PatientName": "Doe^Jane", "PatientID": "P-7", "PatientBirthDate": "19800229", "PatientSex": "F",
        "StudyDate": "20261120", "StudyTime": "090807", "AccessionNumber": "4711", "StudyID": "a study of seven",
        "StudyInstanceUID": "1.2.826.0.1.3680043.10.54321.7", "FrameOfReferenceUID": "1.2.826.0.1.3680043.10.54321.9",
        "PatientPosition": "HFS", "ProtocolName": "spiral", "Manufacturer": "SIEMENS", "ManufacturerModelName": "Terra",
        "SeriesNumber": 7, "SeriesDescription": "spiral_image", "ImageComments": "reconstruction",
        "DerivationDescription": "whitened; seed 3", "AcquisitionNumber": 5, "EchoNumbers": 2,
        "AcquisitionTime": "101010.002500", "EchoTime": 9.25, "RepetitionTime": 25, "FlipAngle": 15,
        "MagneticFieldStrength": 6.98, "ImagingFrequency": 297.2, "PatientWeight": 61.5,
        "WindowCenter": 512, "WindowWidth": 1024,
    }  # fmt: skip
    assert {keyword: file.get(keyword) for keyword in expected} == expected


def test_unknown_clock_gives_no_time_of_day(tmp_path):
    image = mrd_image(np.ones((2, 2), np.uint16), acquisition_time_stamp=1000)
    (file,) = written(tmp_path, image, header=None)
    assert "AcquisitionTime" not in file


def test_echo_time_of_an_unlisted_contrast_is_not_invented(tmp_path):
    (file,) = written(tmp_path, mrd_image(np.ones((2, 2), np.uint16), contrast=2))
    assert file.EchoTime is None
    assert file.RepetitionTime == 25


def test_uids_are_those_of_one_study(tmp_path):
    pixels = np.ones((2, 2), np.uint16)
    images = [mrd_image(pixels), mrd_image(pixels), mrd_image(pixels, image_series_index=2)]
    files = written(tmp_path, *images, header=None)
    assert len({f.StudyInstanceUID for f in files}) == len({f.FrameOfReferenceUID for f in files}) == 1
    assert [f.SeriesInstanceUID == files[0].SeriesInstanceUID for f in files] == [True, True, False]
    assert len({f.SOPInstanceUID for f in files}) == 3
    assert all(f.file_meta.MediaStorageSOPInstanceUID == f.SOPInstanceUID for f in files)


@pytest.mark.parametrize(("width", "function"), [("0.5", "LINEAR_EXACT"), ("2", None)])
def test_narrow_windows_name_their_function(tmp_path, width, function):
    meta = {"WindowCenter": "0", "WindowWidth": width}
    (file,) = written(tmp_path, mrd_image(np.eye(3, dtype=np.float32), meta=meta))
    assert file.get("VOILUTFunction") == function


def test_values_that_are_not_finite_are_refused(tmp_path):
    with pytest.raises(ValueError, match="2 of 4 pixels are not finite"):
        written(tmp_path, mrd_image(np.array([[1, np.nan], [np.inf, 0]], np.float32)))


def test_earlier_files_are_not_mixed_with_new_ones(tmp_path):
    written(tmp_path, mrd_image(np.ones((2, 2), np.uint16)))
    with pytest.raises(FileExistsError, match="series001_00001"):
        DicomSink(tmp_path)


@pytest.mark.peers
@pytest.mark.skipif(not shutil.which("dciodvfy"), reason="dciodvfy (dicom3tools) is not installed")
@pytest.mark.parametrize("header", [HEADER, None], ids=["full header", "no header"])
def test_dciodvfy_finds_no_errors(tmp_path, header):
    sink = DicomSink(tmp_path, header)
    rng = np.random.default_rng(0)
    meta = {"ImageProcessingHistory": ["Zürich \\ " + "x" * 2000], "ImageComments": "ünïcode\nlines"}
    for series, dtype in enumerate(TYPES):
        pixels = (500 * rng.random((2, 3, 8, 6))).astype(dtype)
        sink.write(mrd_image(pixels, meta=meta, image_series_index=series, acquisition_time_stamp=5))
    sink.write(mrd_image(rng.standard_normal((5, 4)).astype(np.float32) / 1e3, meta={"DataRole": "Quantitative"}))
    for path in sorted(tmp_path.glob("*_00001.dcm")):
        report = subprocess.run(["dciodvfy", path], capture_output=True, text=True, check=False).stderr
        assert "MRImage" in report
        assert "Error" not in report, f"{path.name}: {report}"
