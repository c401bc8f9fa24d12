"""The affine of MRD images against cases worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.sinks.geometry import affine_lps, missing_geometry

from image_items import OBLIQUE, bright_voxel, mrd_image

AXIAL = np.eye(3)


def test_axial_image_with_an_even_and_an_odd_axis():
    head = mrd_image(np.zeros((3, 4)), AXIAL, position=(10, 20, 30), fov=(8, 9, 5)).getHead()
    # 4 columns of 2 mm: the centre is column 2, so column 0 lies 4 mm before it. 3 rows of 3 mm: the centre is row 1.
    expected = [[2, 0, 0, 6], [0, 3, 0, 17], [0, 0, 5, 30], [0, 0, 0, 1]]
    np.testing.assert_allclose(affine_lps(head), expected, atol=1e-6)


def test_sagittal_image():
    """Read to the back, phase to the feet, slice to the left (read x phase would be to the right)."""
    axes = np.array([[0, 0, 1], [1, 0, 0], [0, -1, 0]])
    head = mrd_image(np.zeros((4, 4)), axes, position=(0, 0, 0), fov=(40, 80, 6)).getHead()
    expected = [[0, 0, 6, 0], [10, 0, 0, -20], [0, -20, 0, 40], [0, 0, 0, 1]]
    np.testing.assert_allclose(affine_lps(head), expected, atol=1e-6)


def test_oblique_image_tilted_by_thirty_degrees():
    c, s = np.sqrt(3) / 2, 0.5
    axes = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    head = mrd_image(np.zeros((2, 2)), axes, position=(5, 6, 7), fov=(2, 4, 3)).getHead()
    # Row 0 is one row of 2 mm before the centre, along (0, c, s).
    np.testing.assert_allclose(affine_lps(head)[:3, 3], [4, 6 - 2 * c, 7 - 2 * s], atol=1e-6)
    np.testing.assert_allclose(affine_lps(head)[:3, 2], [0, -1.5, 3 * c], atol=1e-6)


@pytest.mark.parametrize("slices", [4, 5])
def test_centre_of_a_volume_is_its_middle_voxel(slices):
    head = mrd_image(np.zeros((slices, 6, 8)), OBLIQUE, position=(1, 2, 3), fov=(80, 60, 50)).getHead()
    np.testing.assert_allclose(affine_lps(head) @ [4, 3, slices // 2, 1], [1, 2, 3, 1], atol=1e-5)


def test_voxel_lies_where_first_principles_put_it():
    image, point = bright_voxel()
    np.testing.assert_allclose((affine_lps(image.getHead()) @ [6, 1, 2, 1])[:3], point, atol=1e-5)


def test_missing_slice_direction_completes_the_axes():
    axes = OBLIQUE.copy()
    axes[:, 2] = 0
    head = mrd_image(np.zeros((2, 2)), axes, fov=(2, 2, 1)).getHead()
    np.testing.assert_allclose(affine_lps(head)[:3, 2], OBLIQUE[:, 2], atol=1e-6)
    assert not missing_geometry(head)


def test_image_without_geometry_is_axial_with_pixels_of_1_mm():
    head = mrd_image(np.zeros((4, 4)), np.zeros((3, 3)), position=(0, 0, 0), fov=(0, 0, 0)).getHead()
    np.testing.assert_array_equal(affine_lps(head), [[1, 0, 0, -2], [0, 1, 0, -2], [0, 0, 1, 0], [0, 0, 0, 1]])
    assert len(missing_geometry(head)) == 2


@pytest.mark.parametrize("axes", [2 * np.eye(3), np.array([[1, 0.1, 0], [0, 1, 0], [0, 0, 1]])])
def test_directions_that_are_no_axes_are_refused(axes):
    with pytest.raises(ValueError, match="orthogonal unit vectors"):
        affine_lps(mrd_image(np.zeros((2, 2)), axes).getHead())


def test_infinite_position_is_refused():
    with pytest.raises(ValueError, match="not finite"):
        affine_lps(mrd_image(np.zeros((2, 2)), position=(0, np.inf, 0)).getHead())
