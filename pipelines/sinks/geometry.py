"""Where the pixels of an MRD image lie in the patient: the one place that knows.

The header's `position` is the centre of the field of view, and the centre of the field of view is the pixel `N // 2`
of every axis, because that is where a centred FFT puts it. So the corner pixel (0, 0, 0) lies at `position` minus
`N // 2` pixels along each direction, for even and odd N alike. x runs along `read_dir`, y along `phase_dir`, z along
`slice_dir`; all in LPS millimetres (L, P, S positive), the coordinates of MRD and DICOM.
"""

from __future__ import annotations

import ismrmrd
import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

# Directions are float32 on the wire; what is further off than this is not a set of axes.
_TOLERANCE = 1e-3


def affine_lps(head: ismrmrd.ImageHeader) -> FloatArray:
    """Maps voxel indices (x, y, z, 1) to millimetres (L, P, S, 1).

    A header without directions stands for an axial image (x to the left, y to the back), one without a field of view
    for pixels of 1 mm; `missing_geometry` says when that is so.

    Args:
        head: of an MRD image.

    Returns:
        Matrix `[4, 4]`.

    Raises:
        ValueError: the directions are not orthogonal unit vectors, or a number is not finite.
    """
    affine = np.eye(4)
    affine[:3, :3] = _axes(head) * _voxel_mm(head)
    centre = np.array(list(head.matrix_size)) // 2
    affine[:3, 3] = np.array(list(head.position)) - affine[:3, :3] @ centre
    if not np.isfinite(affine).all():
        raise ValueError(f"the geometry is not finite: position {list(head.position)}, voxels {_voxel_mm(head)} mm")
    return affine


def missing_geometry(head: ismrmrd.ImageHeader) -> list[str]:
    """What the header leaves open and `affine_lps` assumes, one line each."""
    missing = []
    if not any(head.read_dir) or not any(head.phase_dir):
        missing.append("images have no read and phase direction; taken as axial")
    if not all(head.field_of_view):
        missing.append("images have no field of view; taken as 1 mm per pixel")
    return missing


def _axes(head: ismrmrd.ImageHeader) -> FloatArray:
    """Unit vectors `[3, 3]` along x, y, z as columns."""
    read, phase, normal = (np.array(list(v)) for v in (head.read_dir, head.phase_dir, head.slice_dir))
    if not read.any() or not phase.any():
        return np.eye(3)
    axes = np.stack([read, phase, normal if normal.any() else np.cross(read, phase)], axis=1)
    if not np.allclose(axes.T @ axes, np.eye(3), atol=_TOLERANCE):
        raise ValueError(
            f"expected orthogonal unit vectors as directions, got read {read}, phase {phase}, slice {normal}"
        )
    return np.asarray(axes / np.linalg.norm(axes, axis=0))


def _voxel_mm(head: ismrmrd.ImageHeader) -> FloatArray:
    matrix, fov = np.array(list(head.matrix_size)), np.array(list(head.field_of_view))
    return np.asarray(np.where(fov > 0, fov / np.maximum(matrix, 1), 1.0))
