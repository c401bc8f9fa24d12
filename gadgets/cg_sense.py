"""The least-squares image of all coils."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from gadgets.frame import Frame, SeriesImage
from gadgets.gadget import COIL_MAPS, FRAMES, IMAGE, Gadget
from gadgets.imaging_model import model_of
from gadgets.property import integer, real
from recon_core.solvers.cg_sense import cg_sense

log = logging.getLogger("spinstream")


class CgSense(Gadget[Frame]):
    """Solves for the image by conjugate gradients on the normal equations of the SENSE model, on any trajectory.

    Where an earlier gadget gave the frame a field map, the model holds the off-resonance at the time of each sample.

    (Pruessmann et al.: Advances in sensitivity encoding with arbitrary k-space trajectories. Magn Reson Med 46:638,
    2001.)
    """

    takes = Frame
    needs = frozenset({FRAMES, COIL_MAPS})
    adds = frozenset({IMAGE})
    per_frame = True

    iterations = integer(20, "largest number of iterations", low=1, high=1000)
    tolerance = real(
        1e-4, "residual of the normal equations, relative to its start, at which to stop", low=0.0, high=1.0
    )
    regularisation = real(0.0, "weight of the squared image norm, relative to the strength of the model", low=0.0)
    off_resonance_error = real(
        1e-3,
        "largest relative error of the off-resonance in the model",
        low=1e-6,
        high=0.1,
    )

    def take(self, item: Frame) -> Iterator[object]:
        """Yields the image, then the frame with it."""
        model = model_of(item, self.session, self.off_resonance_error)
        result = cg_sense(model, item.samples.kspace, self.regularisation, self.iterations, self.tolerance)
        item.image = result.image
        item.history.append(
            f"CgSense: {len(result.residuals) - 1} iterations, residual {result.residuals[-1]:.2e}, "
            f"regularisation {self.regularisation:g}"
        )
        log.info("%s: %s", item.label, item.history[-1])
        yield SeriesImage("image", item.image, item)
        yield item
