"""Field maps in files, and how a measured one outlives the session that measured it."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from zipfile import BadZipFile, is_zipfile

import h5py
import ismrmrd
import nibabel as nib
import numpy as np
import torch
from nibabel.filebasedimages import ImageFileError
from numpy.typing import NDArray
from torch import Tensor

from gadgets.frame import Frame
from gadgets.geometry import Affine, affine_lps, affine_of_frame, affine_of_image
from gadgets.image_export import SERIES
from gadgets.stored import save_arrays
from recon_core.calibration.smooth_map import smooth_map
from recon_core.interpolate import interpolated

DEFAULT_ARRAY, AFFINES, MASK = "field_map_hz", "affine_lps", "mask"
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
UNREADABLE = (
    OSError,
    EOFError,
    LookupError,
    AttributeError,
    TypeError,
    ValueError,
    BadZipFile,
    zlib.error,
    ImageFileError,
)
EDGE = 0.5
"""Voxels beyond the centre of the last one that still belong to it."""


@dataclass(frozen=True, eq=False)
class FieldVolume:
    """A block of voxels.

    Attributes:
        values: float32 `[z, y, x]` in Hz, not finite where unknown.
        affine: from voxel indices (x, y, z, 1) to LPS millimetres; None where the file has no geometry.
    """

    values: NDArray[np.float32]
    affine: Affine | None = None


@dataclass(frozen=True, eq=False)
class FieldMapFile:
    """A field map that was made before, anywhere in the patient.

    Attributes:
        name: for people.
        volumes: several if there are slices that are not evenly spaced and parallel.
    """

    name: str
    volumes: tuple[FieldVolume, ...]

    @classmethod
    def load(cls, path: Path, array: str = "") -> FieldMapFile:
        """Reads .npz, .nii, .nii.gz or MRD .h5.

        In an .npz file, the array is `[y, x]` or `[slice, y, x]` and covers the reconstruction field of view, unless an
        array `affine_lps` `[slice, 4, 4]` says where each slice (or each block `[z, y, x]` of a longer array) lies.
        Where a boolean array `mask` of the same shape is false, or a value of any file is not finite, the map is
        unknown, and continued smoothly from where it is known. An MRD file holds a series of field map images.

        Args:
            path: of the file.
            array: name of the array in an .npz file, of the group of images in an .h5 file; empty for the one that
                is called `field_map_hz`, or the only one that fits.

        Raises:
            ValueError: it cannot be read, is of another kind, or holds no such array or several.
        """
        read = next((reader for suffix, reader in READERS.items() if path.name.lower().endswith(suffix)), None)
        if read is None:
            raise ValueError(f"expected a field map in a file that ends in {', '.join(READERS)}, got {path.name}")
        if not path.is_file():
            raise ValueError(f"cannot read the field map {path.name}: there is no such file")
        try:
            volumes = read(path, array)
        except UNREADABLE as error:
            raise ValueError(f"cannot read the field map {path.name}: {error}") from error
        if not any(np.isfinite(volume.values).any() for volume in volumes):
            raise ValueError(f"the field map {path.name} holds no finite value")
        return cls(path.name, tuple(_filled(volume) for volume in volumes))

    def scaled(self, factor: float) -> FieldMapFile:
        """The same with all values multiplied."""
        return replace(self, volumes=tuple(replace(v, values=v.values * np.float32(factor)) for v in self.volumes))

    def named(self, name: str) -> FieldMapFile:
        """The same under another name."""
        return replace(self, name=name)

    def at(self, frame: Frame) -> tuple[Tensor, float]:
        """The map on the encoded grid of a frame, and the part of its voxels that lie outside of the map.

        Voxels outside get the value of the map's edge. Of volumes that overlap, the one counts that holds most of the
        frame, then the one whose centre is closest, then the later one.

        Raises:
            ValueError: the whole frame lies outside, or it is not clear where a map without geometry belongs.
        """
        places = [self._placed(volume, frame) for volume in self.volumes]
        closeness = [
            (*_distance(values.shape, affine, frame), -number) for number, (values, affine) in enumerate(places)
        ]
        outside, _, last = min(closeness)
        if outside == 1:
            position = ", ".join(f"{x:.1f}" for x in frame.reference.position)
            raise ValueError(f"{frame.label} at ({position}) mm lies outside of the field map {self.name}")
        values, affine = places[-last]
        found = interpolated(torch.from_numpy(values), _voxels(affine, frame))
        return found.reshape(frame.space.shape).to(frame.samples.kspace.device), outside

    def _placed(self, volume: FieldVolume, frame: Frame) -> tuple[NDArray[np.float32], Affine]:
        """A volume with geometry as it is; without, it is where the frame is, or the slice of the frame's number."""
        if volume.affine is not None:
            return volume.values, volume.affine
        space, values, number = frame.space, volume.values, frame.reference.idx.slice
        slices = f"{len(values)} slice{'s' * (len(values) > 1)}"
        if len(space.shape) == 2:
            if number >= len(values):
                raise ValueError(f"the field map {self.name} has {slices}, but no slice {number}, and no geometry")
            values = values[number : number + 1]
        elif number or len(values) == 1:
            raise ValueError(
                f"the field map {self.name} of {slices} has no geometry to bring it to {frame.label}, a volume of "
                f"{space.shape[0]} partitions"
            )
        return values, affine_lps(frame.reference, values.shape[::-1], space.recon_fov_mm[::-1])


