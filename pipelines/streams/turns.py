"""Turns at the device: as many sessions as it bears compute at once, the others wait in line."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable


class Turns:
    """First come, first served. A session that computes on frame after frame goes to the end of the line each time.

    Args:
        places: sessions that may have their turn at once; None lets all.
    """

    def __init__(self, places: int | None) -> None:
        self._places = places
        self._having: set[object] = set()
        self._line: deque[tuple[object, Callable[[], object]]] = deque()
        self._lock = threading.Lock()

    @property
    def waiting(self) -> int:
        """Sessions in the line."""
        return len(self._line)

    def ask(self, who: object, grant: Callable[[], object]) -> None:
        """Calls `grant` when it is the turn of `who`: at once, or from the thread that gives its own back."""
        with self._lock:
            self._line.append((who, grant))
        self._next()

    def end(self, who: object) -> None:
        """The turn is over, or its claim; of one who has neither, nothing happens."""
        with self._lock:
            self._having.discard(who)
            self._line = deque(entry for entry in self._line if entry[0] is not who)
        self._next()

    def _next(self) -> None:
        while (grant := self._first()) is not None:
            grant()

    def _first(self) -> Callable[[], object] | None:
        with self._lock:
            if not self._line or (self._places is not None and len(self._having) >= self._places):
                return None
            who, grant = self._line.popleft()
            self._having.add(who)
            return grant
