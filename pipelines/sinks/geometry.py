"""Where the pixels of an MRD image lie in the patient, also of one that does not say so; see `gadgets.geometry`."""

from __future__ import annotations

import ismrmrd
import numpy as np
from numpy.typing import NDArray

from gadgets import geometry

FloatArray = NDArray[np.float64]


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
    matrix = [max(n, 1) for n in head.matrix_size]
    fov_mm = [wide if wide > 0 else float(n) for wide, n in zip(head.field_of_view, matrix, strict=True)]
    return geometry.affine_lps(head, matrix, fov_mm)


def missing_geometry(head: ismrmrd.ImageHeader) -> list[str]:
    """What the header leaves open and `affine_lps` assumes, one line each."""
    missing = []
    if not any(head.read_dir) or not any(head.phase_dir):
        missing.append("images have no read and phase direction; taken as axial")
    if not all(head.field_of_view):
        missing.append("images have no field of view; taken as 1 mm per pixel")
    return missing
