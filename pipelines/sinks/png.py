"""Images as PNG files, to look at."""

from __future__ import annotations

import math
import re
from collections import Counter
from pathlib import Path

import ismrmrd
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipelines.sinks.attributes import Array, Header, components, text_of, window_of
from pipelines.sinks.folder import output_folder

LONGEST_KIND = 40


class PngSink:
    """Writes one 8-bit grey PNG per image: the first row on top, linear from the window's low end to its high end.

    Complex images are shown by magnitude; several planes (z or channels) as tiles of one picture, row by row.

    Args:
        folder: of the files, named by series, its kind where the image says it, and running number.
        header: not needed.
        overwrite: replace files of the same names.

    Raises:
        FileExistsError: there are PNG files in the folder and they may not be overwritten.
    """

    def __init__(self, folder: Path, header: Header | None = None, overwrite: bool = False) -> None:
        self._folder = output_folder(folder, ".png", overwrite)
        self._written: Counter[int] = Counter()

    def write(self, image: ismrmrd.Image) -> None:
        """Writes one image."""
        series = image.image_series_index
        self._written[series] += 1
        values = components(image)[0][1]
        grey = to_grey(tiles(values.reshape(-1, *values.shape[2:])), window_of(image, values))
        Image.fromarray(grey).save(self._folder / f"series{series:03d}{_kind(image)}_{self._written[series]:05d}.png")

    def close(self) -> None:
        """Nothing is left to do."""


def _kind(image: ismrmrd.Image) -> str:
    """ "_field_map": what is shown, in letters and digits that any file system takes; empty where nobody says."""
    words = re.findall("[a-z0-9]+", text_of(image, "SequenceDescriptionAdditional").lower())
    return "".join(f"_{word}" for word in words)[:LONGEST_KIND]


def to_grey(values: Array, window: tuple[float, float]) -> NDArray[np.uint8]:
    """Linear from black at the low end of the window to white at its high end; non-finite values are black."""
    low, high = window
    values = np.where(np.isfinite(values), values, low).astype(np.float64)
    shade = (values - low) / (high - low) if high > low else np.zeros_like(values)
    return np.asarray(np.rint(255 * np.clip(shade, 0, 1)), np.uint8)


def tiles(planes: Array) -> Array:
    """Planes `[plane, y, x]` side by side, in as square a grid as they fill; what is left over is 0."""
    count, height, width = planes.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    padded = np.concatenate([planes, np.zeros((rows * columns - count, height, width), planes.dtype)])
    return padded.reshape(rows, columns, height, width).swapaxes(1, 2).reshape(rows * height, columns * width)
