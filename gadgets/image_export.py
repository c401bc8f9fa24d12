"""Turns finished images into MRD images: recon grid, pixel scale, geometry, series and meta attributes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import ismrmrd
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gadgets.frame import SeriesImage, Space
from gadgets.gadget import IMAGE, Gadget, Session
from gadgets.property import choice, integer, real
from recon_core.interpolate import interpolated
from recon_core.resample import resample_centred

# Percent of the pixels of a series' first image that its display window shows unsaturated.
WINDOW_PERCENTILE = 99.9


@dataclass(frozen=True)
class Series:
    """How images of one kind leave.

    Attributes:
        index: image_series_index.
        description: appended to the protocol's name.
        comment: what a reader should know of these images.
        role: MRD's DataRole. "Quantitative" keeps the physical values as float32 and stops vendor scaling.
    """

    index: int
    description: str
    comment: str
    role: str = "Image"


SERIES = {
    "image": Series(1, "image", "reconstruction"),
    "preview": Series(2, "preview", "quick look at the same data, not for diagnosis"),
    "field_map": Series(3, "field map", "off-resonance in Hz, signal ~ exp(-2 pi i psi t)", role="Quantitative"),
    "deviation": Series(
        4,
        "deviation",
        "standard deviation of the complex image, estimated from the samples that were drawn and, where the field "
        "was sought, from what it may be off by; in the units of the "
        "image, which are its pixels divided by its ImageScaleFactor",
        role="Quantitative",
    ),
    "coil_maps": Series(5, "coil maps", "sensitivities of the coils, one image each, relative to all of them together"),
    "field_deviation": Series(
        6, "field deviation", "standard deviation of the field map in Hz, estimated with it", role="Quantitative"
    ),
}


# Series of kinds that gadgets of other packages make; each gets the next one.
FIRST_FREE_INDEX = 50


@dataclass(frozen=True)
class PixelFormat:
    """How complex values become pixels.

    Attributes:
        image_type: MRD's word for what the pixels mean.
        view: from complex values to what is stored.
        scaled: whether they are scaled to whole numbers.
    """

    image_type: int
    view: Callable[[Tensor], Tensor]
    scaled: bool = False


QUANTITATIVE = PixelFormat(ismrmrd.IMTYPE_REAL, torch.real)
FORMATS = {
    "uint16": PixelFormat(ismrmrd.IMTYPE_MAGNITUDE, torch.abs, scaled=True),
    "float32": PixelFormat(ismrmrd.IMTYPE_MAGNITUDE, torch.abs),
    "complex64": PixelFormat(ismrmrd.IMTYPE_COMPLEX, torch.resolve_conj),
}


@dataclass
class Running:
    """What the images of one series share while a session runs.

    Attributes:
        images: how many have left.
        window: lowest and highest value of the first image that had any signal.
        clipping_told: whether the person at the client knows that pixels were clipped.
    """

    images: int = 0
    window: tuple[float, float] | None = None
    clipping_told: bool = False


class ImageExport(Gadget[SeriesImage]):
    """Sends images out as MRD images on the reconstruction grid, each kind as its own series.

    Integer pixels are the magnitude times one factor, the same for all images of a series in a session; the factor
    stands in the meta attribute ImageScaleFactor. Float and complex pixels keep the physical values.
    """

    takes = SeriesImage
    needs = frozenset({IMAGE})
    removes = frozenset({IMAGE})

    data_type = choice("uint16", tuple(FORMATS), "pixels: scaled magnitude, physical magnitude, or complex")
    bits = integer(12, "bits of uint16 pixels that are used", low=8, high=16)
    headroom = real(
        4.0, "how many times brighter than the first image a later uint16 image may be", low=1.0, high=100.0
    )

    def open(self, session: Session) -> None:
        """Forgets the series of any earlier session."""
        super().open(session)
        self._series = dict(SERIES)
        self._running: dict[str, Running] = {}

    def take(self, item: SeriesImage) -> Iterator[object]:
        """Yields the MRD image.

        Raises:
            ValueError: values that are not finite, or a recon space that does not fit into the
                encoded one.
        """
        series = self._series.setdefault(item.kind, Series(self._free_index(), item.kind, "made by another gadget"))
        running = self._running.setdefault(item.kind, Running())
        running.images += 1

        quantitative = series.role == "Quantitative"
        pixel_format = QUANTITATIVE if quantitative else FORMATS[self.data_type]
        values = pixel_format.view(to_recon_grid(item, _linear if quantitative else _band_limited)).cpu().numpy()
        running.window = running.window or _window(values)
        low, high = running.window or (0.0, 1.0)
        scale = self._full_scale / (self.headroom * high) if pixel_format.scaled else 1.0
        pixels = self._scaled(values, scale, running, item) if pixel_format.scaled else values

        image = _mrd_image(
            pixels,
            item,
            image_type=pixel_format.image_type,
            image_index=running.images,
            image_series_index=series.index,
        )
        image.meta = {
            **self._attributes(series, item, scale),
            "WindowCenter": f"{scale * (low + high) / 2:.6g}",
            "WindowWidth": f"{scale * (high - low):.6g}",
        }
        yield image

    def _free_index(self) -> int:
        """Of the next series that the table does not know."""
        return FIRST_FREE_INDEX + len(self._series) - len(SERIES)

    @property
    def _full_scale(self) -> int:
        return int(2**self.bits - 1)

    def _scaled(
        self, values: NDArray[np.float32], scale: float, running: Running, item: SeriesImage
    ) -> NDArray[np.uint16]:
        pixels: NDArray[np.float32] = np.rint(values * scale)
        clipped = int((pixels > self._full_scale).sum())
        if clipped and not running.clipping_told:
            running.clipping_told = True
            self.session.tell(
                f"{_name(item)}: {clipped} pixels are more than {self.headroom:g} times brighter than the first image "
                f"of this series and were clipped; raise ImageExport's headroom (told once per series)"
            )
        return np.minimum(pixels, self._full_scale).astype(np.uint16)

    def _attributes(self, series: Series, item: SeriesImage, scale: float) -> dict[str, str | list[str]]:
        """The meta attributes but for the window."""
        done_here = (f"seed {self.session.seed}", f"scale: pixel = {scale:.9g} x value")
        measurement = self.session.header.measurementInformation
        protocol = measurement.protocolName if measurement else None
        return {
            "DataRole": series.role,
            "ImageProcessingHistory": [*item.frame.history, *item.history, *done_here],
            "ImageScaleFactor": repr(scale),
            "SeriesDescription": f"{protocol}_{series.description}" if protocol else series.description,
            "SequenceDescriptionAdditional": series.description,
            "ImageComments": "; ".join(filter(None, (series.comment, item.frame.caveat))),
            "Keep_image_geometry": "1",
            **_directions(item.frame.reference),
        }


def to_recon_grid(item: SeriesImage, resample: Callable[[Tensor, Space], Tensor]) -> Tensor:
    """The image on the reconstruction grid, values kept.

    Returns:
        `[*recon_matrix]`, without z when the encoding has none.

    Raises:
        ValueError: the data are not finite or not on the encoded grid, or the recon space does not fit into the
            encoded space.
    """
    space, data = item.frame.space, item.data
    if tuple(data.shape) != space.shape:
        raise ValueError(f"{_name(item)}: expected the encoded grid {space.shape}, got shape {tuple(data.shape)}")
    broken = int((~torch.isfinite(data)).sum())
    if broken:
        raise ValueError(f"{_name(item)}: {broken} of {data.numel()} pixels are not finite; the reconstruction failed")
    if data.ndim == 2 and space.recon_matrix[0] != 1:
        raise ValueError(
            f"{_name(item)}: the encoding is two-dimensional, but its recon matrix is {space.recon_matrix}"
        )
    return resample(data, space)


def _band_limited(data: Tensor, space: Space) -> Tensor:
    """As k-space says, which is right for images."""
    data = data.to(torch.complex64)
    for axis in range(-data.ndim, 0):
        data = resample_centred(data, axis, space.recon_matrix[axis], _step(space, axis))
    return data


def _linear(data: Tensor, space: Space) -> Tensor:
    """Between neighbours: a map is not periodic over the field of view, and would ring from one edge to the other."""
    places = [
        _step(space, axis) * (torch.arange(new, dtype=torch.float64) - new // 2) + data.shape[axis] // 2
        for axis, new in zip(range(-data.ndim, 0), space.recon_matrix[-data.ndim :], strict=True)
    ]
    points = torch.stack(torch.meshgrid(*places, indexing="ij"), dim=-1).to(data.device)
    return interpolated(data.real.to(torch.float32), points)


def _step(space: Space, axis: int) -> float:
    """Recon pixel size in encoded pixels along an axis."""
    encoded_mm, recon_mm = space.encoded_fov_mm[axis], space.recon_fov_mm[axis]
    if min(encoded_mm, recon_mm) <= 0:
        raise ValueError(f"expected fields of view above 0 mm, got {encoded_mm:g} encoded and {recon_mm:g} recon")
    encoded_pixel = encoded_mm / space.encoded_matrix[axis]
    if recon_mm - encoded_mm > encoded_pixel / 2:
        raise ValueError(
            f"the recon field of view along {'zyx'[axis]} is {recon_mm:g} mm, more than the encoded {encoded_mm:g} mm"
        )
    return recon_mm / space.recon_matrix[axis] / encoded_pixel


def _window(values: NDArray[Any]) -> tuple[float, float] | None:
    """Lowest and highest value worth showing; None where all is zero."""
    shown = np.abs(values) if np.iscomplexobj(values) else values
    low, high = np.percentile(shown, [100 - WINDOW_PERCENTILE, WINDOW_PERCENTILE])
    low, high = min(0.0, float(low)), float(high) or float(shown.max())
    return (low, high) if high > low else None


def _name(item: SeriesImage) -> str:
    return f"{item.kind} of {item.frame.label}"


def _mrd_image(pixels: NDArray[Any], item: SeriesImage, **fields: int) -> ismrmrd.Image:
    """The pixels with geometry, counters and time stamps of the reference readout."""
    space = item.frame.space
    return ismrmrd.Image.from_array(
        pixels.reshape(1, *space.recon_matrix),
        acquisition=item.frame.reference,
        transpose=False,
        field_of_view=space.recon_fov_mm[::-1],
        **fields,
    )


def _directions(reference: ismrmrd.AcquisitionHeader) -> dict[str, list[str]]:
    names = {"ImageRowDir": "read_dir", "ImageColumnDir": "phase_dir", "ImageSliceNormDir": "slice_dir"}
    return {key: [f"{x:.18f}" for x in getattr(reference, name)] for key, name in names.items()}
