"""The gadgets that are installed, by name: entry points of the group `spinstream.gadgets`."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterable, Mapping
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from gadgets.gadget import Gadget
from pipelines.errors import PipelineError

log = logging.getLogger("spinstream")

GROUP = "spinstream.gadgets"

Registry = Mapping[str, type[Gadget[Any]]]


@lru_cache(maxsize=1)
def installed_gadgets() -> Registry:
    """Every installed gadget class by its name in pipeline files; one that cannot be loaded is left out with a warning.

    Raises:
        PipelineError: two installed packages bring a gadget of one name.
    """
    gadgets: dict[str, type[Gadget[Any]]] = {}
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        if point.name in gadgets:
            raise PipelineError(f"two installed packages bring a gadget called {point.name!r}; uninstall one")
        try:
            gadgets[point.name] = _load(point)
        except Exception as error:  # whatever the import of somebody's package raises; the other gadgets must work
            owner = point.dist.name if point.dist else "an unknown package"
            reason = f"{type(error).__name__}: {error}"
            log.warning("the gadget %r (%s) of %s cannot be loaded: %s", point.name, point.value, owner, reason)
    return gadgets


def _load(point: EntryPoint) -> type[Gadget[Any]]:
    gadget = point.load()
    if not (isinstance(gadget, type) and issubclass(gadget, Gadget)):
        raise TypeError(f"expected a subclass of Gadget, got {gadget!r}")
    if not hasattr(gadget, "takes"):
        raise TypeError("it does not declare what it takes")
    return gadget


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint with the known name most like `name`, as the end of a sentence; empty if none is like it."""
    by_lower = {word.lower(): word for word in known}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return f"; did you mean {by_lower[close[0]]!r}?" if close else ""
