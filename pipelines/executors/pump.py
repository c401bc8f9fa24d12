"""Reads items in a thread of its own, so that who takes them can be woken for other reasons too."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator

from pipelines.streams.buffer import ItemBuffer

LIMIT_BYTES = 16 << 20
LAST_READ_S = 1.0


class Pump:
    """The items of another iterable, with None among them where `nudge` was called and no item waits.

    Args:
        items: nobody else iterates over them meanwhile.
    """

    def __init__(self, items: Iterable[object]) -> None:
        self._items = items
        self._buffer = ItemBuffer(LIMIT_BYTES)
        self._stopped = False
        self._thread = threading.Thread(target=self._read, daemon=True)
        self.nudge = self._buffer.nudge

    def __iter__(self) -> Iterator[object]:
        self._thread.start()
        return iter(self._buffer)

    def stop(self) -> None:
        """Reads no further; an item that is being waited for may still be read."""
        self._stopped = True
        self._buffer.drop()
        if self._thread.is_alive():
            self._thread.join(LAST_READ_S)

    def _read(self) -> None:
        try:
            for item in self._items:
                if self._stopped:
                    return
                self._buffer.put(item)
            self._buffer.end()
        except Exception as error:  # crosses to the thread that takes the items, which raises it
            self._buffer.end(error)
