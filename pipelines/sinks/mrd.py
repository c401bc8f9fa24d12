"""Images, and whatever else a server sends back, into an ISMRMRD .h5 file."""

from __future__ import annotations

from pathlib import Path

import ismrmrd
import numpy as np
from xsdata.formats.dataclass.serializers import XmlSerializer

from pipelines.sinks.attributes import Header


class MrdSink:
    """Appends MRD items to a new file, group "dataset", images as "image_<series>".

    Each image is on disk when `write` returns, so that a crash costs only what came after it. Pixels are stored as they
    came, but for int32, which becomes float64.

    Args:
        path: of the file.
        header: stored with the items.
        overwrite: replace an existing file.

    Raises:
        FileExistsError: the file exists and may not be overwritten.
    """

    def __init__(self, path: Path, header: Header | None = None, overwrite: bool = False) -> None:
        if path.exists() and not overwrite:
            raise FileExistsError(f"{path} exists and is not overwritten")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._header = header
        self._opened: ismrmrd.Dataset | None = None  # until the first item
        self._groups: dict[tuple[object, ...], str] = {}

    def write(self, item: ismrmrd.Image | ismrmrd.Acquisition | ismrmrd.Waveform) -> None:
        """Appends one item."""
        if isinstance(item, ismrmrd.Image):
            self._append_image(item)
        elif isinstance(item, ismrmrd.Acquisition):
            self._file.append_acquisition(item)
        else:
            self._file.append_waveform(item)

    def close(self) -> None:
        """Closes the file."""
        if self._opened is not None:
            self._opened.close()

    @property
    def _file(self) -> ismrmrd.Dataset:
        """Made with the first item, so that a run without any leaves no file, and one that was there is still there."""
        if self._opened is None:
            self._path.unlink(missing_ok=True)
            self._opened = ismrmrd.Dataset(str(self._path), "dataset", True)
            if self._header is not None:
                self._opened.write_xml_header(_xml(self._header))
        return self._opened

    def _append_image(self, image: ismrmrd.Image) -> None:
        image = _storable(image)
        self._file.append_image(self._group_of(image), image)
        self._file._file.flush()  # the package has no public way to bring an image safely to disk

    def _group_of(self, image: ismrmrd.Image) -> str:
        """One HDF5 array holds one shape and type; images of a series that differ go to image_<series>_2, ..."""
        name = f"image_{image.image_series_index}"
        key = (name, image.data.shape, image.data_type)
        if key not in self._groups:
            others = sum(known[0] == name for known in self._groups)
            self._groups[key] = f"{name}_{others + 1}" if others else name
        return self._groups[key]


def _xml(header: Header) -> bytes:
    # Not ismrmrd.xsd.ToXML: that of ismrmrd 1.14 fails with the xsdata that is installed beside it today.
    return XmlSerializer().render(header, ns_map={"": "http://www.ismrm.org/ISMRMRD"}).encode()


def _storable(image: ismrmrd.Image) -> ismrmrd.Image:
    """The image as the `ismrmrd` package can write it: it takes 4 byte integers for 8 byte ones; float64 holds them."""
    if image.data_type != ismrmrd.DATATYPE_INT:
        return image
    return ismrmrd.Image(image.getHead(), data=image.data.astype(np.float64), meta=image.meta)