def _voxels(affine: Affine, frame: Frame) -> Tensor:
    """Where the voxels of a frame lie in a volume: `[z, y, x, (z, y, x)]` in its voxels."""
    between = np.linalg.inv(affine) @ affine_of_frame(frame)
    z, y, x = np.meshgrid(*(np.arange(n) for n in frame.space.encoded_matrix), indexing="ij")
    points = np.stack([x, y, z], axis=-1) @ between[:3, :3].T + between[:3, 3]
    return torch.from_numpy(points[..., ::-1].copy())


def _distance(shape: tuple[int, ...], affine: Affine, frame: Frame) -> tuple[float, float]:
    """The part of a frame that lies outside of a volume, and the distance of their centres in hundredths of mm."""
    points = _voxels(affine, frame)
    outside = ((points < -EDGE) | (points > torch.tensor(shape) - 1 + EDGE)).any(-1).double().mean().item()
    apart = _middle(affine, shape) - _middle(affine_of_frame(frame), frame.space.encoded_matrix)
    return outside, float(np.rint(100 * np.linalg.norm(apart)))


def _middle(affine: Affine, shape: tuple[int, ...]) -> Affine:
    """Of a block of voxels `[z, y, x]`, in mm."""
    return np.asarray(affine @ [*((n - 1) / 2 for n in shape[::-1]), 1])


def _filled(volume: FieldVolume) -> FieldVolume:
    """The same with unknown voxels continued from those that are known."""
    known = np.isfinite(volume.values)
    if known.all() or not known.any():
        return volume
    smooth = smooth_map(torch.from_numpy(volume.values), torch.from_numpy(known).float(), 1.0).numpy()
    return replace(volume, values=np.where(known, volume.values, smooth))


def _volumes_of_npz(path: Path, array: str) -> list[FieldVolume]:
    if not is_zipfile(path):
        raise ValueError("it is not an .npz file, or a damaged one")
    with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    values = _known(_chosen(arrays, array), arrays.get(MASK))
    if AFFINES not in arrays:
        return [FieldVolume(values[None] if values.ndim == 2 else values)]
    affines = np.asarray(arrays[AFFINES], float)
    if values.ndim == 2 or affines.shape != (len(values), 4, 4):
        raise ValueError(f"expected {AFFINES} [slice, 4, 4] for {list(values.shape)}, got {list(affines.shape)}")
    blocks = values.reshape(len(values), -1, *values.shape[-2:])
    return _stacked(zip(blocks, affines, strict=True))


def _known(values: NDArray[np.float32], mask: NDArray[np.generic] | None) -> NDArray[np.float32]:
    if mask is None:
        return values
    if mask.dtype.kind not in "bu" or mask.shape != values.shape:
        raise ValueError(f"expected a mask of {list(values.shape)} as the map, got {mask.dtype} {list(mask.shape)}")
    if not mask.any():
        raise ValueError("its mask leaves no voxel")
    return np.where(mask, values, np.float32(np.nan))


def _chosen(arrays: dict[str, NDArray[np.generic]], name: str) -> NDArray[np.float32]:
    axes = (2, 3, 4) if AFFINES in arrays else (2, 3)
    fitting = [key for key, value in arrays.items() if value.dtype.kind in "fiu" and value.ndim in axes]
    fitting = [key for key in fitting if key not in (AFFINES, MASK)]
    wanted = name or (DEFAULT_ARRAY if DEFAULT_ARRAY in arrays else fitting[0] if len(fitting) == 1 else "")
    if wanted not in fitting:
        listed = ", ".join(f"{key} {value.dtype} {list(value.shape)}" for key, value in arrays.items()) or "none"
        raise ValueError(
            f"expected an array of real numbers [slice, y, x] or [y, x] called {wanted or DEFAULT_ARRAY}, got {listed}"
            "; name it with the property array"
        )
    return np.asarray(arrays[wanted], np.float32)


