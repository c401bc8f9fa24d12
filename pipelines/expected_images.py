"""What images a scan gives, as far as its header and readouts say before any pipeline has run."""

from __future__ import annotations

import ismrmrd
import numpy as np

from gadgets.frame import Space
from gadgets.gadget import Header
from gadgets.mrd import check_encodings, encoding_of, makes_image
from pipelines.streams.file import RawFile


def expected_images(raw: RawFile, header: Header) -> list[ismrmrd.Image]:
    """One image of each slice, empty, on the reconstruction grid, with number and geometry.

    Raises:
        ValueError: the header describes no grid for some readout.
        FileError: a readout cannot be read.
    """
    check_encodings(header)
    first: dict[int, ismrmrd.Acquisition] = {}
    for item in raw.items():
        if isinstance(item, ismrmrd.Acquisition) and makes_image(item):
            first.setdefault(int(item.idx.slice), item)
    return [_empty_image(first[number], header) for number in sorted(first)]


def _empty_image(readout: ismrmrd.Acquisition, header: Header) -> ismrmrd.Image:
    space = Space.from_encoding(encoding_of(header, readout))
    return ismrmrd.Image.from_array(
        np.zeros((1, *space.recon_matrix), np.float32),
        acquisition=readout.getHead(),
        transpose=False,
        field_of_view=space.recon_fov_mm[::-1],
    )
