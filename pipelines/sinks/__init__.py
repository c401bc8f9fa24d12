"""Where images go when they have come back: MRD, DICOM, NIfTI and PNG files, from any MRD server.

A sink has `write(image)` and `close()`, and raises ValueError or OSError when it cannot store what it got.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Protocol

import ismrmrd

from pipelines.errors import FileError
from pipelines.sinks.attributes import Header
from pipelines.sinks.dicom import DicomSink
from pipelines.sinks.geometry import missing_geometry
from pipelines.sinks.mrd import MrdSink
from pipelines.sinks.nifti import NiftiSink
from pipelines.sinks.png import PngSink

log = logging.getLogger("spinstream")


class Sink(Protocol):
    """Takes images until it is closed."""

    def write(self, image: ismrmrd.Image) -> None:
        """Stores one image, at once or at `close`."""

    def close(self) -> None:
        """Stores what is still held, and lets go of the files."""


class Sinks:
    """Several sinks as one. Closes them at the end of the `with` block, also after an error; FileError if that fails.

    Attributes:
        images: how many images came.
    """

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self.images = 0
        self._sinks = sinks
        self._told: set[str] = set()

    def write(self, item: ismrmrd.Image | ismrmrd.Acquisition | ismrmrd.Waveform) -> None:
        """Writes an image to all sinks, an acquisition or a waveform to MRD files only.

        Raises:
            FileError: a sink cannot store it; the file system's reason, or the image's.
        """
        if isinstance(item, ismrmrd.Image):
            self._tell_missing(item)
            self.images += 1
            name, sinks = f"image {item.image_index} of series {item.image_series_index}", self._sinks
        else:
            name = f"a {type(item).__name__}"
            sinks = [sink for sink in self._sinks if isinstance(sink, MrdSink)]
        for sink in sinks:
            try:
                sink.write(item)
            except (ValueError, OSError) as error:
                raise FileError(f"{type(sink).__name__} cannot store {name}: {error}") from error

    def __enter__(self) -> Sinks:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            with ExitStack() as stack:
                for sink in self._sinks:
                    stack.callback(sink.close)
        except OSError as failure:
            raise FileError(f"the output is not complete: {failure}") from failure

    def _tell_missing(self, image: ismrmrd.Image) -> None:
        for line in missing_geometry(image.getHead()):
            if line not in self._told:
                log.warning("%s", line)
            self._told.add(line)


def open_sinks(
    header: Header | None,
    mrd: Path | None = None,
    dicom: Path | None = None,
    nifti: Path | None = None,
    png: Path | None = None,
    overwrite: bool = False,
) -> Sinks:
    """One sink for each path that is given: a file for MRD, folders for the others.

    Raises:
        FileError: a path exists and may not be overwritten, or cannot be made.
    """
    try:
        # The MRD file last, so that a refused folder leaves no empty file behind.
        kinds: list[tuple[Callable[..., Sink], Path | None]]
        kinds = [(DicomSink, dicom), (NiftiSink, nifti), (PngSink, png), (MrdSink, mrd)]
        return Sinks([kind(path, header, overwrite) for kind, path in kinds if path])
    except OSError as error:
        raise FileError(str(error)) from error
