"""Fewer coils with nearly all of the signal."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import torch
from torch import Tensor

from gadgets.echoes import SharedByEchoes
from gadgets.frame import Frame, Samples
from gadgets.gadget import FRAMES, Gadget, Session
from gadgets.property import integer, real
from recon_core.calibration.compression import compression_matrix

log = logging.getLogger("spinstream")


class CoilCompression(Gadget[Frame]):
    """Replaces the receiver coils by as few orthonormal mixtures of them as hold the wanted part of the signal energy.

    Unit noise stays unit noise, and what is left out is weak in the sense of signal over noise only if the data are
    prewhitened. All echoes of a slice get the virtual coils of the first. (Huang et al.: A software channel compression
    technique. Magn Reson Imaging 26:133, 2008.)
    """

    takes = Frame
    needs = frozenset({FRAMES})

    energy = real(0.99, "part of the signal energy that the virtual coils keep", low=0.5, high=1.0)
    max_coils = integer(None, "largest number of virtual coils; auto sets no limit", low=1)

    def open(self, session: Session) -> None:
        """Forgets the coils of any earlier session."""
        super().open(session)
        self._mixing: SharedByEchoes[Tensor] = SharedByEchoes(session.header)

    def take(self, item: Frame) -> Iterator[object]:
        """Yields the frame with its samples and its calibration samples in virtual coils."""
        kspace = item.samples.kspace
        coils = len(kspace)
        if coils > 1 and kspace.any():
            mixing, contrast = self._mixing.of(
                item, lambda: compression_matrix(kspace, self.energy, self.max_coils or coils)
            )
            item.samples = mixed(item.samples, mixing)
            item.calibration = item.calibration and mixed(item.calibration, mixing)
            kept = float(item.samples.kspace.abs().square().sum() / kspace.abs().square().sum())
            source = f", as for contrast {contrast}" if contrast != item.reference.idx.contrast else ""
            item.history.append(f"CoilCompression: {coils} to {len(mixing)} coils, {kept:.2%} of the energy{source}")
            log.info("%s: %s", item.label, item.history[-1])
        yield item


def mixed(samples: Samples, mixing: Tensor) -> Samples:
    """The same samples of the virtual coils of `mixing` `[virtual, coil]`."""
    return Samples(torch.einsum("vc,cnm->vnm", mixing, samples.kspace), samples.trajectory)
