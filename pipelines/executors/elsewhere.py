"""A part of a chain whose frames are computed elsewhere."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from gadgets.frame import Frame
from gadgets.gadget import Session
from pipelines.executors.executor import Executor, Part, Pending

if TYPE_CHECKING:
    from pipelines.chain import Timing

WAIT_S = 0.5
"""From one look at whether the client is still there to the next."""


class Elsewhere:
    """Submits frames, and yields what comes of them in the order in which they were submitted.

    Args:
        part: what to compute.
        executor: who computes it.
        session: hears the notes, and is asked whether its client is still there.
        timings: of the gadgets of the part, to which their work is added.
    """

    def __init__(self, part: Part, executor: Executor, session: Session, timings: Sequence[Timing]) -> None:
        self._part = part
        self._executor = executor
        self._session = session
        self._timings = timings
        self._in_flight: deque[tuple[Frame, Pending]] = deque()
        self._told: set[str] = set()

    @property
    def oldest(self) -> str:
        """Names the frame that is waited for."""
        return f"{self._in_flight[0][0].label}, elsewhere" if self._in_flight else "the next frame"

    @property
    def name(self) -> str:
        """Of the gadgets."""
        return self._part.name

    def take(self, frame: Frame) -> Iterator[object]:
        """Submits a frame, once fewer are in flight than may be. Yields what has come until then."""
        yield from self.ready()
        while len(self._in_flight) >= self._executor.slots():
            yield from self._oldest()
        self._in_flight.append((frame, self._executor.submit(self._part, frame, self._session.noise_known)))
        yield from self.ready()

    def ready(self) -> Iterator[object]:
        """Yields what has come, as far as nothing before it is missing."""
        self._pass_on_notes()
        while self._in_flight and self._in_flight[0][1].done():
            yield from self._oldest()

    def finish(self) -> Iterator[object]:
        """Waits for all that is in flight, and yields it."""
        while self._in_flight:
            yield from self._oldest()

    def cancel(self) -> None:
        """Gives up what is in flight."""
        for _, pending in self._in_flight:
            pending.cancel()
        self._in_flight.clear()

    def _oldest(self) -> Iterator[object]:
        pending = self._in_flight[0][1]
        while not pending.done():
            self._executor.wait(WAIT_S)
            self._executor.slots()
            self._pass_on_notes()
            self._session.require_client()
        items, timings = pending.result()
        self._pass_on_notes()
        self._in_flight.popleft()
        for timing, (seconds, taken) in zip(self._timings, timings, strict=True):
            timing.seconds += seconds
            timing.items += taken
        yield from items

    def _pass_on_notes(self) -> None:
        """What gadgets tell once, each worker tells once."""
        for note in self._executor.notes():
            if note not in self._told:
                self._told.add(note)
                self._session.tell(note)
