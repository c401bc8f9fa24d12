"""What images are compared with: the truth in a simulated scan, or an image that somebody brings.

Magnitudes on the reconstruction grid, found by geometry where the file has one and by the number of the slice where it
has none. Nothing is interpolated: a truth of another grid is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from zipfile import BadZipFile, is_zipfile

import h5py
import ismrmrd
import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from numpy.typing import NDArray

from gadgets.field_map_file import LPS_TO_RAS
from gadgets.frame_assembly import UNIT_COMPLEX_NOISE
from gadgets.geometry import Affine, affine_of_image
from pipelines.errors import FileError
from pipelines.image_series import images_of_main_series, magnitude_of

SAME_VOXEL = 0.1
"""Distance in voxels up to which two voxels are the same."""

UNREADABLE = (OSError, ValueError, LookupError, EOFError, BadZipFile, ImageFileError)

Magnitudes = NDArray[np.float32]


class Places(Protocol):
    """Where the pixels of a truth are found."""

    @property
    def count(self) -> int | None:
        """Of the slices that a pipeline must send; None where that is not said."""

    def at(self, image: ismrmrd.Image) -> Magnitudes:
        """Of all voxels of an image, `[z, y, x]`.

        Raises:
            ValueError: it has none for some of them.
        """

    def check(self, images: Sequence[ismrmrd.Image]) -> None:
        """Takes one image of each slice of a scan.

        Raises:
            ValueError: the truth is not one of these slices.
        """


@dataclass(frozen=True)
class Truth:
    """A truth and how images compare with it.

    Attributes:
        name: of its file.
        places: where it lies.
        own: whether it is that of the raw file itself: then it is on the scale of the images, and no factor is fitted.
        whitened: whether images are on that scale only after prewhitening.
        field_hz: the off-resonance psi in Hz with signal ~ exp(-2 pi i psi t), not a number outside of the object;
            None where it is not known.
    """

    name: str
    places: Places
    own: bool
    whitened: bool
    field_hz: Places | None = None


@dataclass(frozen=True)
class BySlice:
    """Slices `[slice, y, x]` without geometry: that of the image's number, or as many as a volume has partitions."""

    slices: Magnitudes

    @property
    def count(self) -> int | None:
        """See `Places`."""
        return len(self.slices)

    def at(self, image: ismrmrd.Image) -> Magnitudes:
        """See `Places`."""
        shape, number = image.data.shape[1:], int(image.slice)
        found = self.slices if shape[0] > 1 else self.slices[number : number + 1]
        if found.shape != shape:
            raise ValueError(
                f"expected images that fit the truth [slice, y, x] = {list(self.slices.shape)}, got one [z, y, x] = "
                f"{list(shape)} of slice {number}, counted from 0"
            )
        return found

    def check(self, images: Sequence[ismrmrd.Image]) -> None:
        """See `Places`."""
        z, y, x = images[0].data.shape[1:]
        expected = [z if z > 1 else 1 + max(int(image.slice) for image in images), y, x]
        if list(self.slices.shape) != expected:
            raise ValueError(
                f"expected [slice, y, x] = {expected}, which is what the raw data give, got {list(self.slices.shape)}"
            )


@dataclass(frozen=True)
class ByGeometry:
    """Volumes `[z, y, x]`, each with its affine to LPS mm; the first that has all voxels of an image counts."""

    volumes: tuple[tuple[Magnitudes, Affine], ...]

    @property
    def count(self) -> int | None:
        """A volume may be larger than the scan."""
        return None

    def at(self, image: ismrmrd.Image) -> Magnitudes:
        """See `Places`."""
        for values, affine in self.volumes:
            voxels = _voxels(affine, image)
            whole = np.rint(voxels).astype(int)
            inside = (whole >= 0) & (whole < values.shape)
            if inside.all() and np.abs(voxels - whole).max() < SAME_VOXEL:
                return np.asarray(values[whole[..., 0], whole[..., 1], whole[..., 2]])
        shapes = ", ".join(sorted({str(list(values.shape)) for values, _ in self.volumes}))
        raise ValueError(
            f"expected a truth with voxels where the image [z, y, x] = {list(image.data.shape[1:])} of slice "
            f"{image.slice} has them, got volumes {shapes} on another grid or elsewhere (a truth in .npz has no "
            "geometry and goes by the number of the slice)"
        )

    def check(self, images: Sequence[ismrmrd.Image]) -> None:
        """See `Places`."""
        for image in images:
            self.at(image)


def _voxels(affine: Affine, image: ismrmrd.Image) -> NDArray[np.float64]:
    """Where the voxels of an image lie in a volume: `[z, y, x, (z, y, x)]` in its voxels."""
    between = np.linalg.inv(affine) @ affine_of_image(image.getHead())
    z, y, x = np.meshgrid(*(np.arange(n) for n in image.data.shape[1:]), indexing="ij")
    points = np.stack([x, y, z], axis=-1) @ between[:3, :3].T + between[:3, 3]
    return np.asarray(points[..., ::-1])


def own_truth(raw: Path) -> Truth:
    """The truth in a simulated scan.

    Raises:
        FileError: there is none in it, or it is not whole.
    """
    with _reading(raw):
        slices, noisy = _simulated(raw)
        return Truth(raw.name, BySlice(_valid(slices)), own=True, whitened=noisy, field_hz=_simulated_field(raw))


