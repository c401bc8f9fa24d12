"""What every sink reads from an image and the measurement's header, whoever made them and whatever they left out."""

from __future__ import annotations

from typing import Any, TypeAlias

import ismrmrd
import numpy as np
from numpy.typing import NDArray

Header: TypeAlias = ismrmrd.xsd.ismrmrdHeader
Array = NDArray[Any]

# Percent of the pixels below and above the window where an image does not name its own.
SATURATED = 0.5

COMPONENTS = {
    ismrmrd.IMTYPE_MAGNITUDE: "M",
    ismrmrd.IMTYPE_PHASE: "P",
    ismrmrd.IMTYPE_REAL: "R",
    ismrmrd.IMTYPE_IMAG: "I",
}


def values_of(image: ismrmrd.Image, key: str) -> list[str]:
    """A meta attribute as a list; empty where it is absent."""
    value = image.meta.get(key)
    values = value if isinstance(value, list) else [value]
    return [str(v) for v in values if v is not None]


def text_of(image: ismrmrd.Image, key: str) -> str:
    """A meta attribute as one text; empty where it is absent."""
    return " ".join(values_of(image, key))


def number_of(image: ismrmrd.Image, key: str) -> float | None:
    """A meta attribute as a finite number; None where it is absent or is none."""
    try:
        number = float(text_of(image, key))
    except ValueError:
        return None
    return number if np.isfinite(number) else None


def window_of(image: ismrmrd.Image, values: Array) -> tuple[float, float]:
    """The lowest and the highest value to show: as the image says, or else by percentiles of its finite values."""
    centre, width = number_of(image, "WindowCenter"), number_of(image, "WindowWidth")
    if centre is not None and width is not None and width > 0:
        return centre - width / 2, centre + width / 2
    finite = values[np.isfinite(values)]
    if not finite.size:
        return 0.0, 1.0
    low, high = np.percentile(finite, [SATURATED, 100 - SATURATED])
    return float(low), float(high)


def components(image: ismrmrd.Image) -> list[tuple[str, Array]]:
    """The real-valued pictures in an image, each with DICOM's letter for what it shows.

    Returns:
        (M, P, R or I; values `[channel, z, y, x]`). A complex image has two: magnitude, and phase in radians.
    """
    data: Array = image.data
    if np.iscomplexobj(data):
        return [("M", np.abs(data)), ("P", np.angle(data))]
    return [(COMPONENTS.get(image.image_type, "M"), data)]


def series_description(image: ismrmrd.Image, header: Header | None) -> str:
    """As the image says, or else as the header does; may be empty."""
    measurement = header.measurementInformation if header else None
    named = (measurement.seriesDescription or measurement.protocolName) if measurement else None
    return text_of(image, "SeriesDescription") or named or ""


def sequence_values(header: Header | None, contrast: int) -> dict[str, float]:
    """What is known of how one contrast was measured, by DICOM keyword and in DICOM's units (ms, degrees, T, MHz)."""
    if header is None:
        return {}
    sequence, system = header.sequenceParameters, header.acquisitionSystemInformation
    known: dict[str, float | None] = {
        "ImagingFrequency": header.experimentalConditions.H1resonanceFrequency_Hz / 1e6,
        "MagneticFieldStrength": system.systemFieldStrength_T if system else None,
    }
    if sequence is not None:
        known["EchoTime"] = sequence.TE[contrast] if contrast < len(sequence.TE) else None
        known["RepetitionTime"] = _shared(sequence.TR, contrast)
        known["InversionTime"] = _shared(sequence.TI, contrast)
        known["FlipAngle"] = _shared(sequence.flipAngle_deg, contrast)
    return {keyword: value for keyword, value in known.items() if value is not None}


def _shared(values: list[float], contrast: int) -> float | None:
    """The value of a contrast, or the only one there is, which then holds for all contrasts."""
    if len(values) == 1:
        return values[0]
    return values[contrast] if contrast < len(values) else None
