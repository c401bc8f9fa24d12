"""A first-in first-out buffer between a reading thread and a working thread, bounded in bytes.

While the worker computes, the reader goes on filling; when the bound is reached the reader waits, the socket fills up,
and the sender feels the back-pressure.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator

import ismrmrd

# Of the Python objects that hold an item's header and arrays.
OVERHEAD = 2048


class ItemBuffer:
    """Holds items until they are taken; one producer, one consumer.

    Args:
        limit: bytes held before `put` waits. A single larger item still passes.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0
        self._items: deque[object] = deque()
        self._ended = False
        self._dropped = False
        self._nudged = False
        self._error: Exception | None = None
        self._changed = threading.Condition()

    @property
    def held(self) -> int:
        """Bytes held now."""
        return self._held

    def put(self, item: object) -> None:
        """Adds an item; waits while the buffer is full."""
        size = _size(item)
        with self._changed:
            self._changed.wait_for(lambda: self._dropped or not self._items or self._held + size <= self._limit)
            if not self._dropped:
                self._items.append(item)
                self._held += size
                self._changed.notify_all()

    def end(self, error: Exception | None = None) -> None:
        """No more items come; `error` is raised to the consumer after what was accepted before it."""
        with self._changed:
            self._ended, self._error = True, error
            self._changed.notify_all()

    def nudge(self) -> None:
        """Has the consumer get None as soon as no item waits: there is something else to do."""
        with self._changed:
            self._nudged = True
            self._changed.notify_all()

    def drop(self) -> None:
        """The consumer is done: what is held is dropped and `put` never waits again."""
        with self._changed:
            self._dropped, self._held = True, 0
            self._items.clear()
            self._changed.notify_all()

    def __iter__(self) -> Iterator[object]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._items or self._ended or self._nudged)
                item = None
                if self._items:
                    item = self._items.popleft()
                    self._held -= _size(item)
                    self._changed.notify_all()
                elif self._ended:
                    if self._error is not None:
                        raise self._error
                    return
                else:
                    self._nudged = False
            yield item


def _size(item: object) -> int:
    """About how much memory an item takes."""
    return OVERHEAD + _samples(item)


def _samples(item: object) -> int:
    if isinstance(item, ismrmrd.Acquisition):
        return int(item.data.nbytes + item.traj.nbytes)
    return int(item.data.nbytes) if isinstance(item, (ismrmrd.Image, ismrmrd.Waveform)) else 0
