"""What a worker is at, in memory that the server sees too: it is there still when the worker has died."""

from __future__ import annotations

import mmap
import os

SIZE = 512


class Whereabouts:
    """A few words.

    Args:
        descriptor: of the memory of the other side; None makes new memory.
    """

    def __init__(self, descriptor: int | None = None) -> None:
        self.descriptor = os.memfd_create("whereabouts") if descriptor is None else descriptor
        if descriptor is None:
            os.ftruncate(self.descriptor, SIZE)
        self._memory = mmap.mmap(self.descriptor, SIZE)

    def write(self, words: str) -> None:
        """Replaces the words; what is too long is cut."""
        self._memory[:SIZE] = words.encode(errors="replace")[: SIZE - 1].ljust(SIZE, b"\0")

    def read(self) -> str:
        """The words."""
        return self._memory[:SIZE].partition(b"\0")[0].decode(errors="replace")

    def close(self) -> None:
        """Lets go of the memory."""
        self._memory.close()
        os.close(self.descriptor)
