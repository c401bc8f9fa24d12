"""Frames that are echoes of one another: the same but for their contrast."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

from gadgets.frame import Frame
from gadgets.gadget import Header
from gadgets.header_trajectory import steps_of
from gadgets.mrd import limit_of

T = TypeVar("T")

REMEMBERED = 256
"""Slices whose echoes may be under way at one time; more would only cost memory."""


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


class SharedByEchoes(Generic[T]):
    """What is made from the first echo to come and holds for the others, so that their phases can be compared.

    Forgotten with the last echo that the header announces; without an announcement, nothing is shared.
    """

    def __init__(self, header: Header) -> None:
        self._echoes = announced_echoes(header)
        self._made: OrderedDict[tuple[object, ...], tuple[T, int]] = OrderedDict()
        self._uses: Counter[tuple[object, ...]] = Counter()

    def of(self, frame: Frame, make: Callable[[], T]) -> tuple[T, int]:
        """What holds for a frame, and the contrast it was made from."""
        contrast = int(frame.reference.idx.contrast)
        if self._echoes is None:
            return make(), contrast
        key = (EchoKey.of(frame), len(frame.samples.kspace), frame.space)
        if key not in self._made:
            self._made[key] = make(), contrast
        found = self._made[key]
        self._uses[key] += 1
        if self._uses[key] == self._echoes:
            self._forget(key)
        elif len(self._made) > REMEMBERED:
            self._forget(next(iter(self._made)))
        return found

    def _forget(self, key: tuple[object, ...]) -> None:
        del self._made[key], self._uses[key]
