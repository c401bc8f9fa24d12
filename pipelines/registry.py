"""The gadgets that are installed, by name: entry points of the group `spinstream.gadgets`."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from functools import lru_cache
from importlib.metadata import entry_points
from typing import Any

from gadgets.gadget import Gadget

GROUP = "spinstream.gadgets"

Registry = Mapping[str, type[Gadget[Any]]]


@lru_cache(maxsize=1)
def installed_gadgets() -> Registry:
    """Every installed gadget class by its name in pipeline files."""
    return {point.name: point.load() for point in sorted(entry_points(group=GROUP), key=lambda point: point.name)}


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint with the known name most like `name`, as the end of a sentence; empty if none is like it."""
    by_lower = {word.lower(): word for word in known}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.5)
    return f"; did you mean {by_lower[close[0]]!r}?" if close else ""
