"""How much a peer may ask of this machine's memory, whatever it announces."""

from __future__ import annotations

from dataclasses import dataclass

MEBIBYTE = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What is beyond these is refused with the reason, before memory is taken for it.

    Attributes:
        text_bytes: of one text, image attributes included.
        data_bytes: of one acquisition, waveform or image.
        channels: of one acquisition; a noise covariance has their square.
        xml_bytes: of an MRD header or a pipeline definition.
        coil_image_bytes: of an image of every channel on the encoded grid, complex64; a reconstruction takes several
            times as much.
        gadgets: in one pipeline.
        properties: set in one pipeline.
    """

    text_bytes: int = 16 * MEBIBYTE
    data_bytes: int = 1024 * MEBIBYTE
    channels: int = 1024
    xml_bytes: int = 4 * MEBIBYTE
    coil_image_bytes: int = 16384 * MEBIBYTE
    gadgets: int = 64
    properties: int = 1024


BOUNDS = Bounds()
"""Where nobody sets others."""
