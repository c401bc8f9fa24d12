"""Where the pixels of frames and of MRD images lie in the patient: the one place that knows.

The position that MRD gives is the centre of the field of view, and that is the pixel `N // 2` of every axis, because
that is where a centred FFT puts it. So the corner pixel (0, 0, 0) lies at the position minus `N // 2` pixels along each
direction, for even and odd N alike. x runs along `read_dir`, y along `phase_dir`, z along `slice_dir`; all in LPS
millimetres (L, P, S positive), the coordinates of MRD and DICOM.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ismrmrd
import numpy as np
from numpy.typing import NDArray

from gadgets.frame import Frame

Affine = NDArray[np.float64]

TOLERANCE = 1e-3
"""Directions are float32 on the wire; what is further off than this is not a set of axes."""


def affine_lps(head: Any, matrix: Sequence[int], fov_mm: Sequence[float]) -> Affine:
    """Maps voxel indices (x, y, z, 1) to LPS millimetres (L, P, S, 1).

    A header without directions stands for an axial slice, x to the left and y to the back.

    Args:
        head: of an MRD acquisition or image.
        matrix: voxels along x, y, z.
        fov_mm: their field of view along x, y, z.

    Returns:
        Matrix `[4, 4]`.

    Raises:
        ValueError: the directions are not orthogonal unit vectors, or a number is not finite.
    """
    affine = np.eye(4)
    affine[:3, :3] = _axes(head) * (np.array(fov_mm, float) / np.array(matrix))
    affine[:3, 3] = np.array(list(head.position)) - affine[:3, :3] @ (np.array(matrix) // 2)
    if not np.isfinite(affine).all():
        raise ValueError(f"the geometry is not finite: position {list(head.position)}, fields of view {list(fov_mm)}")
    return affine


def affine_of_frame(frame: Frame) -> Affine:
    """Of the voxels of the encoded grid, as `affine_lps`.

    Raises:
        ValueError: from `affine_lps`.
    """
    space = frame.space
    return affine_lps(frame.reference, space.encoded_matrix[::-1], space.encoded_fov_mm[::-1])


def affine_of_image(head: ismrmrd.ImageHeader) -> Affine:
    """Of the voxels of an MRD image, as `affine_lps`.

    Raises:
        ValueError: it has no field of view, or from `affine_lps`.
    """
    matrix, fov_mm = list(head.matrix_size), list(head.field_of_view)
    if not min(fov_mm) > 0:
        raise ValueError(f"the image has no field of view: {fov_mm} mm")
    return affine_lps(head, [max(n, 1) for n in matrix], fov_mm)


def _axes(head: Any) -> Affine:
    """Unit vectors `[3, 3]` along x, y, z as columns."""
    read, phase, normal = (np.array(list(v), float) for v in (head.read_dir, head.phase_dir, head.slice_dir))
    if not read.any() or not phase.any():
        return np.eye(3)
    axes = np.stack([read, phase, normal if normal.any() else np.cross(read, phase)], axis=1)
    if not np.allclose(axes.T @ axes, np.eye(3), atol=TOLERANCE):
        raise ValueError(
            f"expected orthogonal unit vectors as directions, got read {read}, phase {phase}, slice {normal}"
        )
    return np.asarray(axes / np.linalg.norm(axes, axis=0))
