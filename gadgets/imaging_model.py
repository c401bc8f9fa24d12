"""The imaging equation of a frame; what it has in common with other frames, slices and sessions is built once."""

from __future__ import annotations

import logging
import math

import torch
from torch import Tensor

from gadgets.frame import Frame
from gadgets.gadget import Session
from recon_core.cache import content_key
from recon_core.operators.encoding import Encoding
from recon_core.operators.linear_model import LinearModel
from recon_core.operators.off_resonance import LowRank
from recon_core.operators.sampling import sampling_operator

log = logging.getLogger("spinstream")

RANGE_STEP_HZ = 50.0
"""Ranges of frequencies end at multiples of this, so that slices whose fields differ a little share one encoding."""


def model_of(frame: Frame, session: Session, off_resonance_error: float) -> LinearModel:
    """The model of a frame that has coil maps, with its field map if it has one, which is noted in the history.

    Args:
        frame: to be reconstructed.
        session: keeps encodings.
        off_resonance_error: largest relative error of the off-resonance model.

    Raises:
        ValueError: the field map has another shape than the image, or is not finite.
        MemoryError: a single coil does not fit into memory.
    """
    assert frame.coil_maps is not None
    if frame.field_map is None:
        model = LinearModel(encoding_of(frame, session), frame.coil_maps)
    else:
        low_hz, high_hz = frequency_range(frame.field_map)
        encoding = encoding_with_field(frame, session, low_hz, high_hz, off_resonance_error)
        model = LinearModel(encoding, frame.coil_maps, frame.field_map)
        frame.history.append(
            f"off-resonance from {low_hz:g} to {high_hz:g} Hz in {encoding.terms} functions of time, relative error "
            f"{off_resonance_error:g}"
        )
    log.info("%s: %d functions of time, %s", frame.label, model.encoding.terms, model.batches())
    return model


def encoding_of(frame: Frame, session: Session) -> Encoding:
    """The encoding of a frame that knows no field; keeps its kernels once they were asked for."""
    trajectory, shape = frame.samples.trajectory, frame.space.shape
    key = content_key("encoding", trajectory, shape)
    return session.cache.get(key, lambda: Encoding(sampling_operator(trajectory, shape)))


def encoding_with_field(
    frame: Frame, session: Session, low_hz: float, high_hz: float, off_resonance_error: float
) -> Encoding:
    """The encoding of a frame for all fields of a range; keeps its kernels once they were asked for."""

    def build() -> Encoding:
        functions = LowRank(frame.times, low_hz, high_hz, off_resonance_error)
        return Encoding(encoding_of(frame, session).sampling, functions)

    scan = frame.samples.trajectory, frame.times, frame.space.shape
    return session.cache.get(content_key("encoding", *scan, low_hz, high_hz, off_resonance_error), build)


def moment_of_the_centre(frame: Frame) -> float:
    """When the samples nearest to the centre of k-space are taken, mean over the shots, in the frame's times."""
    nearest = frame.samples.trajectory.square().sum(0).argmin(-1, keepdim=True)
    return float(frame.times.gather(-1, nearest).mean())


def frequency_range(field_map: Tensor) -> tuple[float, float]:
    """From the next multiple of the step below the field to the next above it, in Hz.

    Raises:
        ValueError: the field is not finite.
    """
    if not torch.isfinite(field_map).all():
        raise ValueError("the field map holds values that are not finite")
    low, high = (float(x) / RANGE_STEP_HZ for x in field_map.aminmax())
    return math.floor(low) * RANGE_STEP_HZ, math.ceil(high) * RANGE_STEP_HZ
