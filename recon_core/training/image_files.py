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

# Pixels each way. What is smaller is another thing: an affine, or the colours of `[y, x, 3]`.
_SMALLEST = 32

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
    """The image files among `paths` and below the folders among them, sorted; each once, hidden ones left out.

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
    return list({path.resolve(): path for path in found}.values())


def slices_of(path: Path, key: str | None = None) -> Iterator[NDArray[np.generic]]:
    """Every slice `[y, x]` of a file, real or complex, as stored.

    Arrays of npz and npy files are `[y, x]` or stacks `[..., y, x]`. A NIfTI volume is cut along its third axis and,
    if it is thick enough and its voxels are nearly cubes, along the other two as well; further axes (echoes,
    repetitions) are stacked.

    Args:
        path: of the file.
        key: the one array of an npz file to take; all of two dimensions and more by default. Other files have one.

    Raises:
        ImageFileError: The file is broken, holds pickled objects, no images or too small ones, or the key is not there.
    """
    try:
        stacks = list(_nifti_stacks(path) if path.name.lower().endswith(_NIFTI) else _numpy_stacks(path, key))
    except _DAMAGE as error:
        raise ImageFileError(f"{path}: not readable as images: {error}") from error
    if not stacks:
        raise ImageFileError(f"{path}: expected arrays of numbers with two dimensions or more, found none")
    for stack in stacks:
        yield from stack


def _is_image(path: Path) -> bool:
    # macOS leaves "._head.nii" beside "head.nii" on the disks of others.
    return path.is_file() and path.name.lower().endswith(SUFFIXES) and not path.name.startswith(".")


def _require_size(shape: tuple[int, ...], what: str) -> None:
    if min(shape) < _SMALLEST:
        raise ValueError(f"expected images of {_SMALLEST} pixels and more each way, got {what}")


def _numpy_stacks(path: Path, key: str | None) -> Iterator[NDArray[np.generic]]:
    """Arrays as stacks `[n, y, x]`."""
    with path.open("rb") as file:
        content = np.load(file, allow_pickle=False)
        if isinstance(content, np.ndarray):
            arrays = {"": content}
        elif key is None or key in content.files:
            # What is no array in an archive comes as bytes.
            arrays = {name: np.asarray(content[name]) for name in (content.files if key is None else [key])}
        else:
            raise ValueError(f'no array "{key}"; it holds {", ".join(content.files) or "nothing"}')
    for name, array in arrays.items():
        if array.ndim >= 2 and array.dtype.kind in _NUMBERS:
            told = f"{name} {list(array.shape)}".strip()
            _require_size(
                array.shape[-2:], f"{told}; stacks are [..., y, x], and --key chooses one array of an npz file"
            )
            yield array.reshape(-1, *array.shape[-2:])


def _nifti_stacks(path: Path) -> Iterator[NDArray[np.generic]]:
    image = nibabel.load(path)
    if not isinstance(image, SpatialImage):
        raise ValueError("not a NIfTI image")
    volumes = np.asanyarray(image.dataobj)
    if volumes.ndim < 2 or volumes.dtype.kind not in _NUMBERS:
        return
    _require_size(volumes.shape[:2], f"a volume {list(volumes.shape)}")
    edges = np.asarray(image.header.get_zooms()[:3], float)
    volumes = volumes.reshape(*volumes.shape[:3], -1) if volumes.ndim > 2 else volumes[:, :, None, None]
    cubes = volumes.shape[2] >= _SMALLEST and edges.max() <= _ISOTROPIC * edges.min()
    for volume in np.moveaxis(volumes, -1, 0):
        for axis in (2, 1, 0) if cubes else (2,):
            # NIfTI's first axis runs across the page, ours down it.
            yield np.moveaxis(volume, axis, 0).swapaxes(1, 2)
