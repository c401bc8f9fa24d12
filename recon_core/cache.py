"""Keeps what was costly to build, by the content that it was built from."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

log = logging.getLogger("spinstream")


class Sized(Protocol):
    """A tensor, for example."""

    @property
    def nbytes(self) -> int:
        """Memory held now."""


SizedT = TypeVar("SizedT", bound=Sized)


class ContentCache:
    """Least recently used out first, bounded by the memory that its entries hold. Safe to share between threads.

    What has grown since is counted at the next access. A copy starts empty.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._entries: OrderedDict[bytes, Future[Any]] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[ContentCache], tuple[int]]:
        return ContentCache, (self.limit_bytes,)

    def get(self, key: bytes, build: Callable[[], SizedT]) -> SizedT:
        """What was built for a key, or is built now; other threads with the same key wait, all others do not.

        What is larger than the limit is given, and not kept.

        Args:
            key: see `content_key`.
            build: may get what it needs from this cache, by other keys. What it raises is not remembered.
        """
        with self._lock:
            entry = self._entries.get(key)
            building = entry is None
            if entry is None:
                entry = self._entries[key] = Future()
            self._entries.move_to_end(key)
        if building:
            self._fill(key, entry, build)
        elif entry.exception() is not None:
            return self.get(key, build)
        value: SizedT = entry.result()
        self._trim()
        return value

    @property
    def nbytes(self) -> int:
        """Memory held by all entries."""
        with self._lock:
            return sum(self._sizes().values())

    def _fill(self, key: bytes, entry: Future[Any], build: Callable[[], Sized]) -> None:
        try:
            entry.set_result(build())
        except BaseException as error:
            with self._lock:
                del self._entries[key]
            entry.set_exception(error)
            raise

    def _trim(self) -> None:
        with self._lock:
            sizes = self._sizes()
            too_large = [key for key, size in sizes.items() if size > self.limit_bytes]
            total = sum(sizes.values())
            # Those that fit nowhere go first: they alone would drive out all others.
            for key in [*too_large, *sizes]:
                if total <= self.limit_bytes:
                    break
                if key in self._entries:
                    if key in too_large:
                        log.warning(
                            "%d MiB do not fit into a cache of %d MiB, and are built again when they are next needed",
                            sizes[key] >> 20,
                            self.limit_bytes >> 20,
                        )
                    del self._entries[key]
                    total -= sizes[key]

    def _sizes(self) -> dict[bytes, int]:
        """Of what is built, least recently used first."""
        return {key: entry.result().nbytes for key, entry in self._entries.items() if entry.done()}


def content_key(*parts: Tensor | float | str | bytes | tuple[Any, ...] | None) -> bytes:
    """A digest of shapes, types, devices and values: two different inputs have two different keys.

    Raises:
        TypeError: a part whose content is not known.
    """
    digest = hashlib.sha256()
    _add(digest, parts)
    return digest.digest()


def _add(digest: hashlib._Hash, part: object) -> None:
    """Each part says its type and its length before its content, so that no two inputs run into each other."""
    if isinstance(part, tuple):
        digest.update(f"tuple {len(part)};".encode())
        for inner in part:
            _add(digest, inner)
    elif isinstance(part, Tensor):
        digest.update(f"tensor {part.dtype} {tuple(part.shape)} {part.device};".encode())
        plain = part.detach().cpu().resolve_conj().resolve_neg().contiguous()
        digest.update(plain.flatten().view(torch.uint8).numpy().data)
    elif part is None or isinstance(part, (bool, int, float, complex, str, bytes)):
        content = repr(part).encode()
        digest.update(f"{type(part).__name__} {len(content)};".encode() + content)
    else:
        raise TypeError(f"expected tensors, numbers, text or tuples of these as a key, got {type(part).__name__}")
