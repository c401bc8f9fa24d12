"""The items that live between gadgets only: a frame, and an image on its way out."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import ismrmrd
import torch
from torch import Tensor


@dataclass(frozen=True)
class Space:
    """The grids of one encoding space. Matrix and field of view are in the order z, y, x; fields of view in mm.

    Images are computed on the encoded grid and brought to the reconstruction grid at export.
    """

    encoded_matrix: tuple[int, int, int]
    encoded_fov_mm: tuple[float, float, float]
    recon_matrix: tuple[int, int, int]
    recon_fov_mm: tuple[float, float, float]

    @classmethod
    def from_encoding(cls, encoding: ismrmrd.xsd.encodingType) -> Space:
        """Reads one <encoding> of an MRD header."""

        def matrix(space: ismrmrd.xsd.encodingSpaceType) -> tuple[int, int, int]:
            size = space.matrixSize
            return int(size.z), int(size.y), int(size.x)

        def fov_mm(space: ismrmrd.xsd.encodingSpaceType) -> tuple[float, float, float]:
            size = space.fieldOfView_mm
            return float(size.z), float(size.y), float(size.x)

        encoded, recon = encoding.encodedSpace, encoding.reconSpace
        return cls(matrix(encoded), fov_mm(encoded), matrix(recon), fov_mm(recon))

    @property
    def shape(self) -> tuple[int, ...]:
        """Of an image on the encoded grid: (y, x), or (z, y, x) when the encoding is three-dimensional."""
        return self.encoded_matrix if self.encoded_matrix[0] > 1 else self.encoded_matrix[1:]


@dataclass(frozen=True)
class Samples:
    """K-space samples and where they lie.

    Attributes:
        kspace: complex64 `[coil, shot, sample]`, unit noise variance per complex sample once prewhitened.
        trajectory: float32 `[axis, shot, sample]` in cycles per encoded field of view, axes in the order of the image
            axes: (y, x) or (z, y, x). Signal ~ sum of image times exp(-2 pi i k r), with r in fields of view from the
            pixel N // 2.
    """

    kspace: Tensor
    trajectory: Tensor

    def on(self, device: torch.device) -> Samples:
        """The same on another device."""
        return Samples(self.kspace.to(device), self.trajectory.to(device))


@dataclass(eq=False)
class Frame:
    """Everything needed to make one image: one slice, contrast, repetition, ...

    Gadgets add to it; each addition replaces nothing that an earlier gadget wrote, but for coil compression.

    Attributes:
        samples: the imaging samples.
        times: float32 `[shot, sample]` in seconds from the excitation, or from the first sample where the header gives
            no echo time.
        space: the grids.
        reference: header of the acquisition closest to the centre of k-space (geometry, counters, time stamps).
        calibration: samples acquired for calibration only, when there are any.
        mixing: complex64 `[coil, receiver]`, the receivers' part in each coil once coils were compressed, orthonormal
            rows; None while the coils are the receivers.
        coil_maps: complex64 `[coil, *space.shape]`, unit root sum of squares over coils where there is signal.
        field_map: float32 `[*space.shape]`, off-resonance psi in Hz with signal ~ exp(-2 pi i psi t); without one,
            solvers take the field as even.
        image: complex64 `[*space.shape]`, the best image so far.
        history: what was done, one line each; ends up in the image's ImageProcessingHistory.
        caveat: what whoever looks at its images has to know; ends up in their ImageComments.
    """

    samples: Samples
    times: Tensor
    space: Space
    reference: ismrmrd.AcquisitionHeader
    calibration: Samples | None = None
    mixing: Tensor | None = None
    coil_maps: Tensor | None = None
    field_map: Tensor | None = None
    image: Tensor | None = None
    history: list[str] = field(default_factory=list)
    caveat: str = ""

    @property
    def label(self) -> str:
        """Which frame this is, for messages: "slice 3, contrast 0, repetition 12"."""
        idx = self.reference.idx
        rare = "".join(f", {name} {getattr(idx, name)}" for name in ("set", "phase") if getattr(idx, name))
        return f"slice {idx.slice}, contrast {idx.contrast}, repetition {idx.repetition}{rare}"

    @property
    def device(self) -> torch.device:
        """Where its samples are."""
        return self.samples.kspace.device

    def on(self, device: torch.device) -> Frame:
        """The same frame with all that it holds on another device."""
        tensors: dict[str, Any] = {
            name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        calibration = self.calibration and self.calibration.on(device)
        return replace(self, samples=self.samples.on(device), calibration=calibration, **tensors)


@dataclass(frozen=True, eq=False)
class SeriesImage:
    """One image that shall leave as part of a series.

    Attributes:
        kind: which series, one of `gadgets.image_export.SERIES` or of a gadget's own.
        data: complex or real `[*frame.space.shape]`, on the encoded grid.
        frame: what it was made from (geometry, counters, history).
    """

    kind: str
    data: Tensor
    frame: Frame
    history: tuple[str, ...] = ()
