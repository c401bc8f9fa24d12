"""What sessions may take of the machine that serves them."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.bounds import BOUNDS, Bounds

LAST_WORDS_SECONDS = 10.0
"""That a peer has to read what ends a conversation."""

WORK_SECONDS = 3600.0


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of a server; beyond them a session ends with the reason.

    Attributes:
        sessions: at a time; one more is refused.
        patience_s: seconds without a byte, either way; None waits for ever.
        buffer_bytes: sample data held while gadgets are busy; then the client has to wait.
        memory_bytes: of a session's process, beyond what every such process begins with; None sets no limit.
        work_s: longest that a gadget may be at one item; then its process is ended. None sets no limit.
        bounds: of what a client may announce.
        turns: sessions that may compute on frames at once, the others wait in line; None lets all that there are.
    """

    sessions: int = 16
    patience_s: float | None = 600.0
    buffer_bytes: int = 256 << 20
    memory_bytes: int | None = None
    work_s: float | None = WORK_SECONDS
    turns: int | None = None
    bounds: Bounds = BOUNDS
