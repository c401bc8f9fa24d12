"""NIfTI output, read back with nibabel."""

from __future__ import annotations

import json
import random

import nibabel as nib
import numpy as np
import pytest

from pipelines.sinks.nifti import NiftiSink

from image_items import HEADER, OBLIQUE, TYPES, bright_voxel, mrd_image

RAS = np.array([-1, -1, 1])


def written(folder, *images, header=HEADER):
    sink = NiftiSink(folder, header)
    for image in images:
        sink.write(image)
    sink.close()
    return {path.name.removesuffix(".nii.gz"): nib.load(path) for path in sorted(folder.glob("*.nii.gz"))}


def slices(count, step_mm=7.5, value=lambda n: n, axes=OBLIQUE, **fields):
    """Slices `step_mm` apart along the slice direction, each with its own value."""
    start = np.array([3.0, 4.0, 5.0])
    return [
        mrd_image(np.full((4, 6), value(n), np.uint16), axes, tuple(start + step_mm * n * axes[:, 2]), (90, 80, 5),
                  slice=n, **fields)
        for n in range(count)
    ]  # fmt: skip


def brightest(image):
    """The world point of the brightest voxel, in RAS mm, according to nibabel."""
    index = np.unravel_index(np.asarray(image.dataobj).argmax(), image.shape)
    return nib.affines.apply_affine(image.affine, index[:3])


def test_bright_voxel_lies_where_it_was(tmp_path):
    image, point = bright_voxel(fov=(160.0, 90.0, 12.0))
    (file,) = written(tmp_path, image).values()
    np.testing.assert_allclose(brightest(file), point * RAS, atol=1e-4)
    assert file.header.get_zooms() == (20, 15, 4)
    assert file.header.get_xyzt_units()[0] == "mm"


def test_both_forms_are_scanner_coordinates_and_agree(tmp_path):
    mirrored = OBLIQUE * [1, 1, -1]  # slices counted the other way: a left-handed system
    for n, axes in enumerate((OBLIQUE, mirrored)):
        image, _ = bright_voxel(axes=axes)
        (file,) = written(tmp_path / str(n), image).values()
        assert (int(file.header["sform_code"]), int(file.header["qform_code"])) == (1, 1)
        np.testing.assert_allclose(file.get_qform(), file.get_sform(), atol=1e-3)


def test_slices_with_a_gap_are_stacked_in_order_of_position(tmp_path):
    images = slices(5)
    random.Random(1).shuffle(images)
    (file,) = written(tmp_path, *images).values()
    assert file.shape == (6, 4, 5)
    np.testing.assert_array_equal(file.dataobj[0, 0], [0, 1, 2, 3, 4])
    assert file.header.get_zooms() == pytest.approx((15, 20, 7.5), rel=1e-5)
    centre = np.array([3.0, 4.0, 5.0]) + 7.5 * 4 * OBLIQUE[:, 2]
    np.testing.assert_allclose(nib.affines.apply_affine(file.affine, (3, 2, 4)), centre * RAS, atol=1e-4)


def test_stack_agrees_with_its_slices_one_by_one(tmp_path):
    image, point = bright_voxel((1, 1, 6, 8), (0, 4, 1), np.uint16, position=(1.0, 2.0, 3.0))
    dark = mrd_image(np.zeros((6, 8), np.uint16), position=tuple(np.array([1.0, 2.0, 3.0]) - 9 * OBLIQUE[:, 2]))
    (file,) = written(tmp_path, image, dark).values()
    assert file.shape == (8, 6, 2)
    np.testing.assert_allclose(brightest(file), point * RAS, atol=1e-4)


def test_repetitions_become_the_fourth_axis(tmp_path):
    images = [i for r in range(3) for i in slices(2, value=lambda n, r=r: 10 * r + n, repetition=r)]
    (file,) = written(tmp_path, *images).values()
    assert file.shape == (6, 4, 2, 3)
    np.testing.assert_array_equal(file.dataobj[0, 0], [[0, 10, 20], [1, 11, 21]])


