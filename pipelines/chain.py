"""Runs items through a chain of gadgets, one item at a time, and times each gadget.

Each item that a gadget yields travels to the end of the chain before that gadget goes on, so that a preview is on the
wire while the solver behind it has not begun.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import ismrmrd

from gadgets.frame import Frame
from gadgets.gadget import Gadget, Session
from pipelines.definition import ALL_OUTPUTS
from pipelines.errors import GadgetError, WireError

log = logging.getLogger("spinstream")


@dataclass
class Timing:
    """What one gadget did: seconds inside it, and items taken."""

    gadget: str
    seconds: float = 0.0
    items: int = 0


class Chain:
    """Gadgets in order, opened for one session.

    Args:
        gadgets: in the order of the stream.
        session: what they share.
        outputs: the MRD types that may leave.

    Attributes:
        timings: of each gadget.
        taken: items that came in, by type name.
        let_out: items that left, by type name.
        frames: how many frames were made of what came in.
        at: the gadget at work, on what, and since when on the clock of `time.monotonic`; None between gadgets. May be
            read from another thread.

    Raises:
        GadgetError: a gadget refuses the session's header.
    """

    def __init__(
        self, gadgets: Sequence[Gadget[Any]], session: Session, outputs: tuple[type, ...] = ALL_OUTPUTS
    ) -> None:
        self._gadgets = gadgets
        self._session = session
        self._outputs = outputs
        self._held_back: Counter[str] = Counter()
        self.timings = [Timing(type(gadget).__name__) for gadget in gadgets]
        self.taken: Counter[str] = Counter()
        self.let_out: Counter[str] = Counter()
        self.frames = 0
        self.at: tuple[str, str, float] | None = None
        for gadget in gadgets:
            try:
                gadget.open(session)
            except Exception as error:
                raise _failure(gadget, "the header", error) from error

    def run(self, items: Iterable[object]) -> Iterator[object]:
        """Yields the MRD items that come out; frames end their way at the end of the chain.

        Raises:
            GadgetError: a gadget failed; says which, and on what.
            WireError: the client is gone.
        """
        for item in items:
            self.taken[type(item).__name__] += 1
            yield from self._push(item, 0)
        for stage, gadget in enumerate(self._gadgets):
            for item in self._timed(stage, gadget.finish, "the end of the stream"):
                yield from self._push(item, stage + 1)
        if self._held_back:
            counts = ", ".join(f"{count} {kind}" for kind, count in self._held_back.items())
            self._session.tell(f"not sent, since the pipeline names no writer for them: {counts}")

    def report(self) -> str:
        """How long each gadget took, on one line."""
        return ", ".join(f"{t.gadget} {t.seconds:.3f} s ({t.items})" for t in self.timings)

    def _push(self, item: object, stage: int) -> Iterator[object]:
        while stage < len(self._gadgets) and not isinstance(item, self._gadgets[stage].takes):
            stage += 1
        if stage == len(self._gadgets):
            yield from self._let_out(item)
            return
        self.timings[stage].items += 1
        gadget = self._gadgets[stage]
        for result in self._timed(stage, lambda: gadget.take(item), describe(item)):
            yield from self._push(result, stage + 1)

    def _let_out(self, item: object) -> Iterator[object]:
        if isinstance(item, self._outputs):
            self.let_out[type(item).__name__] += 1
            yield item
        elif not isinstance(item, Frame):
            self._held_back[type(item).__name__] += 1

    def _timed(self, stage: int, start: Callable[[], Iterator[object]], what: str) -> Iterator[object]:
        """The items of a gadget's generator; its clock runs, and it has its turn at the device, only while it works."""
        gadget = self._gadgets[stage]
        works_on_frames = gadget.takes is Frame
        turn = self._session.turn if works_on_frames else nullcontext
        results: Iterator[object] | None = None
        while True:
            with turn(), self._clock(stage, what):
                try:
                    results = start() if results is None else results
                    result = next(results)
                except StopIteration:
                    return
                except WireError:  # the client's doing, met while the gadget told it something
                    raise
                except Exception as error:
                    raise _failure(gadget, what, error) from error
            self.frames += isinstance(result, Frame) and not works_on_frames
            yield result

    @contextmanager
    def _clock(self, stage: int, what: str) -> Iterator[None]:
        timing, began = self.timings[stage], time.perf_counter()
        self.at = timing.gadget, what, time.monotonic()
        try:
            yield
        finally:
            self.at = None
            timing.seconds += time.perf_counter() - began


def describe(item: object) -> str:
    """Names an item in a message."""
    if isinstance(item, Frame):
        return item.label
    if isinstance(item, ismrmrd.Acquisition):
        idx = item.idx
        return f"acquisition {item.scan_counter} (slice {idx.slice}, step {idx.kspace_encode_step_1})"
    return f"a {type(item).__name__}"


def _failure(gadget: Gadget[Any], what: str, error: Exception) -> GadgetError:
    name = type(gadget).__name__
    log.debug("%s failed", name, exc_info=error)
    kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
    return GadgetError(f"{name} failed on {what}: {kind}{error}")
