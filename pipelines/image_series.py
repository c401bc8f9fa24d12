"""What is read from the images of a pipeline: which series they belong to, their values, and how they were made."""

from __future__ import annotations

import re
from collections.abc import Sequence

import ismrmrd
import numpy as np
from numpy.typing import NDArray

from pipelines.sinks.attributes import components, number_of, text_of, values_of

MAIN = "image"
"""The series in which the best image of a pipeline leaves."""

SOLVED = re.compile(r"\b(\d+)(?: of \d+)? (?:iterations|steps)\b")
SECONDS = re.compile(r"\b(\d+(?:\.\d+)?) s\b")
UNWHITENED = "NoisePrewhitening: no noise data"
TOGETHER = re.compile(r"\b(\d+) slices at once\b")


def kind_of(image: ismrmrd.Image) -> str:
    """Of the series that it belongs to; empty where it does not say."""
    return text_of(image, "SequenceDescriptionAdditional")


def images_of_main_series(images: Sequence[ismrmrd.Image]) -> list[ismrmrd.Image]:
    """Those that a pipeline is judged by: its series `MAIN`, or else the only one that is no map of physical values.

    Raises:
        ValueError: there is no such series, or several.
    """
    pictures = [image for image in images if text_of(image, "DataRole") != "Quantitative"]
    kinds = {kind_of(image) for image in pictures}
    if MAIN not in kinds and len(kinds) != 1:
        raise ValueError(
            f"expected a series {MAIN!r}, or one series of images, got {', '.join(sorted(kinds)) or 'none'}"
        )
    main = MAIN if MAIN in kinds else kinds.pop()
    return [image for image in pictures if kind_of(image) == main]


def magnitude_of(image: ismrmrd.Image) -> NDArray[np.float32]:
    """Physical magnitudes `[z, y, x]`: pixels over the image's ImageScaleFactor.

    Raises:
        ValueError: it has several channels, or its scale is not above 0.
    """
    values = components(image)[0][1]
    if len(values) != 1:
        raise ValueError(f"expected images of one channel, got {len(values)}")
    scale = number_of(image, "ImageScaleFactor")
    if scale is not None and scale <= 0:
        raise ValueError(f"expected an ImageScaleFactor above 0, got {scale:g}")
    return np.asarray(np.abs(values[0]) / (scale or 1.0), np.float32)


def field_of(image: ismrmrd.Image) -> NDArray[np.float32]:
    """The off-resonance `[z, y, x]` in Hz that an image of a field map series holds.

    Raises:
        ValueError: it has several channels.
    """
    values = components(image)[0][1]
    if len(values) != 1:
        raise ValueError(f"expected field maps of one channel, got {len(values)}")
    return np.asarray(values[0], np.float32)


def is_whitened(image: ismrmrd.Image) -> bool:
    """Whether its history tells of no data that could not be prewhitened for want of noise data."""
    return not any(line.startswith(UNWHITENED) for line in values_of(image, "ImageProcessingHistory"))


def solver_report(image: ismrmrd.Image) -> tuple[int | None, float | None]:
    """Steps and seconds per slice of the solver, as the image's history tells them; None where it does not."""
    for line in reversed(values_of(image, "ImageProcessingHistory")):
        solved, seconds, together = (pattern.search(line) for pattern in (SOLVED, SECONDS, TOGETHER))
        if solved:
            return int(solved[1]), float(seconds[1]) / int(together[1] if together else 1) if seconds else None
    return None, None
