"""Sensitivities of the coils, from the data themselves."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress

import torch
from torch import Tensor

from gadgets.frame import Frame, Samples
from gadgets.gadget import COIL_MAPS, FRAMES, Gadget
from gadgets.imaging_model import moment_of_the_centre
from gadgets.property import choice, integer, real
from recon_core.calibration.espirit import espirit
from recon_core.calibration.low_resolution import NotFullySampledError, OffResonance, calibration_kspace
from recon_core.calibration.walsh import walsh
from recon_core.fourier import ifft_centred, resize_centred

ESPIRIT, WALSH = "espirit", "walsh"
NARROWEST, STEP = 8, 2  # of the regions that are tried
WIDEST_KERNEL = 6


class CoilMaps(Gadget[Frame]):
    """Estimates coil sensitivity maps from the centre of k-space.

    Lines for parallel calibration are used where there are any, else the central samples of the image itself, on any
    trajectory, without the off-resonance if an earlier gadget found a field map. A single coil gets a map of ones.
    """

    takes = Frame
    needs = frozenset({FRAMES})
    adds = frozenset({COIL_MAPS})
    per_frame = True

    method = choice(ESPIRIT, (ESPIRIT, WALSH), "ESPIRiT, or adaptive combination after Walsh")
    calibration = integer(
        24,
        "width of the central region; the largest densely sampled one that is not wider is used",
        unit="cycles per field of view",
        low=8,
        high=256,
    )
    kernel = integer(
        None,
        f"width of the ESPIRiT kernel; auto takes {WIDEST_KERNEL}, or half of the region where that is less, so that "
        "more places have room for it",
        unit="samples",
        low=2,
        high=16,
    )
    threshold = real(
        0.02, "smallest singular value of the calibration data that is signal, relative", low=0.0, high=1.0
    )
    crop = real(
        0.0,
        "ESPIRiT eigenvalue below which a pixel holds no signal and its maps are zero; 0 keeps all pixels, since "
        "off-resonance lowers the eigenvalue also where there is signal, and would leave holes",
        low=0.0,
        high=1.0,
    )

    def take(self, item: Frame) -> Iterator[object]:
        """Yields the frame with its coil maps."""
        item.coil_maps, how = self.maps(item)
        item.history.append(f"CoilMaps: {how}")
        yield item

    def maps(self, frame: Frame) -> tuple[Tensor, str]:
        """The maps of a frame, `[coil, *shape]`, and how they were made."""
        kspace, shape = frame.samples.kspace, frame.space.shape
        if len(kspace) == 1:
            return torch.ones(1, *shape, dtype=kspace.dtype, device=kspace.device), "a single coil, maps of ones"
        samples = frame.calibration or frame.samples
        if not samples.kspace.any():
            even = torch.full((len(kspace), *shape), len(kspace) ** -0.5, dtype=kspace.dtype, device=kspace.device)
            return even, "no signal, all coils alike"
        off_resonance = None
        if frame.field_map is not None and not frame.calibration:
            # What the field does until then is the same for all coils.
            off_resonance = OffResonance(frame.times - moment_of_the_centre(frame), frame.field_map)
        centre = self._centre(samples, shape, off_resonance)
        size = centre.shape[1:]
        source = f"{' x '.join(map(str, size))} of the " + ("calibration lines" if frame.calibration else "samples")
        if off_resonance:
            source += " without their off-resonance"
        if self.method == WALSH:
            axes = tuple(range(-len(shape), 0))
            return walsh(ifft_centred(resize_centred(centre, shape), axes)), f"Walsh from {source}"
        kernel = min(self.kernel or _fitting_kernel(size), *size)  # a stack may have fewer partitions
        maps = espirit(centre, shape, kernel, self.threshold, self.crop)
        return maps, f"ESPIRiT from {source}, kernel of {kernel} samples"

    def _centre(self, samples: Samples, shape: tuple[int, ...], off_resonance: OffResonance | None) -> Tensor:
        """K-space `[coil, *size]` of the largest central region that is densely sampled, up to the width asked for."""
        reach = [min(n, _reach(k)) for n, k in zip(shape, samples.trajectory, strict=True)]
        if 0 in reach:
            raise ValueError(
                f"coil maps need the centre of k-space, which the {samples.kspace.shape[1]} readouts do not surround"
            )
        centre = self._even_centre(samples, reach, off_resonance)
        for axis, n in enumerate(reach):  # lines reach farther along the readout than they are many
            wider = list(centre.shape[1:])
            wider[axis] = min(self.calibration, n)
            if wider != list(centre.shape[1:]):
                with suppress(NotFullySampledError):
                    centre = calibration_kspace(samples.kspace, samples.trajectory, wider, off_resonance)
        return centre

    def _even_centre(self, samples: Samples, reach: list[int], off_resonance: OffResonance | None) -> Tensor:
        """The largest one of the same width on all axes, as far as they reach."""
        width = self.calibration
        while True:
            try:
                size = [min(width, n) for n in reach]
                return calibration_kspace(samples.kspace, samples.trajectory, size, off_resonance)
            except NotFullySampledError:
                if width - STEP < NARROWEST:
                    raise
                width -= STEP


def _fitting_kernel(size: Sequence[int]) -> int:
    """Half of the region, but for axes along which the whole matrix is narrow."""
    return min([WIDEST_KERNEL, *(n // 2 for n in size if n >= NARROWEST)])


def _reach(k: Tensor) -> int:
    """The width of the widest centred grid whose points lie within the range of `k`."""
    return 2 * max(min(-math.ceil(k.min()), math.floor(k.max()) + 1), 0)
