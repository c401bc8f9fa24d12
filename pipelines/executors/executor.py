"""The seam between a chain and the machines that compute parts of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, Protocol, TypeAlias
from uuid import uuid4

import torch

from gadgets.frame import Frame
from gadgets.gadget import IMAGE, Gadget, Header


def versions() -> dict[str, str]:
    """What both ends must have in common. Of torch, builds for other devices are one version."""
    return {"spinstream": version("spinstream"), "torch": torch.__version__.partition("+")[0]}


@dataclass(frozen=True, kw_only=True)
class Part:
    """Gadgets that follow each other in a chain and may compute elsewhere; it travels to the machines that do.

    Attributes:
        header: as its first gadget shall see it.
        seed: of the session.
        gadgets: classes and their property values, in order.
        frames_wanted: whether later gadgets take frames, or only images.
        priority: larger ones are computed first.
        key: tells it from all other parts of all sessions.
        versions: of the machine of the session.
    """

    header: Header
    seed: int
    gadgets: tuple[tuple[type[Gadget[Any]], Mapping[str, Any]], ...]
    frames_wanted: bool
    priority: int
    key: str = field(default_factory=lambda: uuid4().hex)
    versions: Mapping[str, str] = field(default_factory=versions)

    @classmethod
    def of(cls, gadgets: Sequence[Gadget[Any]], **others: Any) -> Part:
        """The part that some gadgets make up."""
        values = [(type(gadget), {name: getattr(gadget, name) for name in gadget.properties()}) for gadget in gadgets]
        return cls(gadgets=tuple(values), **others)

    @property
    def name(self) -> str:
        """Of its gadgets, for messages."""
        return ", ".join(gadget.__name__ for gadget, _ in self.gadgets)


Timings: TypeAlias = Sequence[tuple[float, int]]
"""Seconds and items of each gadget of a part."""


class Pending(Protocol):
    """A frame that was submitted."""

    def done(self) -> bool:
        """Whether `result` would not wait."""

    def result(self) -> tuple[Sequence[object], Timings]:
        """The items that came of it, in order, and what each gadget took.

        Raises:
            GadgetError: a gadget failed, in the words that it would have used in this process.
            ClusterError: it was not computed; says which frame, and why.
        """

    def cancel(self) -> None:
        """Nobody wants it any more."""


class Executor(Protocol):
    """Machines that compute parts of a chain. Used by one session, from one thread.

    Attributes:
        nudge: called, from any thread, whenever something was done or told.
    """

    nudge: Callable[[], object]

    def submit(self, part: Part, frame: Frame, noise_known: bool) -> Pending:
        """Begins with a frame, or queues it. The frame must not be changed any more."""

    def slots(self) -> int:
        """How many frames of one part to have in flight; at least one.

        Raises:
            ClusterError: there has been nobody to compute them for too long.
        """

    def notes(self) -> Iterator[str]:
        """What was told since the last call."""

    def wait(self, seconds: float) -> None:
        """Until something was done or told, or for some time."""

    def close(self) -> None:
        """The session is over."""


def runs(gadgets: Sequence[Gadget[Any]]) -> Iterator[range]:
    """The gadgets that may compute elsewhere, as ranges of those that follow each other.

    A gadget that makes images ends its range: a preview must not wait for the solver.
    """
    start: int | None = None
    for stage, gadget in enumerate(gadgets):
        if gadget.per_frame:
            start = stage if start is None else start
            if IMAGE in gadget.adds:
                yield range(start, stage + 1)
                start = None
        elif start is not None:
            yield range(start, stage)
            start = None
    if start is not None:
        yield range(start, len(gadgets))
