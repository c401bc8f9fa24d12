"""Frames that are echoes of one another: the same but for their contrast."""

from __future__ import annotations

from typing import NamedTuple

from gadgets.frame import Frame
from gadgets.gadget import Header
from gadgets.header_trajectory import steps_of
from gadgets.mrd import limit_of


class EchoKey(NamedTuple):
    """What the echoes of one slice have in common."""

    encoding: int
    slice: int
    repetition: int
    set: int
    phase: int
    average: int

    @classmethod
    def of(cls, frame: Frame) -> EchoKey:
        """Of a frame, by the counters of its reference readout."""
        head = frame.reference
        idx = head.idx
        return cls(head.encoding_space_ref, idx.slice, idx.repetition, idx.set, idx.phase, idx.average)

    def __str__(self) -> str:
        rare = "".join(f", {name} {getattr(self, name)}" for name in ("set", "phase", "average") if getattr(self, name))
        return f"slice {self.slice}, repetition {self.repetition}{rare}"


def announced_echoes(header: Header) -> int | None:
    """How many contrasts the header announces, by its echo times or its encoding limits; None if not more than one.

    A single echo time, or limits of 0 to 0, may also mean that somebody left the others out.
    """
    times = len(header.sequenceParameters.TE) if header.sequenceParameters else 0
    limits = (steps_of(limit_of(encoding, "contrast")) or 0 for encoding in header.encoding)
    echoes = max(times, *limits)
    return echoes if echoes > 1 else None