def test_repeats_that_nobody_counted_are_kept_in_order(tmp_path):
    images = slices(2) + slices(2, value=lambda n: 10 + n)
    (file,) = written(tmp_path, *images).values()
    np.testing.assert_array_equal(file.dataobj[0, 0], [[0, 10], [1, 11]])


def test_unfinished_repetition_goes_to_its_own_file(tmp_path):
    images = [i for r in range(3) for i in slices(3, value=lambda n, r=r: 10 * r + n, repetition=r)][:-1]
    files = written(tmp_path, *images)
    assert {name: file.shape for name, file in files.items()} == {
        "series001": (6, 4, 3, 2),
        "series001_part2": (6, 4, 2),
    }


def test_uneven_slices_are_not_called_a_volume(tmp_path):
    even, gap = slices(3), slices(5)[4]
    files = written(tmp_path, *even, gap)
    assert [file.shape for file in files.values()] == [(6, 4, 1)] * 4
    assert [int(file.dataobj[0, 0, 0]) for file in files.values()] == [0, 1, 2, 4]


def test_crossing_slices_are_not_called_a_volume(tmp_path):
    turned = OBLIQUE[:, [2, 1, 0]] * [1, 1, -1]
    files = written(tmp_path, *slices(2), *slices(1, axes=turned, value=lambda n: 9))
    assert [file.shape for file in files.values()] == [(6, 4, 2), (6, 4, 1)]


def test_contrasts_sets_and_phase_images_have_their_own_files(tmp_path):
    one = slices(1)
    files = written(
        tmp_path, *one, *slices(1, contrast=1), *slices(1, contrast=1, set=2), *slices(1, image_type=2),
        *slices(1, image_series_index=12),
    )  # fmt: skip
    assert set(files) == {
        "series001", "series001_contrast1", "series001_contrast1_set2", "series001_phase", "series012",
    }  # fmt: skip


def test_channels_become_the_fifth_axis(tmp_path):
    pixels = np.arange(2 * 3 * 4 * 5, dtype=np.int16).reshape(2, 3, 4, 5)
    (file,) = written(tmp_path, mrd_image(pixels)).values()
    assert file.shape == (5, 4, 3, 1, 2)
    np.testing.assert_array_equal(np.asarray(file.dataobj)[..., 0, :], pixels.transpose(3, 2, 1, 0))


@pytest.mark.parametrize("dtype", [*TYPES, np.int64])
def test_pixels_are_stored_as_they_came(tmp_path, dtype):
    pixels = (np.random.default_rng(7).random((3, 4)) * 1000).astype(dtype)
    if np.iscomplexobj(pixels):
        pixels *= 1 + 2j
    (file,) = written(tmp_path, mrd_image(pixels)).values()
    assert file.get_data_dtype() == dtype
    np.testing.assert_array_equal(np.asarray(file.dataobj)[:, :, 0], pixels.T)


def test_sidecar_tells_how_it_was_measured_and_names_no_patient(tmp_path):
    meta = {"SeriesDescription": "spiral_image", "ImageProcessingHistory": ["a", "b"], "DataRole": "Image"}
    written(tmp_path, *slices(2, contrast=1, meta=meta))
    text = (tmp_path / "series001_contrast1.json").read_text()
    assert json.loads(text) == {
        "EchoTime": 0.00925, "RepetitionTime": 0.025, "FlipAngle": 15, "MagneticFieldStrength": 6.98,
        "ImagingFrequency": 297.2, "SeriesNumber": 1, "SeriesDescription": "spiral_image",
        "ImageProcessingHistory": ["a", "b"], "DataRole": "Image",
    }  # fmt: skip
    assert "Doe" not in text


def test_image_of_a_foreign_server_without_anything(tmp_path):
    image = mrd_image(np.ones((3, 4), np.float32), np.zeros((3, 3)), (0, 0, 0), (0, 0, 0), image_series_index=0)
    (file,) = written(tmp_path, image, header=None).values()
    np.testing.assert_array_equal(file.affine, [[-1, 0, 0, 2], [0, -1, 0, 1], [0, 0, 1, 0], [0, 0, 0, 1]])
    assert json.loads((tmp_path / "series000.json").read_text()) == {"SeriesNumber": 0}
