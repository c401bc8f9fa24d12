"""An image at once."""

from __future__ import annotations

from collections.abc import Iterator

from gadgets.frame import Frame, SeriesImage
from gadgets.gadget import COIL_MAPS, FRAMES, IMAGE, Gadget
from gadgets.imaging_model import encoding_of
from recon_core.cache import content_key
from recon_core.density import pipe_menon
from recon_core.operators.linear_model import LinearModel

ITERATIONS = 10
"""Of the density compensation: measured spirals gain less than a thousandth of the image from further ones."""


class Preview(Gadget[Frame]):
    """Sends a quick image out as a series of its own: the coil-combined adjoint of the density-compensated samples.

    (Pipe, Menon: Sampling density compensation in MRI. Magn Reson Med 41:179, 1999.)
    """

    takes = Frame
    needs = frozenset({FRAMES, COIL_MAPS})
    adds = frozenset({IMAGE})
    per_frame = True

    def take(self, item: Frame) -> Iterator[object]:
        """Yields the preview, then the frame, which holds it as its image so far."""
        assert item.coil_maps is not None
        encoding = encoding_of(item, self.session)
        key = content_key("density", item.samples.trajectory, item.space.shape, ITERATIONS)
        weights = self.session.cache.get(key, lambda: pipe_menon(encoding.sampling, ITERATIONS))
        item.image = LinearModel(encoding, item.coil_maps).adjoint(weights * item.samples.kspace)
        yield SeriesImage("preview", item.image, item, ("Preview: adjoint with density compensation",))
        yield item
