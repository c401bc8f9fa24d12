"""Slices out of somebody's image file: NIfTI or .npz."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import nibabel
import numpy as np
import torch
from nibabel.filebasedimages import ImageFileError
from torch import Tensor

from pipelines.errors import FileError

_SOURCE = re.compile(r"(?P<path>.+?\.(?:npz|nii|nii\.gz))(?::(?P<index>\d+))?")


@dataclass(frozen=True)
class Slices:
    """Slices as they lie in a file.

    Attributes:
        data: `[slice, y, x]`, float64 or complex128; of a NIfTI file axial, with the patient's right side on the left.
        pixel: size of a pixel along (y, x); (1, 1) where the file does not say.
    """

    data: Tensor
    pixel: tuple[float, float]


@dataclass(frozen=True)
class SliceSource:
    """A file, and the slice to begin with: None takes those in the middle."""

    path: Path
    index: int | None = None

    @classmethod
    def parse(cls, text: str) -> SliceSource:
        """From FILE or FILE:INDEX.

        Raises:
            FileError: not the name of a NIfTI or .npz file.
        """
        match = _SOURCE.fullmatch(text)
        if not match:
            raise FileError(f"expected FILE.nii, FILE.nii.gz or FILE.npz, with or without :INDEX, got {text!r}")
        index = match["index"]
        return cls(Path(match["path"]).expanduser(), None if index is None else int(index))

    def read(self, count: int, name: str) -> Slices:
        """Reads slices.

        Args:
            count: how many, one after the other.
            name: of the array to take, where an .npz file has several of two or more dimensions.

        Raises:
            FileError: the file cannot be read, has no such array, or not so many slices.
        """
        if not self.path.is_file():
            raise FileError(f"{self.path}: there is no such file")
        read = self._npz if self.path.suffix == ".npz" else self._nifti
        try:
            volume, pixel = read(name)
        except (OSError, ValueError, BadZipFile, ImageFileError) as error:
            raise FileError(f"{self.path}: cannot be read: {error}") from error
        if not np.isfinite(volume).all():
            raise FileError(f"{self.path}: holds values that are not finite")
        first = (len(volume) - count) // 2 if self.index is None else self.index
        if first < 0 or first + count > len(volume):
            raise FileError(f"{self.path}: expected {count} slice(s) from index {first}, but there are {len(volume)}")
        kind = np.complex128 if np.iscomplexobj(volume) else np.float64
        return Slices(torch.from_numpy(np.array(volume[first : first + count], dtype=kind)), pixel)

    def _npz(self, name: str) -> tuple[np.ndarray, tuple[float, float]]:
        """The only array of two or three dimensions, or else the one of that name; slices along the first of three."""
        with np.load(self.path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        pictures = {key: array for key, array in arrays.items() if array.ndim in (2, 3)}
        if len(pictures) != 1 and name not in pictures:
            found = ", ".join(f"{key} {array.shape}" for key, array in arrays.items()) or "none"
            raise ValueError(f"expected one array of two or three dimensions, or one named {name}; found {found}")
        array = pictures[name] if name in pictures else next(iter(pictures.values()))
        return array.reshape(-1, *array.shape[-2:]), (1.0, 1.0)

    def _nifti(self, name: str) -> tuple[np.ndarray, tuple[float, float]]:
        image = nibabel.as_closest_canonical(nibabel.load(self.path))
        volume = np.asarray(image.dataobj)
        if volume.ndim == 2:
            volume = volume[:, :, None]
        if volume.ndim != 3:
            raise ValueError(f"expected a NIfTI image of two or three dimensions, got the shape {volume.shape}")
        # From right, anterior, superior to rows towards the back and columns towards the left.
        width, height = (float(size) for size in image.header.get_zooms()[:2])
        return volume[::-1, ::-1].transpose(2, 1, 0), (height, width)
