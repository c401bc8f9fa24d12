"""What a worker tells the server about the session that it serves: each second, and at the end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far one session is. All counts are since it began.

    Attributes:
        acquisitions, waveforms: taken by the chain.
        frames: made by a gadget.
        images: let out by the chain.
        gadgets: seconds inside each gadget and items that it took, by the gadget's name.
        at: the gadget at work, on what, and for how many seconds; None while the chain waits for data.
        buffered_bytes: sample data that wait for the chain.
        memory_bytes: what the worker's process holds (resident).
    """

    acquisitions: int = 0
    waveforms: int = 0
    frames: int = 0
    images: int = 0
    gadgets: Mapping[str, tuple[float, int]] = field(default_factory=dict)
    at: tuple[str, str, float] | None = None
    buffered_bytes: int = 0
    memory_bytes: int = 0


class Outcome(Enum):
    """How a session ended."""

    DONE = "done"
    FAILED = "failed"
    VANISHED = "vanished"
    DIED = "died"
    REFUSED = "refused"
    SILENT = "silent"
