"""The gadgets that are installed, by name: entry points of the group `spinstream.gadgets`."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from gadgets.gadget import Gadget
from pipelines.errors import PipelineError

GROUP = "spinstream.gadgets"

Registry = Mapping[str, type[Gadget[Any]]]


@lru_cache(maxsize=1)
def installed_gadgets() -> Registry:
    """Every installed gadget class by its name in pipeline files.

    Raises:
        PipelineError: an installed gadget cannot be imported, or two have one name.
    """
    gadgets: dict[str, type[Gadget[Any]]] = {}
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        if point.name in gadgets:
            raise PipelineError(f"two installed packages bring a gadget called {point.name!r}; uninstall one")
        gadgets[point.name] = _load(point)
    return gadgets


def _load(point: EntryPoint) -> type[Gadget[Any]]:
    try:
        gadget: type[Gadget[Any]] = point.load()
    except (ImportError, AttributeError) as error:
        raise PipelineError(f"the installed gadget {point.name!r} ({point.value}) cannot be loaded: {error}") from error
    return gadget


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint with the known name most like `name`, as the end of a sentence; empty if none is like it."""
    by_lower = {word.lower(): word for word in known}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.5)
    return f"; did you mean {by_lower[close[0]]!r}?" if close else ""
