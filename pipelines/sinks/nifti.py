"""Images as NIfTI volumes with a JSON sidecar."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import ismrmrd
import nibabel as nib
import numpy as np

from pipelines.sinks.attributes import Array, Header, sequence_values, series_description, text_of, values_of
from pipelines.sinks.folder import output_folder
from pipelines.sinks.geometry import FloatArray, affine_lps

T = TypeVar("T")

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
SCANNER = 1  # NIfTI's code for scanner coordinates
PARTS = {ismrmrd.IMTYPE_PHASE: "_phase", ismrmrd.IMTYPE_REAL: "_real", ismrmrd.IMTYPE_IMAG: "_imag"}

# Positions that agree to this are the same; spacings that agree to this are even.
SAME_MM = 0.01


@dataclass(eq=False)
class Volume:
    """A block of voxels.

    Attributes:
        data: `[x, y, z, channel]`.
        affine: `[4, 4]`, voxel index to LPS mm.
        image: the first of its slices, for what is said in words.
    """

    data: Array
    affine: FloatArray
    image: ismrmrd.Image

    @property
    def centre(self) -> FloatArray:
        """Of the field of view, in LPS mm."""
        return np.array(list(self.image.getHead().position), float)


class NiftiSink:
    """Writes one .nii.gz per series, contrast and set, with a .json of the same name beside it.

    Evenly spaced parallel slices become one volume, sorted along the slice direction; repetitions and cardiac phases
    become the fourth axis, channels the fifth. What does not fit (another shape, orientation or spacing, a repetition
    that lacks slices) goes to files of its own, "..._part2" and so on. Pixels are stored as they came. NIfTI cannot be
    appended to, so images are held in memory until `close`.

    Args:
        folder: of the files.
        header: gives the times and angles in the sidecar.
        overwrite: replace files of the same names.

    Raises:
        FileExistsError: there are NIfTI files in the folder and they may not be overwritten.
    """

    def __init__(self, folder: Path, header: Header | None = None, overwrite: bool = False) -> None:
        self._folder = output_folder(folder, ".nii.gz", overwrite)
        self._header = header
        self._held: defaultdict[str, list[Volume]] = defaultdict(list)

    def write(self, image: ismrmrd.Image) -> None:
        """Holds an image until `close`."""
        volume = Volume(image.data.transpose(3, 2, 1, 0), affine_lps(image.getHead()), image)
        self._held[_file_name(image)].append(volume)

    def close(self) -> None:
        """Writes all files."""
        for name, images in self._held.items():
            for part, series in enumerate(assemble(images), start=1):
                self._save(series, name if part == 1 else f"{name}_part{part}")

    def _save(self, series: list[Volume], name: str) -> None:
        data = np.stack([volume.data for volume in series], axis=3)
        if data.shape[-1] == 1:
            data = data[..., 0]
        if data.shape[3:] == (1,):
            data = data[..., 0]
        affine = LPS_TO_RAS @ series[0].affine
        file = nib.Nifti1Image(data, affine, dtype=data.dtype)
        file.set_sform(affine, code=SCANNER)
        file.set_qform(affine, code=SCANNER)
        file.header.set_xyzt_units("mm")
        nib.save(file, self._folder / f"{name}.nii.gz")
        (self._folder / f"{name}.json").write_text(json.dumps(sidecar(series[0].image, self._header), indent=2) + "\n")


def assemble(images: Iterable[Volume]) -> list[list[Volume]]:
    """Volumes in order of time, grouped by where they lie; each group makes one file.

    Args:
        images: of one series, contrast and set, each a volume by itself; in the order in which they came.
    """
    rounds: defaultdict[tuple[int, ...], list[Volume]] = defaultdict(list)
    seen: Counter[Hashable] = Counter()
    for image in images:
        head = image.image.getHead()
        counters = (head.repetition, head.phase)
        place = (counters, _rounded(image.centre, SAME_MM))
        rounds[(*counters, seen[place])].append(image)
        seen[place] += 1
    volumes = [volume for when in sorted(rounds) for volume in stack(rounds[when])]
    return _grouped(volumes, lambda v: (v.data.shape, v.data.dtype, _rounded(v.affine, SAME_MM)))


def stack(images: list[Volume]) -> list[Volume]:
    """Joins the slices of one time into volumes where they are parallel and evenly spaced; else leaves them alone."""
    volumes = []
    for parallel in _grouped(images, lambda v: (v.data.shape, v.data.dtype, _rounded(v.affine[:3, :3], 1e-4))):
        normal = parallel[0].affine[:3, 2]
        parallel.sort(key=lambda v: float(v.centre @ normal))
        step = _even_step(parallel, normal)
        volumes += parallel if step is None else [_join(parallel, step)]
    return volumes


def _even_step(slices: list[Volume], normal: FloatArray) -> FloatArray | None:
    """From each slice to the next; None where there is no such vector, or where it is not along the normal."""
    if len(slices) == 1 or slices[0].data.shape[2] > 1:
        return None
    steps = np.diff([v.centre for v in slices], axis=0)
    step = np.asarray(steps.mean(0))
    along = normal * (step @ normal) / (normal @ normal)
    even = np.abs(steps - step).max() < SAME_MM and np.abs(step - along).max() < SAME_MM
    return step if even else None


def _join(slices: list[Volume], step: FloatArray) -> Volume:
    affine = slices[0].affine.copy()
    affine[:3, 2] = step
    return Volume(np.concatenate([v.data for v in slices], axis=2), affine, slices[0].image)


def _grouped(items: Iterable[T], key: Callable[[T], Hashable]) -> list[list[T]]:
    """Items with equal keys together, in the order of their first appearance."""
    groups: defaultdict[Hashable, list[T]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return list(groups.values())


def _rounded(values: FloatArray, unit: float) -> tuple[float, ...]:
    return tuple(np.rint(values / unit).ravel().tolist())


def _file_name(image: ismrmrd.Image) -> str:
    head = image.getHead()
    counters = {"contrast": head.contrast, "set": head.set}
    named = "".join(f"_{name}{value}" for name, value in counters.items() if value)
    return f"series{head.image_series_index:03d}{named}{PARTS.get(head.image_type, '')}"


def sidecar(image: ismrmrd.Image, header: Header | None) -> dict[str, Any]:
    """What is known of a series, by BIDS key where there is one; times in seconds. Names no patient."""
    times = ("EchoTime", "RepetitionTime", "InversionTime")
    measured = sequence_values(header, image.contrast)
    known: dict[str, Any] = {key: value / 1000 if key in times else value for key, value in measured.items()}
    known["SeriesNumber"] = image.image_series_index
    known["SeriesDescription"] = series_description(image, header)
    known["ImageProcessingHistory"] = values_of(image, "ImageProcessingHistory")
    for key in ("DataRole", "ImageComments", "ImageScaleFactor"):
        known[key] = text_of(image, key)
    return {key: value for key, value in known.items() if value not in ("", [])}
