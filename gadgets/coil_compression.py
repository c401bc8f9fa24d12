"""Fewer coils with nearly all of the signal."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import torch
from torch import Tensor

from gadgets.frame import Frame, Samples
from gadgets.gadget import FRAMES, Gadget
from gadgets.property import integer, real
from recon_core.calibration.compression import compression_matrix

log = logging.getLogger("spinstream")


class CoilCompression(Gadget[Frame]):
    """Replaces the receiver coils by as few orthonormal mixtures of them as hold the wanted part of the signal energy.

    Unit noise stays unit noise, and what is left out is weak in the sense of signal over noise only if the data are
    prewhitened. Each frame gets coils of its own. (Huang et al.: A software channel compression technique. Magn Reson
    Imaging 26:133, 2008.)
    """

    takes = Frame
    needs = frozenset({FRAMES})
    per_frame = True

    energy = real(0.99, "part of the signal energy that the virtual coils keep", low=0.5, high=1.0)
    max_coils = integer(None, "largest number of virtual coils; auto sets no limit", low=1)

    def take(self, item: Frame) -> Iterator[object]:
        """Yields the frame with its samples and its calibration samples in virtual coils."""
        kspace = item.samples.kspace
        coils = len(kspace)
        if coils > 1 and kspace.any():
            mixing = compression_matrix(kspace, self.energy, self.max_coils or coils)
            item.mixing = mixing if item.mixing is None else mixing @ item.mixing
            item.samples = mixed(item.samples, mixing)
            item.calibration = item.calibration and mixed(item.calibration, mixing)
            kept = float(item.samples.kspace.abs().square().sum() / kspace.abs().square().sum())
            item.history.append(f"CoilCompression: {coils} to {len(mixing)} coils, {kept:.2%} of the energy")
            log.info("%s: %s", item.label, item.history[-1])
        yield item


def mixed(samples: Samples, mixing: Tensor) -> Samples:
    """The same samples of the virtual coils of `mixing` `[virtual, coil]`."""
    return Samples(torch.einsum("vc,cnm->vnm", mixing, samples.kspace), samples.trajectory)