def _volumes_of_nifti(path: Path, array: str) -> list[FieldVolume]:
    if array:
        raise ValueError(f"a NIfTI file has no arrays by name, so {path.name} has no {array}")
    file = nib.load(path)
    shape = [n for i, n in enumerate(file.shape) if i < 3 or n > 1]
    if len(shape) not in (2, 3) or np.iscomplexobj(np.empty(0, file.get_data_dtype())):
        raise ValueError(f"expected a volume of real numbers, got {file.get_data_dtype()} {list(file.shape)}")
    if not (file.header["qform_code"] or file.header["sform_code"]):
        raise ValueError("expected a geometry, got a file with neither qform nor sform")
    values = file.get_fdata(dtype=np.float32).reshape(*file.shape[:2], -1)
    return [FieldVolume(np.ascontiguousarray(values.transpose(2, 1, 0)), LPS_TO_RAS @ file.affine)]


def _volumes_of_mrd(path: Path, array: str) -> list[FieldVolume]:
    with h5py.File(path, "r") as file:
        held = file.get("dataset", {})
        groups = {name: group for name, group in held.items() if isinstance(group, h5py.Group)}
        series = {name: group for name, group in groups.items() if {"header", "attributes", "data"} <= {*group}}
        fitting = [name for name in series if name == array or (not array and _is_field_map(series[name]))]
        if len(fitting) != 1:
            listed = ", ".join(f"{name} ({_described(group)})" for name, group in series.items()) or "no images"
            raise ValueError(
                f"expected one series {array or 'of field maps'}, got {len(fitting)} among {listed}; name it with the "
                "property array"
            )
        return _stacked(_slices_of(series[fitting[0]]))


def _slices_of(group: h5py.Group) -> Iterator[tuple[NDArray[np.float32], Affine]]:
    data = group["data"]
    if data.dtype.kind != "f" or data.ndim != 5 or data.shape[1] != 1:
        raise ValueError(f"expected real images [1, z, y, x] in {group.name}, got {data.dtype} {list(data.shape[1:])}")
    for number in range(len(data)):
        yield np.asarray(data[number, 0], np.float32), affine_of_image(_image(group, number).getHead())


def _image(group: h5py.Group, number: int = 0) -> ismrmrd.Image:
    """One of the images without its pixels."""
    return ismrmrd.Image(group["header"][number], group["attributes"][number])


def _described(group: h5py.Group) -> str:
    return str(_image(group).meta.get("SequenceDescriptionAdditional", ""))


def _is_field_map(group: h5py.Group) -> bool:
    return _described(group) == SERIES["field_map"].description


def _stacked(slices: Iterable[tuple[NDArray[np.float32], Affine]]) -> list[FieldVolume]:
    """One volume where the slices are parallel and evenly spaced, else each alone; a later one replaces its like."""
    places = {tuple(np.rint(affine * 100).ravel()): (values, affine) for values, affine in slices}
    volumes = [FieldVolume(np.asarray(values, np.float32), affine) for values, affine in places.values()]
    joined = _joined(volumes)
    return volumes if joined is None else [joined]


def _joined(volumes: Sequence[FieldVolume]) -> FieldVolume | None:
    affines = np.array([volume.affine for volume in volumes])
    if len(volumes) < 2 or len({volume.values.shape for volume in volumes}) > 1 or len(volumes[0].values) > 1:
        return None
    normal = affines[0, :3, 2] / np.linalg.norm(affines[0, :3, 2])
    order = np.argsort(affines[:, :3, 3] @ normal)
    origins = affines[order, :3, 3]
    step = (origins[-1] - origins[0]) / (len(volumes) - 1)
    even = np.abs(origins - (origins[0] + np.arange(len(volumes))[:, None] * step)).max() < 0.01
    along = np.abs(step - normal * (step @ normal)).max() < 0.01
    if not (even and along and np.allclose(affines[:, :3, :3], affines[0, :3, :3], atol=1e-4)):
        return None
    affine = affines[order[0]].copy()
    affine[:3, 2] = step
    return FieldVolume(np.concatenate([volumes[i].values for i in order]), affine)


READERS: Mapping[str, Callable[[Path, str], list[FieldVolume]]] = {
    ".npz": _volumes_of_npz,
    ".nii": _volumes_of_nifti,
    ".nii.gz": _volumes_of_nifti,
    ".h5": _volumes_of_mrd,
}


def save_slices(path: Path, slices: Sequence[tuple[NDArray[np.float32], Affine]]) -> None:
    """Writes slices of one shape with their geometry as an .npz file, which others see whole or not at all."""
    values, affines = (np.stack(part) for part in zip(*slices, strict=True))
    save_arrays(path, field_map_hz=values, affine_lps=affines)
