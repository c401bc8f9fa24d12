"""Runs items through a chain of gadgets, one item at a time, and times each gadget.

Each item that a gadget yields travels to the end of the chain before that gadget goes on, so that a preview is on the
wire while the solver behind it has not begun.

With an executor, gadgets that say that they may compute elsewhere do: their frames are submitted, and travel on in the
same order once they are back.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeAlias

import ismrmrd

from gadgets.frame import Frame
from gadgets.gadget import Gadget, Header, Session
from gadgets.memory import out_of_memory, taken
from pipelines.definition import ALL_OUTPUTS
from pipelines.errors import GadgetError, WireError
from pipelines.executors.elsewhere import Elsewhere
from pipelines.executors.executor import Executor, Part, runs
from pipelines.executors.pump import Pump

log = logging.getLogger("spinstream")

At: TypeAlias = tuple[str, str, float]
"""A gadget, what it is at, and since when on the clock of `time.monotonic`."""


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
        executor: computes what may be computed elsewhere; without one, everything is computed here. It is closed at
            the end of `run`.
        watch: called with the gadget that goes to work and with what it works on, and with None when it rests.

    Attributes:
        timings: of each gadget.
        taken: items that came in, by type name.
        let_out: items that left, by type name.
        frames: how many frames were made of what came in.
        at: the gadget at work; None between gadgets. May be read from another thread.

    Raises:
        GadgetError: a gadget refuses the session's header.
    """

    def __init__(
        self,
        gadgets: Sequence[Gadget[Any]],
        session: Session,
        outputs: tuple[type, ...] = ALL_OUTPUTS,
        executor: Executor | None = None,
        watch: Callable[[At | None], object] = lambda at: None,
    ) -> None:
        self._watch = watch
        self._gadgets = gadgets
        self._session = session
        self._outputs = outputs
        self._held_back: Counter[str] = Counter()
        self.timings = [Timing(type(gadget).__name__) for gadget in gadgets]
        self.taken: Counter[str] = Counter()
        self.let_out: Counter[str] = Counter()
        self.frames = 0
        self.at: At | None = None
        self._turn = ExitStack()
        session.without_turn = self._without_turn
        headers = [self._opened(gadget) for gadget in gadgets]
        self._executor = executor
        self._elsewhere: dict[int, tuple[Elsewhere, int]] = {}
        if executor is not None:
            self._elsewhere = dict(self._parts(executor, headers))
            if not self._elsewhere:
                session.tell("No gadget of this pipeline may compute elsewhere; everything is computed here.")

    def run(self, items: Iterable[object]) -> Iterator[object]:
        """Yields the MRD items that come out; frames end their way at the end of the chain.

        Raises:
            GadgetError: a gadget failed; says which, and on what.
            WireError: the client is gone.
        """
        if self._executor is None:
            yield from self._run(items)
        else:
            yield from self._run_with(self._executor, items)

    def report(self) -> str:
        """How long each gadget took, on one line."""
        return ", ".join(f"{t.gadget} {t.seconds:.3f} s ({t.items})" for t in self.timings)

    def _run(self, items: Iterable[object]) -> Iterator[object]:
        for item in items:
            if item is not None:
                self.taken[type(item).__name__] += 1
                yield from self._push(item, 0)
            for part, stop in self._elsewhere.values():
                yield from self._back(part, part.ready(), stop)
        stage = 0
        while stage < len(self._gadgets):
            stage = yield from self._finish(stage)
        if self._held_back:
            counts = ", ".join(f"{count} {kind}" for kind, count in self._held_back.items())
            self._session.tell(f"not sent, since the pipeline names no writer for them: {counts}")

    def _run_with(self, executor: Executor, items: Iterable[object]) -> Iterator[object]:
        """The same, woken when a frame is back while no item comes: the scanner may pause."""
        pump = Pump(items)
        executor.nudge = pump.nudge
        try:
            yield from self._run(pump)
        finally:
            pump.stop()
            for part, _ in self._elsewhere.values():
                part.cancel()
            executor.close()

    def _finish(self, stage: int) -> Generator[object, None, int]:
        """Ends a gadget, or the part elsewhere that begins with it; returns the stage behind."""
        if stage in self._elsewhere:
            part, stop = self._elsewhere[stage]
            yield from self._back(part, part.finish(), stop)
            return stop
        for item in self._timed(stage, self._gadgets[stage].finish, "the end of the stream"):
            yield from self._push(item, stage + 1)
        return stage + 1

    def _opened(self, gadget: Gadget[Any]) -> Header:
        """Opens a gadget; returns the header that it saw."""
        header = self._session.header
        self._go_to(type(gadget).__name__, "the header")
        try:
            gadget.open(self._session)
        except Exception as error:
            raise _failure(gadget, "the header", error) from error
        finally:
            self._go_to(None)
        return header

    def _parts(self, executor: Executor, headers: Sequence[Header]) -> Iterator[tuple[int, tuple[Elsewhere, int]]]:
        """What is computed elsewhere, and the stage behind, by its first stage."""
        for stages in runs(self._gadgets):
            part = Part.of(
                [self._gadgets[stage] for stage in stages],
                header=headers[stages.start],
                seed=self._session.seed,
                frames_wanted=any(gadget.takes is Frame for gadget in self._gadgets[stages.stop :]),
                priority=-stages.start,
            )
            timings = self.timings[stages.start : stages.stop]
            yield stages.start, (Elsewhere(part, executor, self._session, timings), stages.stop)

    def _push(self, item: object, stage: int) -> Iterator[object]:
        while stage < len(self._gadgets) and not isinstance(item, self._gadgets[stage].takes):
            stage += 1
        if stage == len(self._gadgets):
            yield from self._let_out(item)
            return
        if stage in self._elsewhere:
            assert isinstance(item, Frame)
            part, stop = self._elsewhere[stage]
            yield from self._back(part, part.take(item), stop)
            return
        self.timings[stage].items += 1
        gadget = self._gadgets[stage]
        for result in self._timed(stage, lambda: taken(gadget, item), describe(item)):
            yield from self._push(result, stage + 1)

    def _let_out(self, item: object) -> Iterator[object]:
        if isinstance(item, self._outputs):
            self.let_out[type(item).__name__] += 1
            yield item
        elif not isinstance(item, Frame):
            self._held_back[type(item).__name__] += 1

    def _back(self, part: Elsewhere, results: Iterator[object], stage: int) -> Iterator[object]:
        """Sends on to a stage what is back from elsewhere."""
        while True:
            self._go_to(part.name, part.oldest)
            try:
                result = next(results)
            except StopIteration:
                return
            finally:
                self._go_to(None)
            yield from self._push(result, stage)

    def _timed(self, stage: int, start: Callable[[], Iterator[object]], what: str) -> Iterator[object]:
        """The items of a gadget's generator; its clock runs, and it has its turn at the device, only while it works."""
        gadget = self._gadgets[stage]
        works_on_frames = gadget.takes is Frame
        turn = self._in_turn if works_on_frames else nullcontext
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
    def _in_turn(self) -> Iterator[None]:
        with ExitStack() as self._turn:
            self._turn.enter_context(self._session.turn())
            yield

    @contextmanager
    def _without_turn(self) -> Iterator[None]:
        """For a gadget in its turn: lets others have it, and waits for the next one."""
        self._turn.close()
        yield
        self._turn.enter_context(self._session.turn())

    @contextmanager
    def _clock(self, stage: int, what: str) -> Iterator[None]:
        timing, began = self.timings[stage], time.perf_counter()
        self._go_to(timing.gadget, what)
        try:
            yield
        finally:
            self._go_to(None)
            timing.seconds += time.perf_counter() - began

    def _go_to(self, gadget: str | None, what: str = "") -> None:
        self.at = None if gadget is None else (gadget, what, time.monotonic())
        self._watch(self.at)


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
    if out_of_memory(error):
        return GadgetError(f"{name} ran out of memory on {what}: {error}")
    kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
    return GadgetError(f"{name} failed on {what}: {kind}{error}")