def brought_truth(path: Path, key: str | None = None) -> Truth:
    """A truth from a file, on a scale of its own.

    Args:
        path: an .npz file, NIfTI, or .h5: a simulated scan, or images in MRD.
        key: the array `[y, x]` or `[slice, y, x]` of an .npz file, or the group of a series of MRD images; by default
            the only one, or the series that a pipeline is judged by.

    Raises:
        FileError: the file cannot be read, holds no such thing, or values that are zero or not finite.
    """
    suffix = next((suffix for suffix in READERS if path.name.endswith(suffix)), None)
    if suffix is None:
        raise FileError(f"the truth {path.name}: expected a file that ends in {', '.join(READERS)}")
    with _reading(path):
        field = _simulated_field(path) if suffix == ".h5" else None
        return Truth(path.name, READERS[suffix](path, key), own=False, whitened=False, field_hz=field)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """What goes wrong while a truth is read, as a FileError that names the file."""
    try:
        yield
    except UNREADABLE as error:
        raise FileError(f"the truth {path.name} cannot be read: {error}") from error


def _valid(values: NDArray[np.generic]) -> Magnitudes:
    """Magnitudes of what a file holds, as slices `[slice, y, x]`, of which some have signal."""
    slices = _magnitudes(values)
    if not slices.any():
        raise ValueError("it holds nothing but zeros")
    return slices


def _magnitudes(values: NDArray[np.generic]) -> Magnitudes:
    """Those of what a file holds, as slices `[slice, y, x]`."""
    if values.dtype.kind not in "fiuc" or values.ndim not in (2, 3):
        raise ValueError(f"expected numbers [slice, y, x] or [y, x], got {values.dtype} {list(values.shape)}")
    slices = np.asarray(np.abs(values.reshape(-1, *values.shape[-2:])), np.float32)
    if not np.isfinite(slices).all():
        raise ValueError("it holds values that are not finite")
    return slices


def _simulated(path: Path) -> tuple[Magnitudes, bool]:
    """What a pipeline should find `[slice, y, x]`, and whether the scan is noisy.

    Maps of unit norm give an image that is brighter where the coils receive less noise, by sqrt(s^H C^-1 s). Without
    noise there is nothing to prewhiten by, and only the factor between acquisitions and frames remains.
    """
    with h5py.File(path) as file:
        if "truth" not in file:
            raise ValueError("there is no group 'truth'; only simulated scans have one, --truth names another file")
        image, maps, covariance = (file[f"truth/{name}"][()] for name in ("image", "coil_maps", "noise_covariance"))
    if not covariance.any():
        return np.abs(image) * np.float32(UNIT_COMPLEX_NOISE), False
    precision = np.linalg.inv(covariance.astype(np.complex128))
    sensitivity = np.einsum("scyx,cd,sdyx->syx", maps.conj(), precision, maps, optimize=True).real
    return np.abs(image) * np.sqrt(sensitivity), True


def _simulated_field(path: Path) -> BySlice | None:
    """The off-resonance in Hz within the object, or None where the file holds none."""
    with h5py.File(path) as file:
        if "truth/field_map_hz" not in file:
            return None
        field, mask = (file[f"truth/{name}"][()] for name in ("field_map_hz", "mask"))
    return BySlice(np.where(mask, field, np.float32(np.nan)))


def _from_npz(path: Path, key: str | None) -> Places:
    if not is_zipfile(path):
        raise ValueError("it is not an .npz file, or a damaged one")
    with np.load(path, allow_pickle=False) as file:
        names = [key] if key else file.files
        if len(names) != 1 or names[0] not in file.files:
            listed = ", ".join(f"{name} {list(file[name].shape)}" for name in file.files) or "none"
            expected = f"an array {key}" if key else "one array"
            raise ValueError(f"expected {expected}, got {listed}; --key names the one to take")
        return BySlice(_valid(file[names[0]]))


def _from_nifti(path: Path, key: str | None) -> Places:
    if key:
        raise ValueError(f"a NIfTI file has no arrays by name, so no {key}")
    file = nibabel.load(path)
    shape = [n for axis, n in enumerate(file.shape) if axis < 3 or n > 1]
    slices = _valid(np.asarray(file.dataobj).reshape(shape).T)
    if not (file.header["qform_code"] or file.header["sform_code"]):
        return BySlice(slices)
    return ByGeometry(((slices, LPS_TO_RAS @ file.affine),))


def _from_h5(path: Path, key: str | None) -> Places:
    with h5py.File(path) as file:
        groups = [name for name in file.get("dataset", ()) if name.startswith("image_") and key in (None, name)]
    if not groups and key is None:
        return BySlice(_valid(_simulated(path)[0]))
    if not groups:
        raise ValueError(f"there is no series {key!r} of MRD images in it")
    with closing(ismrmrd.Dataset(str(path), "dataset", False)) as dataset:
        images = [dataset.read_image(name, i) for name in groups for i in range(dataset.number_of_images(name))]
    series = images_of_main_series(images)
    volumes = tuple((_magnitudes(magnitude_of(image)), affine_of_image(image.getHead())) for image in series)
    if not any(values.any() for values, _ in volumes):
        raise ValueError("it holds nothing but zeros")
    return ByGeometry(volumes)


READERS: Mapping[str, Callable[[Path, str | None], Places]] = {
    ".npz": _from_npz,
    ".nii": _from_nifti,
    ".nii.gz": _from_nifti,
    ".h5": _from_h5,
}
