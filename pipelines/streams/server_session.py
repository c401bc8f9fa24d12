"""One client, as the server sees it: its bytes go to the recording and to a worker, and the answer comes back.

Nothing is computed here. Whatever becomes of the worker, what the client sends is recorded to its end, and the client
hears what went wrong.
"""

from __future__ import annotations

import contextlib
import contextvars
import logging
import select
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from pipelines.errors import FileError, PeerVanished, WireError
from pipelines.monitor import SessionStatus
from pipelines.recordings import Recordings
from pipelines.streams.intake import Intake
from pipelines.streams.journal import WIDE, Journal
from pipelines.streams.limits import LAST_WORDS_SECONDS, Limits
from pipelines.streams.progress import Outcome, Progress
from pipelines.streams.turns import Turns
from pipelines.streams.workers import Died, Ended, EndsTurn, WantsTurn, Worker, Workers
from pipelines.wire import ERROR, Close, Connection, Message, Text

log = logging.getLogger("spinstream")

WATCH_SECONDS = 0.5

SILENCE_SECONDS = 10.0
"""More than a worker on a busy machine is late with what it tells each second."""


class ServerSession:
    """One client.

    Args:
        number: of the session.
        sock: the client's; the caller closes it.
        workers: one of them serves this session alone.
        limits: of the server.
        turns: at the device.

    Attributes:
        number: of the session.
        progress: what the worker told last.
        journal: what the client sends is written to it before anything else; None where nothing is recorded.
        recording_failed: whether the recording could not begin, or had to stop.
    """

    def __init__(
        self,
        number: int,
        sock: socket.socket,
        workers: Workers,
        limits: Limits,
        turns: Turns,
    ) -> None:
        self.number = number
        self.progress = Progress()
        self.journal: Journal | None = None
        self.recording_failed = False
        self._sock = sock
        self._workers = workers
        self._limits = limits
        self._turns = turns
        self._worker: Worker | None = None
        self._intake: Intake | None = None
        self._client = Connection(sock, limits.patience_s)
        self._heard = time.monotonic()
        self._answered_at: float | None = None
        self._done = False
        self._killed: str | None = None
        self._dismissed = False
        self._asides: list[threading.Thread] = []
        self._broken_off = "the process of this session ended without an answer"

    def run(self) -> Outcome:
        """Serves the client until both sides have ended."""
        try:
            worker, inner, whereabouts = self._workers.begin(self.number)
        except OSError as error:
            return self._run_without(f"no process can be started for this session: {error.strerror or error}")
        self._worker = worker
        if self._killed is not None:  # dismissed meanwhile
            worker.kill()
        with self._client, inner, contextlib.closing(whereabouts):
            listener = self._thread(self._listen, inner)
            relay = self._thread(self._relay, inner)
            end = self._follow(worker)
            if isinstance(end, Died):
                _shut(
                    inner, socket.SHUT_RD
                )  # a child of its own may hold the other end; what it has said is still read
                end = replace(end, how=self._killed or self._epitaph(end, whereabouts.read()))
            relay.join()
            self._done = end == Ended(Outcome.DONE)
            if self._answered_at is None:
                self._tell_end(end.how if isinstance(end, Died) else self._broken_off)
            if self._done:
                self._workers.give_back(worker)
            else:
                worker.close()
            self._await_end(listener)
        return Outcome.DIED if isinstance(end, Died) else end.outcome

    def _run_without(self, reason: str) -> Outcome:
        """What the client sends is recorded all the same."""
        with self._client:
            self._tell_end(reason)
            self._await_end(self._thread(self._listen, None))
        return Outcome.DIED

    def record(self, recordings: Recordings) -> None:
        """Begins a recording of what the client sends; call it before `run`."""
        try:
            self.journal = recordings.begin(self.number)
        except FileError as error:
            self._lose_recording(error)

    def end_recording(self) -> Path | None:
        """Closes the journal and gives its path, if there is one."""
        if self.journal is None:
            return None
        try:
            self.journal.close()
        except FileError as error:
            self._lose_recording(error)
        return self.journal.path

    def status(self) -> SessionStatus:
        """How it is, for a monitor."""
        return SessionStatus(
            number=self.number,
            progress=self.progress,
            recorded_bytes=0 if self.journal is None else self.journal.size,
            recording_failed=self.recording_failed,
            backlog_bytes=0 if self._intake is None else self._intake.backlog,
        )

    def dismiss(self, reason: str) -> None:
        """Ends the session, whose client is told why; called from another thread than `run`, and does not wait."""
        self._dismissed = True
        self._killed = reason
        if self._worker is not None:
            self._worker.kill()

    def cut(self) -> None:
        """Ends the connection, for a client that takes too long to hear why."""
        self._client.cut()

    def _follow(self, worker: Worker) -> Ended | Died:
        """Answers the worker until the session is over."""
        try:
            for event in worker.events(WATCH_SECONDS):
                if isinstance(event, (Ended, Died)):
                    return event
                if isinstance(event, WantsTurn):
                    self._turns.ask(self, worker.grant_turn)
                elif isinstance(event, EndsTurn):
                    self._turns.end(self)
                elif isinstance(event, Progress):
                    self.progress, self._heard = event, time.monotonic()
                self._limit_work(worker)
        finally:
            self._turns.end(self)
        raise AssertionError("the events of a worker end with its own")

    def _limit_work(self, worker: Worker) -> None:
        """Ends a worker whose gadget is at one item for too long, as the worker tells, or that has ceased to tell."""
        limit = self._limits.work_s
        if limit is None or self._killed is not None:
            return
        at, silence = self.progress.at, time.monotonic() - self._heard
        if at is not None and at[2] > limit:
            what = f"{at[0]} was at work on {at[1]}"
        elif silence > limit + SILENCE_SECONDS:
            where = f" while {at[0]} was at work on {at[1]}" if at else ""
            what = f"the process of this session did not answer{where}"
        else:
            return
        self._killed = f"{what} for more than {limit:g} s, the limit of this server, and was ended"
        worker.kill()

    def _listen(self, inner: socket.socket | None) -> None:
        """Records what the client sends, and passes it on."""
        try:
            self._intake = Intake(self._sock, inner, self.journal, self._lose_recording_aside)
            self._take_in(self._intake)
        except OSError as error:
            log.info("the client is gone: %s", error.strerror or error)
        except FileError as error:
            self.dismiss(str(error))
        else:
            _shut(inner, socket.SHUT_WR)
            self._watch_for_hang_up()
        _shut(inner, socket.SHUT_RDWR)

    def _thread(self, task: Callable[..., None], *args: object) -> threading.Thread:
        """Runs a task in the context of this session; a defect in it ends the session, and is told."""

        def guarded() -> None:
            try:
                task(*args)
            except Exception as error:
                log.exception("a defect of spinstream")
                self.dismiss(f"a defect of spinstream, please report it: {type(error).__name__}: {error}")

        thread = threading.Thread(target=contextvars.copy_context().run, args=(guarded,), daemon=True)
        thread.start()
        return thread

    def _take_in(self, intake: Intake) -> None:
        intake.run(self._is_over)

    def _is_over(self, silence: float) -> bool:
        """Whether nothing more is expected of the client.

        Before the answer, that is for the worker to say. After a good answer nothing more is, and after a bad one what
        still comes is only read on if it is recorded.
        """
        if self._answered_at is None:
            return False
        if self._dismissed:
            return time.monotonic() - self._answered_at > WATCH_SECONDS
        patience = self._limits.patience_s
        if self.journal is None or self.journal.stopped or self._done:
            return time.monotonic() - self._answered_at > LAST_WORDS_SECONDS
        return patience is not None and silence > patience

    def _watch_for_hang_up(self) -> None:
        """Waits until a client that sends no more is gone, or has its answer."""
        poll = select.poll()
        poll.register(self._sock, 0)
        while self._answered_at is None and not poll.poll(WATCH_SECONDS * 1000):
            pass

    def _lose_recording(self, error: FileError) -> None:
        """The images are still worth having; the person at the client hears of it, and may save the data elsewhere."""
        self.recording_failed = True
        log.error("%s", error)
        self._answer(self._error(str(error)))

    def _lose_recording_aside(self, error: FileError) -> None:
        """The same from the thread that takes in data: a client may not read before it has sent them all."""
        self._asides.append(self._thread(self._lose_recording, error))

    def _relay(self, inner: socket.socket) -> None:
        """Passes on what the worker says; only whole messages, so that an error can still follow if it dies."""
        with Connection(inner, bounds=WIDE) as inside:
            try:
                while not isinstance(message := inside.receive(), Close):
                    if not self._answer(message):
                        break
                else:
                    self._end_answer()
            except PeerVanished:  # its events tell why
                pass
            except WireError as error:
                self._broken_off = f"the answer broke off: {error}"
            finally:
                inside.cut()  # so that a worker whose client is gone hears of it

    def _tell_end(self, reason: str) -> None:
        log.error("%s", reason)
        if self._answered_at is None:
            self._answer(self._error(reason))
            self._end_answer()

    def _error(self, reason: str) -> Message:
        return Text(f"{ERROR}{reason}\n")

    def _end_answer(self) -> None:
        self._bring_to_disk()
        for aside in self._asides:
            aside.join()
        self._answer(Close())
        self._client.hang_up()
        self._answered_at = time.monotonic()

    def _answer(self, message: Message) -> bool:
        """Whether the client could be told."""
        try:
            self._client.send(message)
        except WireError as error:
            log.warning("the client does not hear any more: %s", error)
            self._answered_at = self._answered_at or time.monotonic()
            return False
        return True

    def _bring_to_disk(self) -> None:
        """Before the client hears that all is well."""
        if self.journal is None:
            return
        self.journal.sync()
        try:
            self.journal.write(b"")  # raises what that met
        except FileError as error:
            self._lose_recording(error)

    def _await_end(self, listener: threading.Thread) -> None:
        listener.join()

    def _epitaph(self, died: Died, at: str) -> str:
        recorded = self.journal is not None and not self.journal.stopped
        where = f", while {at}" if at else ""
        return f"the process of this session {died.how}{where}{'; what is sent is recorded' if recorded else ''}"


def _shut(inner: socket.socket | None, side: int) -> None:
    if inner is None:
        return
    with contextlib.suppress(OSError):
        inner.shutdown(side)
