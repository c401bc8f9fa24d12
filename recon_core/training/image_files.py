"""Slices of a user's own image files: NIfTI, npz and npy."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from tokenize import TokenError
from zipfile import BadZipFile

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError as NibabelError
from nibabel.spatialimages import HeaderDataError, SpatialImage
from numpy.typing import NDArray

_NIFTI = (".nii", ".nii.gz")
SUFFIXES = (*_NIFTI, ".npz", ".npy")

_NUMBERS = "uifc"

# What readers may meet in a file whose bytes are not what they were.
_DAMAGE = (
    *(OSError, EOFError, ValueError, RuntimeError, OverflowError, MemoryError, SyntaxError, TokenError),
    *(zlib.error, BadZipFile, NibabelError, HeaderDataError),
)

# Voxels whose edges differ by less than this are cut in all three directions: the others would give squeezed heads.
_ISOTROPIC = 1.25


class ImageFileError(ValueError):
    """A file that cannot be read as images; the message names it."""


def image_files(paths: Iterable[Path]) -> list[Path]:
    """The image files among `paths` and below the folders among them, sorted.

    Raises:
        ImageFileError: A path does not exist, is a file of another kind, or a folder without image files.
    """
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise ImageFileError(f"{path}: no such file or folder")
        below = sorted(p for p in path.rglob("*") if _is_image(p)) if path.is_dir() else [path]
        if not below or not all(_is_image(p) for p in below):
            raise ImageFileError(f"{path}: expected {', '.join(SUFFIXES)} files, found none")
        found += below
    return found


def slices_of(path: Path, key: str | None = None) -> Iterator[NDArray[np.generic]]:
    """Every slice `[y, x]` of a file, real or complex, as stored.

    Arrays of npz and npy files are `[y, x]` or stacks `[..., y, x]`. A NIfTI volume is cut along its third axis and,
    if its voxels are nearly cubes, along the other two as well; further axes (echoes, repetitions) are stacked.

    Args:
        path: of the file.
        key: the one array of an npz file to take; all of two dimensions and more by default.

    Raises:
        ImageFileError: The file is broken, holds pickled objects or no images, or the key is not there.
    """
    try:
        stacks = list(_nifti_stacks(path) if path.name.endswith(_NIFTI) else _numpy_stacks(path, key))
    except _DAMAGE as error:
        raise ImageFileError(f"{path}: not readable as images: {error}") from error
    if not stacks:
        raise ImageFileError(f"{path}: expected arrays of numbers with two dimensions or more, found none")
    for stack in stacks:
        yield from stack


def _is_image(path: Path) -> bool:
    return path.is_file() and path.name.endswith(SUFFIXES)


def _numpy_stacks(path: Path, key: str | None) -> Iterator[NDArray[np.generic]]:
    """Arrays as stacks `[n, y, x]`."""
    with path.open("rb") as file:
        content = np.load(file, allow_pickle=False)
        if isinstance(content, np.ndarray):
            arrays = [content]
        elif key is None or key in content.files:
            # What is no array in an archive comes as bytes.
            arrays = [np.asarray(content[name]) for name in (content.files if key is None else [key])]
        else:
            raise ValueError(f'no array "{key}"; it holds {", ".join(content.files) or "nothing"}')
    for array in arrays:
        if array.ndim >= 2 and array.dtype.kind in _NUMBERS:
            yield array.reshape(-1, *array.shape[-2:])


def _nifti_stacks(path: Path) -> Iterator[NDArray[np.generic]]:
    image = nibabel.load(path)
    if not isinstance(image, SpatialImage):
        raise ValueError("not a NIfTI image")
    volumes = np.asanyarray(image.dataobj)
    if volumes.ndim < 2 or volumes.dtype.kind not in _NUMBERS:
        return
    edges = np.asarray(image.header.get_zooms()[:3], float)
    volumes = volumes.reshape(*volumes.shape[:3], -1) if volumes.ndim > 2 else volumes[:, :, None, None]
    cubes = volumes.shape[2] > 1 and edges.max() <= _ISOTROPIC * edges.min()
    for volume in np.moveaxis(volumes, -1, 0):
        for axis in (2, 1, 0) if cubes else (2,):
            # NIfTI's first axis runs across the page, ours down it.
            yield np.moveaxis(volume, axis, 0).swapaxes(1, 2)
